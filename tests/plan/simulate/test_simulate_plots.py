from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from simulated import scenario

from step3.plan.simulate import simulate
from step3.plan.simulate.errors import SimulationError
from step3.plan.simulate.plots import STAGE_COLOURS, draw_gantt, draw_timeline
from step3.plan.simulate.trace import Recording

pytest.importorskip("matplotlib")


def test_the_gantt_shows_every_lane_and_every_stage_in_its_colour(tmp_path: Path) -> None:
    recording = Recording()
    simulate(scenario("2A1F"), recorder=recording, record_from=0.3, record_until=0.5)
    png, svg = draw_gantt(recording, "2A1F, 3 lanes", tmp_path)
    text = svg.read_text()
    ElementTree.fromstring(text)
    for label in ("A0, lane 0", "A0, lane 2", "A1, lane 1", ">F<", "2A1F, 3 lanes", "wire out"):
        assert label in text
    for stage in ("attention", "out", "ffn", "back"):
        assert text.count(STAGE_COLOURS[stage]) > 5
    with Image.open(png) as picture:
        assert picture.width > 1000


def test_an_empty_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="move it with --trace-from"):
        draw_gantt(Recording(), "nothing", tmp_path)


def test_the_run_over_time_is_drawn(tmp_path: Path) -> None:
    paths = draw_timeline(simulate(scenario("1A1F")), "1A1F", tmp_path)
    assert [path.name for path in paths] == ["timeline.png", "timeline.svg"]
    assert "tokens a second" in paths[1].read_text()
