import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from step3.errors import Step3Error
from step3.kernels.rotary import cos_sin, inverse_frequencies, rotate

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16384}


def of_transformers(scaling: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """What Transformers computes for head_dim 64, theta 500000 and a context `factor` times the original."""
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        head_dim=64,
        rope_theta=500000.0,
        max_position_embeddings=65536,
        rope_scaling=dict(scaling),
    )
    return ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2.5},
        LLAMA3,
        YARN,
        {**YARN, "beta_fast": 16, "beta_slow": 2},
        {**YARN, "attention_factor": 1.7},
        {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
    ],
)
def test_scaled_frequencies_are_those_of_transformers(scaling: dict[str, Any]) -> None:
    frequencies, factor = inverse_frequencies(64, 500000, scaling)
    expected, expected_factor = of_transformers(scaling)
    torch.testing.assert_close(frequencies, expected, rtol=1e-5, atol=0)
    assert factor == pytest.approx(expected_factor)


@pytest.mark.parametrize("scaling", [None, {"rope_type": "default"}, {"type": "default"}, {}])
def test_unscaled_frequencies_fall_geometrically_from_one(scaling: dict[str, Any] | None) -> None:
    frequencies, factor = inverse_frequencies(8, 10000, scaling)
    torch.testing.assert_close(frequencies, torch.tensor([1, 0.1, 0.01, 0.001]))
    assert factor == 1.0


def test_old_name_of_the_type() -> None:
    new, _ = inverse_frequencies(64, 500000, {"rope_type": "linear", "factor": 2.0})
    old, _ = inverse_frequencies(64, 500000, {"type": "linear", "factor": 2.0})
    assert torch.equal(new, old)


def test_yarn_whose_bounds_are_not_rounded() -> None:
    """By the paper's formula (arXiv 2309.00071, eq. 17-20) with the ramp over exact channel numbers."""
    frequencies, _ = inverse_frequencies(64, 500000, {**YARN, "truncate": False})
    plain, _ = inverse_frequencies(64, 500000)
    bounds = [64 * math.log(16384 / (turns * 2 * math.pi)) / (2 * math.log(500000)) for turns in (32, 1)]
    for channel in range(32):
        share = min(max((channel - bounds[0]) / (bounds[1] - bounds[0]), 0), 1)
        expected = plain[channel] * ((1 - share) + share / 4)
        assert frequencies[channel].item() == pytest.approx(expected.item(), rel=1e-5)


def test_unknown_type_is_named() -> None:
    with pytest.raises(Step3Error, match="'spiral' is not known: expected default, linear, llama3 or yarn"):
        inverse_frequencies(8, 10000, {"rope_type": "spiral"})


@pytest.mark.parametrize(
    ("scaling", "field"),
    [
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": "2"}, "factor"),
        ({"rope_type": "linear", "factor": 0}, "factor"),
        ({"rope_type": "linear", "factor": math.inf}, "factor"),
        ({**LLAMA3, "high_freq_factor": None}, "high_freq_factor"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "low_freq_factor < high_freq_factor"),
        ({"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings"),
        ({**YARN, "attention_factor": -1}, "attention_factor"),
    ],
)
def test_field_that_is_missing_or_senseless_is_named(scaling: dict[str, Any], field: str) -> None:
    with pytest.raises(Step3Error, match=f"rope_scaling needs {field}"):
        inverse_frequencies(64, 500000, scaling)


def test_rotation_turns_each_pair_of_halves_by_its_angle() -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([0, 5, 11])
    frequencies, _ = inverse_frequencies(8, 10000)
    out = rotate(x, *cos_sin(positions, frequencies))
    for row, position in enumerate(positions.tolist()):
        for pair in range(4):
            turned = complex(x[row, pair], x[row, pair + 4]) * complex(
                math.cos(position * frequencies[pair]), math.sin(position * frequencies[pair])
            )
            assert out[row, pair].item() == pytest.approx(turned.real, abs=1e-5)
            assert out[row, pair + 4].item() == pytest.approx(turned.imag, abs=1e-5)


def test_rotated_products_depend_on_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 16, generator=generator)
    frequencies, _ = inverse_frequencies(16, 10000)

    def product(at: int, of: int) -> float:
        angles = cos_sin(torch.tensor([at, of]), frequencies)
        one, other = rotate(torch.stack((query, key)), *angles)
        return (one @ other).item()

    assert product(3, 1) == pytest.approx(product(1002, 1000), abs=1e-3)
    assert abs(product(3, 1) - product(3, 2)) > 1e-2


def test_attention_factor_scales_cosine_and_sine() -> None:
    frequencies, _ = inverse_frequencies(8, 10000)
    plain = cos_sin(torch.arange(4), frequencies)
    scaled = cos_sin(torch.arange(4), frequencies, 1.5)
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(other, 1.5 * one)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rotation_keeps_the_dtype_and_rounds_once(dtype: torch.dtype) -> None:
    x = torch.randn(4, 8).to(dtype)
    angles = cos_sin(torch.arange(4), inverse_frequencies(8, 10000)[0])
    out = rotate(x, *angles)
    assert out.dtype == dtype
    torch.testing.assert_close(out, rotate(x.double(), *angles).to(dtype))
