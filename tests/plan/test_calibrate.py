from pathlib import Path

import pytest
import yaml

from step3.plan.calibrate import Calibration, Sizes
from step3.plan.errors import HardwareError
from step3.plan.hardware import HardwareCatalogue


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    calibration = Calibration("cpu", seconds=0.005)
    calibration.sizes = Sizes(square=128, stream=8 << 20, hidden=256, heads=4, many=64)
    for _, measure in calibration.steps():
        measure()
    return calibration


def test_the_measured_entry_is_one_that_the_planner_reads(calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"mine": calibration.entry(0.25, 10.0)}))
    card = HardwareCatalogue([path])["mine"]
    assert (card.usd_per_hour, card.network_bandwidth, card.price_source) == (0.25, 1.25e9, "given")
    assert card.bf16_flops > 1e8
    assert card.memory_bandwidth > 1e8
    for family in (card.efficiencies.attention, card.efficiencies.linear, card.efficiencies.ffn):
        assert 0 < family.compute <= 1
        assert 0 < family.memory <= 1


def test_what_was_not_given_is_marked_assumed(calibration: Calibration) -> None:
    assert calibration.entry(None, None)["price_source"] == "assumed"


def test_an_absent_device_is_refused() -> None:
    with pytest.raises(HardwareError, match="'tpu' cannot be measured"):
        Calibration("tpu")
