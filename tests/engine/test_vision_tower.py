"""The vision tower on the CPU kernels beside torch's."""

import pytest
import torch
from engine_requests import GOLDEN

from step3.checkpoint import Checkpoint
from step3.engine.network import VisionNetwork, read_network
from step3.engine.vision import VisionTower
from step3.kernels.cpu import Library, open_library
from step3.kernels.cpu.weights import InPlace, Packing, Placement


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint.open(GOLDEN / "vl")


@pytest.fixture
def network(checkpoint: Checkpoint) -> VisionNetwork:
    found = read_network(GOLDEN / "vl", checkpoint.config).vision
    assert found is not None
    return found


@pytest.fixture
def library() -> Library:
    found = open_library()
    if found is None:
        pytest.skip("the CPU kernels are not there")
    return found


@pytest.mark.parametrize("place", [Packing, InPlace], ids=["packed", "in-place"])
@pytest.mark.parametrize("side", [728, 504])
def test_features_are_torchs(
    checkpoint: Checkpoint, network: VisionNetwork, library: Library, place: type[Placement], side: int
) -> None:
    packed = VisionTower.load(checkpoint, network, torch.bfloat16, placement=place(library))
    exact = VisionTower.load(checkpoint, network, torch.float32)
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, side, side)
    expected, got = exact.encode(pixels), packed.encode(pixels)
    assert got.dtype == torch.bfloat16
    error = (got.float() - expected).square().mean().sqrt()
    rounded = VisionTower.load(checkpoint, network, torch.bfloat16).encode(pixels)
    # Not further from float32 than torch in bfloat16 is, but for chance.
    assert error < 1.2 * (rounded.float() - expected).square().mean().sqrt() + 1e-4


def test_a_crop_does_not_depend_on_those_beside_it(
    checkpoint: Checkpoint, network: VisionNetwork, library: Library
) -> None:
    tower = VisionTower.load(checkpoint, network, torch.bfloat16, placement=Packing(library))
    torch.manual_seed(0)
    crops = torch.randn(3, 3, 504, 504)
    together = tower.encode(crops)
    for crop in range(3):
        assert torch.equal(tower.encode(crops[crop : crop + 1])[0], together[crop])


def test_memory_is_that_of_the_weights(
    checkpoint: Checkpoint, network: VisionNetwork, library: Library
) -> None:
    plain = VisionTower.load(checkpoint, network, torch.bfloat16)
    packed = VisionTower.load(checkpoint, network, torch.bfloat16, placement=Packing(library))
    assert packed.nbytes == pytest.approx(plain.nbytes, rel=0.05)
