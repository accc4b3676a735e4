import pytest

from step3.plan.errors import PlanError
from step3.plan.precision import BYTES, Precision, wire_bytes


def test_fp8_on_the_wire_carries_a_scale_for_128_channels() -> None:
    assert wire_bytes("fp8") * 128 == 128 + 4
    assert wire_bytes("bf16") == BYTES["bf16"] == 2


def test_mxfp4_counts_its_scales() -> None:
    assert BYTES["fp4"] * 32 == 16 + 1


def test_an_unknown_type_is_named_with_its_part() -> None:
    with pytest.raises(PlanError, match="kv cannot be 'fp6': choose from fp32"):
        Precision(kv="fp6")
