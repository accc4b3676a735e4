"""Every test of the CPU kernels runs on each level that this processor has."""

import pytest
import torch

from step3.kernels.cpu import LEVELS, Library, open_library
from step3.kernels.cpu.library import supported_levels
from step3.kernels.cpu.weights import InPlace, Packing, Placement


@pytest.fixture(params=list(LEVELS))
def library(request: pytest.FixtureRequest) -> Library:
    if request.param not in supported_levels():
        pytest.skip(f"this processor does not have {request.param}")
    found = open_library(request.param)
    if found is None:
        pytest.skip("the CPU kernels were not compiled here")
    torch.manual_seed(0)
    return found


@pytest.fixture(params=[Packing, InPlace], ids=["packed", "in-place"])
def placement(request: pytest.FixtureRequest, library: Library) -> Placement:
    return request.param(library)
