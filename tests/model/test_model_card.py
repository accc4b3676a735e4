"""The model card's snippet as printed, and checkpoints that bring Python files of their own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from golden import GOLDEN, cases, picture
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    pipeline,
)
from transformers.image_utils import load_image

# `from transformers` gives a stand-in where there is no torchvision.
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from step3.model.configuration_step3 import Step3VLConfig
from step3.model.image_processing_step3 import Step3ImageProcessor
from step3.model.modeling_step3_vl import Step3VLForConditionalGeneration, Step3VLModel
from step3.model.processing_step3 import Step3Processor

# The card's, but for the path of the checkpoint, the picture and the length of the answer.
SNIPPET = """
import step3
from transformers import AutoProcessor, AutoModelForCausalLM

key_mapping = {
    "^vision_model": "model.vision_model",
    r"^model(?!\\.(language_model|vision_model))": "model.language_model",
    "vit_downsampler": "model.vit_downsampler",
    "vit_downsampler2": "model.vit_downsampler2",
    "vit_large_projector": "model.vit_large_projector",
}

processor = AutoProcessor.from_pretrained(model_path, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(model_path,
         device_map="auto", torch_dtype="auto", trust_remote_code=True,
         key_mapping=key_mapping)

messages = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": image},
            {"type": "text", "text": "What is in this picture?"}
        ]
    },
]

inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True,
    return_dict=True, return_tensors="pt"
).to(model.device)

generate_ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
decoded = processor.decode(generate_ids[0, inputs["input_ids"].shape[-1]:], skip_special_tokens=True)
"""

HOSTILE = "from pathlib import Path\nPath({marker!r}).touch()\n"
CLASSES = """
class {name}:
    _auto_class = None
    @classmethod
    def register_for_auto_class(cls, *args): pass
    @classmethod
    def from_pretrained(cls, *args, **kwargs): return cls()
    @classmethod
    def from_dict(cls, *args, **kwargs): return cls()
"""
EVERY_AUTO_CLASS = (
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoProcessor",
    "AutoImageProcessor",
    "AutoFeatureExtractor",
    "AutoVideoProcessor",
)


@pytest.fixture(params=["Step3VLForConditionalGeneration", "Backdoor"])
def hostile(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint every file of which asks for Python files beside it, which leave a marker when imported.

    Named either as the published ones are, or so that the name says nothing.
    """
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "hostile"
    shutil.copytree(GOLDEN / "vl", folder)
    code = HOSTILE.format(marker=str(tmp_path / "imported")) + CLASSES.format(name=request.param)
    (folder / "remote.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code + "def generate(*args, **kwargs): pass\n")
    reference = f"remote.{request.param}"
    auto_map: dict[str, Any] = dict.fromkeys(EVERY_AUTO_CLASS, reference)
    auto_map["AutoTokenizer"] = [reference, reference]
    asking = {"auto_map": auto_map}
    add(
        folder / "config.json",
        {**asking, "custom_pipelines": {"see": {"impl": reference, "pt": ["AutoModel"]}}},
    )
    add(folder / "tokenizer_config.json", asking)
    add(folder / "processor_config.json", {**asking, "processor_class": request.param})
    add(folder / "preprocessor_config.json", {**asking, "image_processor_type": request.param})
    add(folder / "video_preprocessor_config.json", {**asking, "video_processor_type": request.param})
    return folder


def add(file: Path, fields: dict[str, Any]) -> None:
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**before, **fields}))


def imported(folder: Path) -> bool:
    return (folder.parent / "imported").exists()


def run(snippet: str, folder: Path, image: Path) -> dict[str, Any]:
    names: dict[str, Any] = {"model_path": str(folder), "image": str(image), "max_new_tokens": 6}
    exec(snippet, names)
    return names


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The picture of the first golden case."""
    file = tmp_path / "picture.png"
    picture(300, 200, 0).save(file)
    return file


@pytest.mark.parametrize("mapping", ["with key_mapping", "without"])
def test_snippet_of_the_model_card_runs_as_printed(mapping: str, hostile: Path, image: Path) -> None:
    snippet = SNIPPET
    if mapping == "without":
        snippet = snippet.replace(",\n         key_mapping=key_mapping", "")
        assert "key_mapping=" not in snippet

    names = run(snippet, hostile, image)

    assert not imported(hostile)
    assert type(names["model"]) is Step3VLForConditionalGeneration
    assert type(names["processor"]) is Step3Processor
    assert names["model"].dtype == torch.bfloat16
    case = cases("vl")[0]
    assert names["inputs"]["input_ids"].shape[1] == case["num_prompt_tokens"]
    assert names["generate_ids"][0, case["num_prompt_tokens"]].item() == case["token_ids"][0]
    assert isinstance(names["decoded"], str)


@pytest.mark.parametrize("trust", [True, False, None])
class TestPythonFilesOfACheckpoint:
    def test_are_never_imported(self, trust: bool | None, hostile: Path) -> None:
        options = {} if trust is None else {"trust_remote_code": trust}
        loaded = [
            (AutoConfig, Step3VLConfig),
            (AutoModel, Step3VLModel),
            (AutoModelForCausalLM, Step3VLForConditionalGeneration),
            (AutoModelForImageTextToText, Step3VLForConditionalGeneration),
        ]
        if trust:
            # Untrusted, Transformers asks the user about classes that it does not know by name.
            loaded += [(AutoProcessor, Step3Processor), (AutoImageProcessor, Step3ImageProcessor)]
        for auto_class, kind in loaded:
            assert type(auto_class.from_pretrained(hostile, **options)) is kind
            assert not imported(hostile), auto_class
        tokenizer = AutoTokenizer.from_pretrained(hostile, **options)
        assert tokenizer("<im_patch>")["input_ids"] == [7]
        config = AutoConfig.from_pretrained(hostile, **options)
        assert type(AutoModelForCausalLM.from_config(config, **options)) is Step3VLForConditionalGeneration
        assert not imported(hostile)

    def test_are_not_imported_by_classes_that_step3_has_nothing_for(
        self, trust: bool | None, hostile: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("builtins.input", lambda *asked: "n")
        options = {} if trust is None else {"trust_remote_code": trust}
        for auto_class in (AutoFeatureExtractor, AutoVideoProcessor):
            # TypeError: 4.54 without torchvision trips over its own table of video processors.
            with pytest.raises((ValueError, OSError, TypeError)):
                auto_class.from_pretrained(hostile, **options)
        assert not imported(hostile)


def test_saving_writes_no_reference_to_code(hostile: Path, tmp_path: Path) -> None:
    for kind in (AutoModelForCausalLM, AutoProcessor, AutoConfig):
        kind.from_pretrained(hostile, trust_remote_code=True).save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").rglob("*.py"))
    for file in (tmp_path / "saved").glob("*.json"):
        assert "auto_map" not in file.read_text(), file.name
    assert not imported(hostile)


def test_pipeline_imports_nothing_either(hostile: Path, image: Path) -> None:
    see = pipeline(
        "image-text-to-text",
        model=AutoModelForImageTextToText.from_pretrained(hostile, trust_remote_code=True),
        processor=AutoProcessor.from_pretrained(hostile, trust_remote_code=True),
    )
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": load_image(str(image))},
                {"type": "text", "text": "What?"},
            ],
        }
    ]
    answer = see(text=messages, max_new_tokens=3, return_full_text=False)
    assert isinstance(answer[0]["generated_text"], str)
    assert not imported(hostile)


def test_trusted_code_of_other_checkpoints_is_still_imported(hostile: Path) -> None:
    """Which also shows that the files here would leave their marker."""
    add(hostile / "config.json", {"model_type": "somebody_elses"})
    loaded = AutoConfig.from_pretrained(hostile, trust_remote_code=True)
    assert imported(hostile)
    assert type(loaded).__module__.startswith("transformers_modules")


def test_version_is_one_that_the_package_supports() -> None:
    assert (4, 54) <= tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (6, 0)
