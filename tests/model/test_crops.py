import json
from pathlib import Path

import picture_oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from step3.model.crops import CropRules, plan_crops

RULES = CropRules()
RECORDED = Path(__file__).parents[1] / "data" / "crop_plans.json"

edges = st.sampled_from(
    [1, 31, 32, 33, 124, 125, 485, 503, 504, 505, 604, 605, 727, 728, 729, 3023, 3024, 3025]
)
sides = st.one_of(edges, st.integers(1, 800), st.integers(1, 20_000))


@settings(max_examples=500, deadline=None)
@given(sides, sides)
def test_every_size_is_planned_as_described(width: int, height: int) -> None:
    plan = plan_crops(width, height, RULES)

    padded = picture_oracle.padded_size(width, height)
    size = picture_oracle.scaled_size(*padded)
    window = picture_oracle.window_side(*size)
    assert (plan.padded_size, plan.size, plan.window) == (padded, size, window or 0)
    if window is None:
        assert plan.num_crops == 0
        assert plan.crop_size == size
    else:
        crop_size = tuple(picture_oracle.whole_windows(side, window) for side in size)
        boxes = picture_oracle.crop_boxes(*crop_size, window)
        assert plan.crop_size == crop_size
        assert plan.corners == tuple((left, top) for left, top, _ in boxes)
        assert plan.newline_mask == tuple(ends_row for _, _, ends_row in boxes)


def test_plans_equal_those_of_a_public_engine() -> None:
    recorded = json.loads(RECORDED.read_text())["rows"]

    ours = []
    for width, height, *_ in recorded:
        plan = plan_crops(width, height, RULES)
        sizes = (*plan.padded_size, *plan.size, plan.window, *plan.crop_size)
        ours.append([width, height, *sizes, plan.num_crops, plan.num_newlines])
    assert ours == recorded


@settings(max_examples=200, deadline=None)
@given(sides, sides)
def test_crops_tile_the_picture_without_overlap(width: int, height: int) -> None:
    plan = plan_crops(width, height, RULES)
    if plan.num_crops:
        right, bottom = plan.columns * plan.window, plan.rows * plan.window
        assert len(set(plan.corners)) == plan.num_crops
        assert (
            max(x for x, _ in plan.corners) + plan.window == right >= plan.crop_size[0] > right - plan.window
        )
        assert (
            max(y for _, y in plan.corners) + plan.window
            == bottom
            >= plan.crop_size[1]
            > bottom - plan.window
        )


@pytest.mark.parametrize(
    ("size", "crops"),
    [
        ((727, 727), 0),
        ((728, 728), 4),
        ((727, 485), 0),
        ((727, 484), 2),
        ((1, 1), 0),
        ((5000, 32), 159),
        ((300, 200), 0),
        ((1600, 1100), 6),
    ],
)
def test_number_of_crops(size: tuple[int, int], crops: int) -> None:
    assert plan_crops(*size, RULES).num_crops == crops


def test_a_fraction_of_exactly_a_fifth_goes_by_the_rounded_quotient() -> None:
    assert 11 / 5 % 1 > 0.2
    assert plan_crops(220, 100, RULES).columns == 3


def test_nothing_is_cut_on_request() -> None:
    plan = plan_crops(1600, 1100, RULES, crop=False)
    assert (plan.num_crops, plan.corners, plan.newline_mask, plan.size) == (0, (), (), (1600, 1100))


def test_the_thinnest_picture_keeps_a_pixel() -> None:
    assert plan_crops(32, 200_000, RULES).size == (1, 3024)


def test_tokens_are_those_of_the_crops_the_newlines_and_the_whole() -> None:
    assert plan_crops(1600, 1100, RULES).num_tokens(169, 81) == 6 * 83 + 1 + 171
    assert plan_crops(300, 200, RULES).num_tokens(169, 81) == 171


def test_thresholds_are_the_rules() -> None:
    rules = CropRules(pad_under=4, max_side=300, crop_from=70, window=50)
    plan = plan_crops(600, 400, rules)
    assert (plan.size, plan.window, plan.crop_size, plan.num_crops) == ((300, 200), 50, (300, 200), 24)
    assert plan_crops(3, 30, rules).padded_size == (30, 30)
    assert plan_crops(5, 30, rules).padded_size == (5, 30)
