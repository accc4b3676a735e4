"""The norm against its definition."""

import pytest
import torch

from step3.kernels.norm import rms_norm, rms_norm_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_reference(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(7, 96) * 5).to(dtype)
    weight = torch.randn(96).to(dtype)
    # bf16 results may differ by the last bit, where float32 sums in another order.
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 0}
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5), **tolerance)


def test_a_row_of_zeros_stays_zero() -> None:
    assert not rms_norm(torch.zeros(1, 8), torch.ones(8), 1e-5).any()


def test_leaves_its_input_alone() -> None:
    x = torch.full((2, 8), 3.0)
    rms_norm(x, torch.full((8,), 2.0), 1e-5)
    assert (x == 3).all()
