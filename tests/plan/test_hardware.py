from pathlib import Path

import pytest

from step3.plan.errors import HardwareError
from step3.plan.hardware import ASSUMED, HardwareCatalogue, parse_prices

MINE = """
Mine:
  usd_per_hour: 1.5
  tflops: {bf16: 100}
  memory_gb_s: 1000
  memory_gib: 24
  network_gbit_s: 25
  node_gb_s: 32
  cards_per_node: 4
  efficiency: {attention: 0.9, linear: {compute: 0.8, memory: 0.6}, network: 0.95}
"""


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_the_catalogue_has_the_papers_cards_and_more() -> None:
    names = set(HardwareCatalogue().names)
    assert {"H800", "H20", "A800", "910B", "L20", "L4"} <= names
    assert {"H100", "H200", "B200", "MI300X", "L40S", "RTX 4090", "CPU-2c"} <= names


def test_the_papers_prices_are_its_own_and_others_are_marked_assumed() -> None:
    catalogue = HardwareCatalogue()
    assert "table 4" in catalogue["H800"].price_source
    assert catalogue["H100"].price_source == ASSUMED


def test_work_that_a_card_lacks_a_type_for_runs_in_bf16() -> None:
    a800, h800 = HardwareCatalogue()["A800"], HardwareCatalogue()["H800"]
    assert (a800.peak("fp8"), a800.paper_peak) == (312e12, 312e12)
    assert (h800.peak("fp8"), h800.peak("bf16"), h800.paper_peak) == (1980e12, 989e12, 1980e12)


def test_a_file_adds_cards_with_their_efficiencies(tmp_path: Path) -> None:
    card = HardwareCatalogue([file(tmp_path, MINE)])["mine"]
    assert card.network_bandwidth == 25e9 / 8
    assert card.memory_bytes == 24 * 2**30
    assert (card.efficiencies.attention.compute, card.efficiencies.attention.memory) == (0.9, 0.9)
    assert (card.efficiencies.linear.compute, card.efficiencies.linear.memory) == (0.8, 0.6)
    assert (card.efficiencies.ffn.compute, card.efficiencies.network) == (1.0, 0.95)


def test_a_file_replaces_a_packaged_card(tmp_path: Path) -> None:
    assert HardwareCatalogue([file(tmp_path, MINE.replace("Mine", "H800"))])["H800"].usd_per_hour == 1.5


def test_a_price_can_be_given_for_any_card(tmp_path: Path) -> None:
    card = HardwareCatalogue([file(tmp_path, MINE)], {"MINE": 0.0})["Mine"]
    assert (card.usd_per_hour, card.price_source) == (0.0, "given")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("  usd_per_hour: 1.5\n", "", "usd_per_hour is missing"),
        ("usd_per_hour: 1.5", "usd_per_hour: -1", "usd_per_hour must be a number of at least 0"),
        ("usd_per_hour: 1.5", "usd_per_hour: .nan", "usd_per_hour must be a number"),
        ("bf16: 100", "bf16: 0", "bf16 must be above 0"),
        ("bf16: 100", "fp8: 100", "bf16 is missing"),
        ("bf16: 100", "bf16: 100, fp3: 1", "fp3 is none of bf16"),
        ("memory_gb_s: 1000", "memory_gb_s: fast", "memory_gb_s must be a number"),
        ("cards_per_node: 4", "cards_per_node: 0", "cards_per_node must be a whole number"),
        ("node_gb_s", "nodes_gb_s", "nodes_gb_s is unknown"),
        ("attention: 0.9", "attention: 1.1", "at most 1, not 1.1"),
        ("attention: 0.9", "attention: 0", "above 0"),
        ("attention: 0.9", "attn: 0.9", "'attn' is no kernel family"),
        ("network: 0.95", "network: {compute: 1}", "network is one number"),
        ("memory: 0.6", "disk: 0.6", "disk is neither compute nor memory"),
        ("Mine:\n", "Mine: [\n", "not YAML"),
        ("Mine:\n  usd_per_hour: 1.5", "Mine: &a\n  usd_per_hour: 1.5\nX: *a\nY:", "anchors"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in MINE
    with pytest.raises(HardwareError, match=says):
        HardwareCatalogue([file(tmp_path, MINE.replace(old, new))])


def test_missing_and_oversized_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="cannot be read"):
        HardwareCatalogue([tmp_path / "none.yaml"])
    with pytest.raises(HardwareError, match="larger than 1 MiB"):
        HardwareCatalogue([file(tmp_path, "#" * (1 << 20) + "#")])
    with pytest.raises(HardwareError, match="expected a mapping"):
        HardwareCatalogue([file(tmp_path, "- H800")])


def test_choosing_takes_each_card_once_and_names_the_unknown() -> None:
    catalogue = HardwareCatalogue()
    assert [card.name for card in catalogue.choose("h20, H800,H20")] == ["H20", "H800"]
    with pytest.raises(HardwareError, match="'TPU' is unknown: choose from H800"):
        catalogue.choose("H20,TPU")
    with pytest.raises(HardwareError, match="at least one card"):
        catalogue.choose(" , ")


def test_prices_are_read_and_checked() -> None:
    assert parse_prices(["H800=1.6", "RTX 4090=0.3"]) == {"H800": 1.6, "RTX 4090": 0.3}
    for text in ("H800", "=2", "H800=-1", "H800=cheap", "H800=inf", "H800=nan"):
        with pytest.raises(HardwareError, match="is not a price"):
            parse_prices([text])
    with pytest.raises(HardwareError, match="'TPU' is unknown"):
        HardwareCatalogue(prices={"TPU": 1.0})
