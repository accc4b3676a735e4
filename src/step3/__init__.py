"""Step3: StepFun's vision-language mixture-of-experts model, its serving and its cost.

`import step3` is light: it loads no torch, and makes Transformers' Auto classes know Step3.

    from step3 import LLM, SamplingParams
"""

import gc
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from step3.auto_classes import register as _register_auto_classes

if TYPE_CHECKING:
    from step3.cluster.llm import LLM
    from step3.engine.async_llm import AsyncLLM
    from step3.engine.sampling.params import RequestOutputKind, SamplingParams
    from step3.engine.sampling.structured_params import StructuredOutputsParams

__all__ = ["LLM", "AsyncLLM", "RequestOutputKind", "SamplingParams", "StructuredOutputsParams"]
__version__ = "0.1.0"

_register_auto_classes()

_HOME = {
    "AsyncLLM": "step3.engine.async_llm",
    "LLM": "step3.cluster.llm",
    "RequestOutputKind": "step3.engine.sampling.params",
    "SamplingParams": "step3.engine.sampling.params",
    "StructuredOutputsParams": "step3.engine.sampling.structured_params",
}


def __getattr__(name: str) -> Any:
    """Imports what needs torch when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'step3' has no attribute {name!r}")
    value = getattr(_import_without_collecting(_HOME[name]), name)
    globals()[name] = value
    return value


def _import_without_collecting(name: str) -> ModuleType:
    """Imports a module. Torch makes 280,000 objects that all stay: searching them for garbage, over and
    over while they come, takes a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return import_module(name)
    finally:
        if was_enabled:
            gc.enable()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
