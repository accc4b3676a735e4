import pytest

from step3.plan.deployment import Deployment
from step3.plan.hardware import HardwareCatalogue
from step3.plan.models import find_model
from step3.plan.roofline import RooflineTimes
from step3.plan.simulate.prefill import roofline_prefill
from step3.plan.topology import parse_topology

H800 = HardwareCatalogue()["H800"]


def times(model: str = "Step-3") -> RooflineTimes:
    shape = find_model(model)
    return RooflineTimes(shape, Deployment(parse_topology("2A2F"), H800, 8, H800, 8), shape.precision)


def test_a_chunk_scores_what_is_before_it_and_half_of_itself() -> None:
    # MFA: 4 FLOPs for each of 64 heads and 256 channels; the cache's peak is fp8's.
    seconds = roofline_prefill(times())(10, 512, 4096.0)
    assert seconds == pytest.approx(512 * 4 * 64 * 256 * (4096 + 256) / 1980e12)


def test_chunks_of_a_prompt_take_as_long_as_all_of_it_at_once() -> None:
    core = roofline_prefill(times())
    parts = sum(core(10, 512, 512.0 * i) for i in range(8))
    assert parts == pytest.approx(core(10, 4096, 0.0))


def test_a_short_chunk_far_behind_reads_the_cache_once() -> None:
    # One token, 100,000 before it: 512 elements of a byte each are read.
    seconds = roofline_prefill(times())(10, 1, 100_000.0)
    assert seconds == pytest.approx(512 * 100_001 / 3350e9)


def test_a_window_bounds_what_is_scored() -> None:
    model = find_model("Llama 4 M")
    windowed = next(
        i for i, layer in enumerate(model.layers) if getattr(layer.attention, "window", None) is not None
    )
    core = roofline_prefill(times("Llama 4 M"))
    assert core(windowed, 512, 50_000.0) == pytest.approx(core(windowed, 512, 100_000.0))


def test_draft_layers_are_like_the_last() -> None:
    core, layers = roofline_prefill(times()), len(find_model("Step-3").layers)
    assert core(layers, 64, 1000.0) == core(layers - 1, 64, 1000.0)
