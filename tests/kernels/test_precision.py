import pytest
import torch

from step3.kernels.precision import widen


@pytest.mark.parametrize(
    ("given", "wide"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_widens_to_float32_and_keeps_float64(given: torch.dtype, wide: torch.dtype) -> None:
    assert widen(torch.ones(2, dtype=given)).dtype == wide
