import json
from pathlib import Path
from typing import Any

import pytest

from step3.plan.simulate.cores import Host
from step3.plan.simulate.errors import SimulationError
from step3.plan.simulate.measured import Line, MeasuredTimes, read_measured
from step3.plan.workload import Contexts

KIND: dict[str, Any] = {
    "layers": 3,
    "attention": {"sequences": [1, 101], "contexts": [1000, 3000], "us": [[10, 30], [110, 330]]},
    "out": {"sequences": [1, 101], "us": [5, 105]},
    "ffn": {"sequences": [1, 101, 201], "us": [80, 80, 180]},
    "back": {"sequences": [1], "us": [7]},
}
FILE = {"kinds": [KIND], "head": {"sequences": [1, 11], "us": [40, 60]}, "prefill_us": 0.002}


def read(tmp_path: Path, values: Any) -> MeasuredTimes:
    path = tmp_path / "times.yaml"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return read_measured(path)


def test_times_are_read_and_linear_between_the_points(tmp_path: Path) -> None:
    times = read(tmp_path, FILE)
    assert list(times.layer_kinds) == [0, 0, 0]
    assert times.attention(0, 1, Contexts.fixed(2000)) == pytest.approx(20e-6)
    assert times.attention(2, 51, Contexts.fixed(3000)) == pytest.approx(180e-6)
    assert times.out(1, 51, 999) == pytest.approx(55e-6)
    assert times.ffn(0, 151) == pytest.approx(130e-6)
    assert times.back(0, 77, 999) == pytest.approx(7e-6)
    assert times.head(6) == pytest.approx(50e-6)
    assert times.prefill_core(0, 10, 95.0) == pytest.approx(0.002e-6 * 10 * 100)


def test_beyond_the_last_point_times_go_on_and_before_the_first_they_stay() -> None:
    line = Line((10.0, 20.0), (1.0, 3.0))
    assert (line.at(40), line.at(0)) == (7.0, 1.0)
    falling = Line((10.0, 20.0), (3.0, 1.0))
    assert falling.at(100) == 0.0


def test_kinds_of_layers_follow_each_other(tmp_path: Path) -> None:
    other = {**KIND, "layers": 2, "ffn": {"sequences": [1], "us": [500]}}
    times = read(tmp_path, {**FILE, "kinds": [KIND, other]})
    assert list(times.layer_kinds) == [0, 0, 0, 3, 3]
    assert times.ffn(4, 10) == pytest.approx(500e-6)
    assert times.ffn(2, 10) == pytest.approx(80e-6)


HOST = {"cores": 2, "ffn_contention": 0.25, "wake_us": 60, "front_us": 100}


def test_a_host_is_read_with_what_it_leaves_out(tmp_path: Path) -> None:
    assert read(tmp_path, FILE).host is None
    host = read(tmp_path, {**FILE, "host": HOST}).host
    assert host is not None
    assert (host.cores, host.is_bound, host.attention_contention, host.ffn_contention) == (2, True, 0, 0.25)
    assert (host.wake, host.front) == pytest.approx((60e-6, 100e-6))
    wandering = read(tmp_path, {**FILE, "host": {"cores": 4, "bound": False}}).host
    assert wandering == Host(4, is_bound=False)


def change(name: str, value: Any) -> dict[str, Any]:
    return {**FILE, "kinds": [{**KIND, name: value}]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**FILE, "speed": 1}, "speed is unknown; the names are kinds, head, prefill_us, host"),
        ({"kinds": []}, "kinds has 0 entries"),
        ({"kinds": [KIND]}, "head is missing"),
        ({**FILE, "prefill_us": -1}, "prefill_us must be a number of at least 0"),
        (change("layers", 0), "kind 1: layers must be a whole number"),
        (change("layers", 20_000), "layers must be at most 10,000"),
        (change("out", None), "kind 1: out is missing"),
        (change("out", {"sequences": [1, 2], "us": [1]}), "kind 1, out: us has 1 numbers for 2"),
        (change("out", {"sequences": [2, 1], "us": [1, 2]}), "kind 1, out: sequences must be rising"),
        (change("ffn", {"sequences": [1], "us": ["fast"]}), "kind 1, ffn: us must be a number"),
        (change("attention", {"sequences": [1], "contexts": [1], "us": []}), "us has 0 rows for 1"),
        (
            change("attention", {"sequences": [1], "contexts": [1, 2], "us": [[1]]}),
            "a number for each of the 2 contexts",
        ),
        ({**FILE, "host": {}}, "host: cores is missing"),
        (
            {**FILE, "host": {"cores": 2, "threads": 1}},
            "host: threads is unknown; the names are cores, bound",
        ),
        ({**FILE, "host": {"cores": 2, "wake_us": -1}}, "host: wake_us must be a number"),
        ({**FILE, "host": {"cores": 2, "bound": "yes"}}, "host: bound must be true or false"),
        ("kinds: [", "is not YAML at line"),
        ("[1]", "expected a mapping"),
    ],
)
def test_a_wrong_file_is_refused_and_the_place_named(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        read(tmp_path, values)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="cannot be read"):
        read_measured(tmp_path / "missing.yaml")
