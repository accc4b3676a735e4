"""From a finished training to a checkpoint that any Step3 engine loads."""

import shutil
from pathlib import Path

import torch

from step3.errors import Step3Error
from step3.model.modeling_step3_vl import Step3VLForConditionalGeneration
from step3.nano.architecture import BUNDLED, configuration, load_processor

_TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def export(state: Path, folder: Path) -> Path:
    """Writes the model of `state` (a stage's `.pt`) to `folder`: bf16 weights, configuration, processor."""
    if not state.exists():
        raise Step3Error(f"{state} is missing: the training has not finished")
    processor = load_processor()
    model = Step3VLForConditionalGeneration(configuration(processor.tokenizer))
    model.load_state_dict(torch.load(state, weights_only=True)["model"])
    model.generation_config.update(
        bos_token_id=processor.tokenizer.bos_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    for name in _TEXT_FILES:
        if folder.resolve() != BUNDLED.resolve():
            shutil.copyfile(BUNDLED / name, folder / name)
    return folder
