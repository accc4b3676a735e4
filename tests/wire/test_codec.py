"""fp8 with a scale for each token and 128 channels."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from step3.wire import codec
from step3.wire.native import open_library, why_not


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def _how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(codec, "open_library", lambda: None)
    elif open_library() is None:
        pytest.skip(why_not())


def through_fp8(x: torch.Tensor, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, hidden = x.shape
    values = torch.empty(tokens, hidden, dtype=torch.float8_e4m3fn)
    scales = torch.empty(tokens, -(-hidden // 128))
    codec.encode_fp8(x, values, scales)
    out = torch.empty(tokens, hidden, dtype=dtype)
    codec.decode_fp8(values, scales, out)
    return out, scales


def reference(x: torch.Tensor) -> torch.Tensor:
    """The definition, one block at a time, in float32."""
    out = torch.empty_like(x)
    for token in range(x.shape[0]):
        for first in range(0, x.shape[1], 128):
            block = x[token, first : first + 128]
            scale = torch.clamp(block.abs().max() / 448, min=torch.finfo(torch.float32).tiny)
            out[token, first : first + 128] = (block / scale).to(torch.float8_e4m3fn).float() * scale
    return out


@pytest.mark.parametrize("hidden", [128, 384, 7168, 1, 127, 129, 200])
@pytest.mark.parametrize("tokens", [1, 5])
def test_equals_the_definition(tokens: int, hidden: int) -> None:
    x = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(hidden)) * 3
    assert torch.equal(through_fp8(x)[0], reference(x))


@pytest.mark.parametrize("magnitude", [1e-30, 1e-3, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("hidden", [256, 200])
def test_the_error_is_at_most_a_sixteenth_or_half_the_least_step_of_a_block(
    magnitude: float, hidden: int
) -> None:
    x = torch.randn(64, hidden, generator=torch.Generator().manual_seed(0)) * magnitude
    out, scales = through_fp8(x)
    step = scales.repeat_interleave(128, 1)[:, :hidden] * 2.0**-9
    bound = torch.maximum(x.abs() / 16, step / 2) * (1 + 1e-6)
    assert ((out - x).abs() <= bound).all()


def test_a_block_does_not_disturb_another() -> None:
    x = torch.ones(2, 256)
    x[0, 128] = 1e20
    out, _ = through_fp8(x)
    assert torch.equal(out[0, :128], x[0, :128])
    assert torch.equal(out[1], x[1])


def test_zeros_stay_zeros() -> None:
    assert torch.equal(through_fp8(torch.zeros(2, 200))[0], torch.zeros(2, 200))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 130])
def test_what_is_not_finite_makes_its_whole_block_nan(bad: float, at: int) -> None:
    x = torch.ones(2, 200)
    x[1, at] = bad
    out, _ = through_fp8(x)
    block = slice(0, 128) if at < 128 else slice(128, 200)
    assert out[1, block].isnan().all()
    assert out.isnan().sum() == block.stop - block.start


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_ways_to_encode_give_the_same_bytes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = (torch.randn(64, 1000, generator=torch.Generator().manual_seed(3)) * 10).to(dtype)
    x[:32] *= torch.logspace(-38, 30, 32, dtype=torch.float64).unsqueeze(1).float()

    def encoded() -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.empty(x.shape, dtype=torch.float8_e4m3fn)
        scales = torch.empty(64, 8)
        codec.encode_fp8(x, values, scales)
        return values.view(torch.uint8), scales

    here = encoded()
    monkeypatch.setattr(codec, "open_library", lambda: None)
    for one, other in zip(here, encoded(), strict=True):
        assert torch.equal(one, other)


def test_every_fp8_value_is_read_exactly() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(2, 128)
    out = torch.empty(2, 128)
    codec.decode_fp8(values, torch.ones(2, 1), out)
    finite = ~values.float().isnan()
    assert torch.equal(out[finite], values.float()[finite])


def test_bfloat16_is_rounded_once() -> None:
    x = torch.randn(8, 256, generator=torch.Generator().manual_seed(1))
    assert torch.equal(through_fp8(x, torch.bfloat16)[0], reference(x).bfloat16())


def test_bfloat16_activations_are_read_as_they_are() -> None:
    x = torch.randn(8, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(through_fp8(x)[0], reference(x.float()))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=300))
def test_finite_values_stay_finite_with_their_sign(numbers: list[float]) -> None:
    x = torch.tensor([numbers])
    out, _ = through_fp8(x)
    assert out.isfinite().all()
    assert (out * x.sign() >= 0).all()
