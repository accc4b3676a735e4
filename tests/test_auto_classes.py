"""`import step3` before or after Transformers, in processes of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import step3
from step3.auto_classes import register, register_networks
from step3.model.configuration_step3 import Step3TextConfig, Step3VisionConfig, Step3VLConfig
from step3.model.modeling_step3 import Step3TextForCausalLM

GOLDEN = Path(__file__).parent / "data" / "golden"


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_neither_torch_nor_transformers() -> None:
    assert run("import sys, step3; print({'torch', 'transformers', 'numpy'} & set(sys.modules))") == "set()\n"


ORDERS = [
    "import step3; from transformers import AutoModelForCausalLM",
    "from transformers import AutoModelForCausalLM; import step3",
    "import step3, transformers.generation",
]

# Torch is imported once, and the process forked for each order: most of the time goes there.
IN_EACH_ORDER = """
import os, sys, torch
assert "transformers" not in sys.modules
for order in {orders!r}:
    if os.fork():
        os.wait()
        continue
    exec(order)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModel, AutoModelForImageTextToText
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
    config = AutoConfig.from_pretrained({folder!r})
    models = [auto._model_mapping[type(config)] for auto in (AutoModelForCausalLM, AutoModel)]
    models.append(AutoModelForImageTextToText._model_mapping[type(config)])
    names = [kind.__name__ for kind in (*models, PROCESSOR_MAPPING[type(config)])]
    print(*names, type(config) in IMAGE_PROCESSOR_MAPPING, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_order_of_imports_does_not_matter() -> None:
    said = run(IN_EACH_ORDER.format(orders=ORDERS, folder=str(GOLDEN / "vl"))).splitlines()
    expected = (
        "Step3VLForConditionalGeneration Step3VLModel Step3VLForConditionalGeneration Step3Processor True"
    )
    assert said == [expected] * len(ORDERS)


@pytest.mark.parametrize("kind", [Step3VLConfig, Step3TextConfig, Step3VisionConfig])
def test_model_types_are_those_of_the_published_checkpoints(kind: type) -> None:
    assert type(AutoConfig.for_model(kind.model_type)) is kind


def test_registering_again_changes_nothing() -> None:
    model = AutoModelForCausalLM._model_mapping[Step3TextConfig]
    loader = AutoConfig.from_pretrained.__func__
    register()
    register_networks()
    assert AutoModelForCausalLM._model_mapping[Step3TextConfig] is model is Step3TextForCausalLM
    assert AutoConfig.from_pretrained.__func__ is loader


def test_other_generations_of_step3_stay_with_transformers() -> None:
    if not hasattr(transformers, "Step3p7Config"):
        pytest.skip("this Transformers has no Step-3.7")
    for model_type in ("step3p5", "step3p7"):
        config = AutoConfig.for_model(model_type)
        assert type(config).__module__.startswith("transformers.models.step3p7")
    mapping = transformers.AutoModelForImageTextToText._model_mapping
    assert mapping[transformers.Step3p7Config].__module__.startswith("transformers.models.step3p7")


def test_folder_with_only_a_tokenizer_loads_with_remote_code_trusted(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDEN / "text" / name, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)("<im_patch>")["input_ids"] == [7]


@pytest.mark.parametrize("config", [None, "{", "[]"], ids=["no folder", "torn", "a list"])
@pytest.mark.parametrize("auto_class", [AutoConfig, AutoTokenizer])
def test_what_is_wrong_with_a_config_is_said_in_transformers_own_words(
    auto_class: Any, config: str | None, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    if config is not None:
        folder.mkdir()
        (folder / "config.json").write_text(config)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(GOLDEN / "text" / name, folder)

    def outcome(trust: bool) -> object:
        try:
            return type(auto_class.from_pretrained(folder, trust_remote_code=trust))
        except Exception as error:
            return type(error), str(error)

    assert outcome(trust=True) == outcome(trust=False)


def test_documentation_of_the_auto_classes_stays() -> None:
    assert "pretrained_model_name_or_path" in (AutoConfig.from_pretrained.__doc__ or "")
    assert step3.__version__
