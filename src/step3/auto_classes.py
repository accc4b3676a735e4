"""Makes Transformers' Auto classes know Step3, without importing torch before somebody needs it.

Configurations are registered as soon as Transformers' table of them is loaded. The networks follow when a
Step3 configuration is made, which every Auto class does first; by then Transformers is wholly imported, so
that no import runs in a circle.
"""

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_AUTO = "transformers.models.auto."


def register() -> None:
    """Registers with every Auto module that is loaded, and with the others once they are."""
    on_import: dict[str, Callable[[ModuleType], None]] = {
        _AUTO + "configuration_auto": _register_configurations,
        _AUTO + "processing_auto": _register_processors,
        _AUTO + "image_processing_auto": _register_image_processors,
        _AUTO + "tokenization_auto": _distrust("AutoTokenizer"),
        _AUTO + "feature_extraction_auto": _distrust("AutoFeatureExtractor"),
        _AUTO + "video_processing_auto": _distrust("AutoVideoProcessor"),
    }
    waiting: dict[str, Callable[[ModuleType], None]] = {}
    for name, action in on_import.items():
        if name in sys.modules:
            action(sys.modules[name])
        else:
            waiting[name] = action
    if waiting:
        sys.meta_path.insert(0, _AfterImport(waiting))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls an action on a module right after its first import."""

    def __init__(self, actions: dict[str, Callable[[ModuleType], None]]) -> None:
        self.actions = actions

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        action = self.actions.pop(fullname, None)
        if action is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_then_act(module: ModuleType) -> None:
            execute(module)
            action(module)

        spec.loader.exec_module = execute_then_act  # type: ignore[method-assign]
        return spec


def _register_configurations(module: ModuleType) -> None:
    from step3.model.configuration_step3 import Step3TextConfig, Step3VisionConfig, Step3VLConfig

    for config in (Step3VLConfig, Step3TextConfig, Step3VisionConfig):
        module.AutoConfig.register(config.model_type, config, exist_ok=True)
    _never_remote(module.AutoConfig)


def _register_processors(module: ModuleType) -> None:
    from step3.model.configuration_step3 import Step3VLConfig
    from step3.model.processing_step3 import Step3Processor

    module.AutoProcessor.register(Step3VLConfig, Step3Processor, exist_ok=True)
    _never_remote(module.AutoProcessor, instead=Step3Processor)


def _register_image_processors(module: ModuleType) -> None:
    from step3.model.configuration_step3 import Step3VLConfig
    from step3.model.image_processing_step3 import Step3ImageProcessor

    module.AutoImageProcessor.register(
        Step3VLConfig, slow_image_processor_class=Step3ImageProcessor, exist_ok=True
    )
    _never_remote(module.AutoImageProcessor, instead=Step3ImageProcessor)


def _distrust(auto_class: str) -> Callable[[ModuleType], None]:
    return lambda module: _never_remote(getattr(module, auto_class))


def register_networks() -> None:
    """Registers the models; called when the first Step3 configuration is made."""
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoTokenizer,
        PreTrainedTokenizerFast,
    )

    from step3.model.configuration_step3 import Step3TextConfig, Step3VisionConfig, Step3VLConfig
    from step3.model.modeling_step3 import Step3TextForCausalLM, Step3TextModel
    from step3.model.modeling_step3_vl import Step3VLForConditionalGeneration, Step3VLModel
    from step3.model.vision_step3 import Step3VisionModel

    AutoModel.register(Step3VLConfig, Step3VLModel, exist_ok=True)
    AutoModel.register(Step3TextConfig, Step3TextModel, exist_ok=True)
    AutoModel.register(Step3VisionConfig, Step3VisionModel, exist_ok=True)
    AutoModelForCausalLM.register(Step3VLConfig, Step3VLForConditionalGeneration, exist_ok=True)
    AutoModelForCausalLM.register(Step3TextConfig, Step3TextForCausalLM, exist_ok=True)
    AutoModelForImageTextToText.register(Step3VLConfig, Step3VLForConditionalGeneration, exist_ok=True)
    for config in (Step3VLConfig, Step3TextConfig):
        AutoTokenizer.register(config, fast_tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)


def _never_remote(auto_class: Any, instead: Any = None) -> None:
    """Keeps a Step3 checkpoint's `auto_map` from importing the Python files that lie beside it.

    The model card's snippet trusts remote code. Transformers 4.54 then imports it whether or not the type is
    registered, and Transformers 5 where the tokenizer's or a processor's own file asks for it.

    Args:
        auto_class: one of Transformers' Auto classes; what it does for other checkpoints stays.
        instead: the class that loads every Step3 checkpoint, whatever name the checkpoint's files give it.
    """
    original = auto_class.from_pretrained.__func__
    if hasattr(original, "never_remote_for_step3"):
        return

    @functools.wraps(original)
    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("trust_remote_code") and _is_step3(pretrained_model_name_or_path, kwargs):
            kwargs["trust_remote_code"] = False
            if instead is not None:
                return instead.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        return original(cls, pretrained_model_name_or_path, *args, **kwargs)

    from_pretrained.never_remote_for_step3 = True  # type: ignore[attr-defined]
    auto_class.from_pretrained = classmethod(from_pretrained)


def _is_step3(name_or_path: Any, kwargs: dict[str, Any]) -> bool:
    from step3.errors import Step3Error
    from step3.model.checkpoint_json import HUB_KWARGS, read_json
    from step3.model.configuration_step3 import Step3TextConfig, Step3VisionConfig, Step3VLConfig

    hub = {name: kwargs[name] for name in HUB_KWARGS if name in kwargs}
    try:
        model_type = read_json(name_or_path, "config.json", **hub).get("model_type")
    except (OSError, ValueError, Step3Error):
        # Whatever is wrong, Transformers will say it in its own words.
        return False
    return model_type in {kind.model_type for kind in (Step3VLConfig, Step3TextConfig, Step3VisionConfig)}
