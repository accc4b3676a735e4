"""Networks of a few thousand weights, drawn so that every part of them matters to the answer."""

from typing import Any

import torch
from torch import Tensor, nn

import step3  # noqa: F401 (registers the Auto classes)
from step3.model.configuration_step3 import Step3TextConfig, Step3VisionConfig, Step3VLConfig
from step3.model.linear import ExpertLinear
from step3.model.modeling_step3 import Step3TextForCausalLM
from step3.model.modeling_step3_vl import Step3VLForConditionalGeneration

VOCABULARY = 40
PAD = 0
IMAGE = 5
PICTURE_SIDE, CROP_SIDE = 32, 16
PICTURE_FEATURES, CROP_FEATURES = 4, 1


def text_config(**changes: Any) -> Step3TextConfig:
    """Two layers with experts between two dense ones, two query heads."""
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "vocab_size": VOCABULARY,
        "moe_intermediate_size": 8,
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "moe_layers_enum": "1,2",
        "share_expert_dim": 8,
        "share_q_dim": 12,
        "head_dim": 8,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": PAD,
    }
    return Step3TextConfig(**{**sizes, **changes})


def vl_config(text: dict[str, Any] | None = None, **changes: Any) -> Step3VLConfig:
    """Pictures of 32 px give four features, crops of 16 px one."""
    vision = Step3VisionConfig(
        hidden_size=12,
        intermediate_size=20,
        output_hidden_size=6,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=PICTURE_SIDE,
        patch_size=4,
    )
    fields: dict[str, Any] = {
        "vision_config": vision,
        "text_config": text_config(**(text or {})),
        "image_token_id": IMAGE,
        "image_token_len": PICTURE_FEATURES,
        "patch_token_len": CROP_FEATURES,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": PAD,
    }
    return Step3VLConfig(**{**fields, **changes})


def draw(model: nn.Module, seed: int = 0) -> Any:
    """Fills a network so that its activations keep their size and no norm or bias is trivial."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "weight" and parameter.ndim == 1:
                values = 1 + 0.2 * noise
            elif isinstance(module, nn.Embedding) or parameter.ndim < 2 or name == "class_embedding":
                values = noise
            else:
                fan_in = parameter[0].numel() if not isinstance(module, ExpertLinear) else parameter.shape[-1]
                values = noise * 1.5 * fan_in**-0.5
            parameter.data.copy_(values)
    return model.eval()


def text_model(seed: int = 0, attention: str = "sdpa", **changes: Any) -> Step3TextForCausalLM:
    config = text_config(**changes)
    return draw(Step3TextForCausalLM._from_config(config, attn_implementation=attention), seed)


def vl_model(seed: int = 0, attention: str = "sdpa", **changes: Any) -> Step3VLForConditionalGeneration:
    config = vl_config(**changes)
    return draw(Step3VLForConditionalGeneration._from_config(config, attn_implementation=attention), seed)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Drawn tokens without a meaning of their own, int64."""
    return torch.randint(IMAGE + 1, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def prompt(*parts: int | list[int], seed: int = 0) -> list[int]:
    """Tokens of a prompt: a number is that many words, a list holds the crops of each picture there."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids += tokens(part, seed=seed + len(ids)).tolist()
        else:
            for crops in part:
                ids += [IMAGE] * (crops * CROP_FEATURES + PICTURE_FEATURES)
    return ids


def pictures(*crops: int, seed: int = 0) -> dict[str, Tensor]:
    """What the processor gives for pictures with so many crops each."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randn(len(crops), 3, PICTURE_SIDE, PICTURE_SIDE, generator=generator),
        "patch_pixel_values": torch.randn(sum(crops), 3, CROP_SIDE, CROP_SIDE, generator=generator),
        "num_patches": torch.tensor(crops),
        "patch_newline_mask": torch.zeros(sum(crops), dtype=torch.bool),
    }


def padded(rows: list[list[int]], side: str = "left") -> dict[str, Tensor]:
    """Prompts of different lengths as one batch with its mask."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), PAD)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), None) if side == "left" else slice(len(row))
        ids[number, place] = torch.tensor(row)
        mask[number, place] = 1
    return {"input_ids": ids, "attention_mask": mask}
