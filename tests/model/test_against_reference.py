"""The network against a plain restatement of its published description, over drawn sizes."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from safetensors.torch import load_file
from small import pictures, prompt, text_model, tokens, vl_model
from torch import Tensor


def saved(model: Any, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is on disk of a network: its config and its tensors under their official names, in float64."""
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    return config, {name: tensor.double() for name, tensor in tensors.items()}


def drawn_sizes(seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    layers = draw.randint(1, 4)
    experts = draw.randint(1, 6)
    heads = draw.choice((1, 2, 3, 4, 6))
    return {
        "num_hidden_layers": layers,
        "moe_layers_enum": ",".join(str(n) for n in range(layers) if draw.random() < 0.6),
        "moe_num_experts": experts,
        "moe_top_k": draw.randint(1, experts),
        "norm_expert_weight": draw.random() < 0.5,
        "num_attention_heads": heads,
        "num_attention_groups": draw.choice([n for n in (1, 2, 3) if heads % n == 0]),
        "hidden_size": draw.choice((8, 20)),
        "head_dim": draw.choice((4, 6, 16)),
        "share_q_dim": draw.choice((5, 16)),
        "intermediate_size": draw.choice((7, 32)),
        "moe_intermediate_size": draw.choice((3, 16)),
        "share_expert_dim": draw.choice((5, 12)),
        "rope_theta": draw.choice((10000, 500000)),
        "rms_norm_eps": draw.choice((1e-5, 1e-3)),
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("seed", range(12))
def test_text_network_of_drawn_sizes(seed: int, attention: str, tmp_path: Path) -> None:
    model = text_model(seed, attention=attention, **drawn_sizes(seed))
    config, tensors = saved(model, tmp_path)
    ids = tokens(1, 21, seed=seed)

    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
        wide = model.double()(input_ids=ids).logits[0]

    expected = reference.logits(ids[0].tolist(), config, tensors)
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)
    # The rotation's angles are float32 in either.
    torch.testing.assert_close(wide, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(
    ("seed", "crops", "changes"),
    [
        (0, [0], {}),
        (1, [3], {"projector_bias": True}),
        (2, [2, 0, 1], {}),
        (3, [1, 1], {"understand_projector_stride": 1, "image_token_len": 16, "patch_token_len": 4}),
    ],
)
def test_network_with_pictures(seed: int, crops: list[int], changes: dict[str, Any], tmp_path: Path) -> None:
    model = vl_model(seed, **changes)
    config, tensors = saved(model, tmp_path)
    given = pictures(*crops, seed=seed)
    ids = prompt(3, crops, 6, seed=seed)
    if "image_token_len" in changes:
        per_picture = [changes["image_token_len"] + n * changes["patch_token_len"] for n in crops]
        ids = ids[:3] + [config["image_token_id"]] * sum(per_picture) + ids[-6:]

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), **given).logits[0]

    in_order = []
    own_crops = iter(given["patch_pixel_values"])
    for count, whole in zip(crops, given["pixel_values"], strict=True):
        in_order += [next(own_crops) for _ in range(count)] + [whole]
    expected = reference.logits(ids, config, tensors, [picture.double() for picture in in_order])
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)
