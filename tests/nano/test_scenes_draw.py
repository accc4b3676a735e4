import math
from random import Random

import numpy as np
import pytest
from PIL import Image

from step3.nano.scenes.draw import (
    COLOURS,
    GRID,
    PLACES,
    SHAPES,
    STAGES,
    Ground,
    Scene,
    Thing,
    draw_scene,
    render,
)

SEEDS = range(60)


def scenes(stage: int = 2, **kwargs: bool) -> list[Scene]:
    return [draw_scene(Random(seed), STAGES[stage], **kwargs) for seed in SEEDS]


def alone(shape: str, radius: float = 0.3, angle: float = 0.0) -> Scene:
    thing = Thing(shape, "black", "large", 4, 0.5, 0.5, radius, angle, (0, 0, 0))
    return Scene(200, 200, Ground("plain", (255, 255, 255), (255, 255, 255)), (thing,))


def test_the_same_seed_draws_the_same_scene_and_the_same_pixels() -> None:
    for stage in STAGES:
        first, second = (draw_scene(Random(5), stage) for _ in range(2))
        assert first == second
        assert render(first).tobytes() == render(second).tobytes()


def test_a_picture_has_the_scenes_own_size_or_the_size_asked_for() -> None:
    scene = scenes()[0]
    assert render(scene).size == (scene.width, scene.height)
    assert render(scene, (112, 96)).size == (112, 96)
    assert render(scene).mode == "RGB"


@pytest.mark.parametrize("size", [(112, 112), None])
def test_every_thing_shows_its_colour_where_it_is(size: tuple[int, int] | None) -> None:
    for scene in scenes(number=False):
        pixels = np.asarray(render(scene, size), np.int64)
        height, width = pixels.shape[:2]
        for thing in scene.things:
            # A ring's centre is a hole: look at the middle of its band, straight to the right.
            aside = 0.78 * thing.radius * min(scene.width, scene.height) / scene.width
            x = thing.x + (aside if thing.shape == "ring" else 0.0)
            seen = pixels[int(thing.y * height), int(x * width)]
            assert np.abs(seen - thing.rgb).max() <= 3, (thing, seen)
            nearest = min(COLOURS, key=lambda name: math.dist(COLOURS[name], seen))
            assert nearest == thing.colour


def test_a_ring_has_a_hole_and_a_circle_has_none() -> None:
    assert render(alone("ring")).getpixel((100, 100)) == (255, 255, 255)
    assert render(alone("circle")).getpixel((100, 100)) == (0, 0, 0)


def test_no_two_shapes_look_alike_at_the_towers_size() -> None:
    masks = {s: np.asarray(render(alone(s), (112, 112)).convert("L"), np.float64) < 128 for s in SHAPES}
    for i, one in enumerate(SHAPES):
        for other in SHAPES[:i]:
            both, either = masks[one] & masks[other], masks[one] | masks[other]
            assert both.sum() / either.sum() < 0.8, (one, other)


def test_things_lie_inside_the_picture_and_do_not_touch() -> None:
    for scene in scenes(number=False):
        unit = min(scene.width, scene.height)
        at = [(t.x * scene.width / unit, t.y * scene.height / unit) for t in scene.things]
        for thing, (x, y) in zip(scene.things, at, strict=True):
            assert thing.radius <= min(x, y, scene.width / unit - x, scene.height / unit - y)
        for i, one in enumerate(scene.things):
            for j, other in enumerate(scene.things[:i]):
                assert math.dist(at[i], at[j]) > one.radius + other.radius


def test_each_thing_stands_in_the_cell_that_names_its_place() -> None:
    for scene in scenes(number=False):
        cells = [int(t.y * GRID) * GRID + int(t.x * GRID) for t in scene.things]
        assert cells == [t.cell for t in scene.things] == sorted(set(cells))
        for thing in scene.things:
            assert thing.place == PLACES[thing.cell]
            assert set(thing.place.split()) == {thing.row, thing.column} - (
                {"middle"} if thing.cell != 4 else set()
            )


def test_sizes_can_be_told_apart_by_radius_alone() -> None:
    things = [t for stage in (0, 1, 2) for scene in scenes(stage, number=False) for t in scene.things]
    assert max(t.radius for t in things if t.size == "small") < 0.12
    assert min(t.radius for t in things if t.size == "large") > 0.14


def test_ink_stands_out_from_the_ground() -> None:
    for scene in scenes():
        inks = [t.rgb for t in scene.things] + ([scene.number.rgb] if scene.number else [])
        for ink in inks:
            assert min(math.dist(ink, scene.ground.rgb), math.dist(ink, scene.ground.rgb_end)) > 100


def test_a_number_is_printed_inside_the_picture_in_its_colour() -> None:
    for scene in scenes(number=True):
        assert scene.number is not None
        assert not scene.things
        bare = Scene(scene.width, scene.height, scene.ground)
        changed = np.abs(
            np.asarray(render(scene, (112, 112)), np.int64) - np.asarray(render(bare, (112, 112)), np.int64)
        ).sum(axis=2)
        rows, columns = np.nonzero(changed > 60)
        assert rows.min() > 0
        assert columns.min() > 0
        assert rows.max() < 111
        assert columns.max() < 111
        assert 0.5 * scene.number.width < np.ptp(columns) / 112 < scene.number.width + 0.03
        ink = np.asarray(render(scene, (112, 112)), np.int64)[changed > 0.9 * changed.max()]
        assert np.abs(np.median(ink, axis=0) - scene.number.rgb).max() < 30


def test_different_digits_are_printed_differently() -> None:
    number = scenes(number=True)[0].number
    assert number is not None
    pictures = set()
    for digit in "0123456789":
        same = type(number)(digit, "black", 0.5, 0.5, 0.3, 1.0, 4, 0.0, (0, 0, 0))
        ground = Ground("plain", (255, 255, 255), (255, 255, 255))
        pictures.add(render(Scene(112, 112, ground, number=same)).tobytes())
    assert len(pictures) == 10


def test_drawing_small_is_close_to_drawing_large_and_scaling_down() -> None:
    differences = []
    for scene in scenes():
        own = render(scene).resize((112, 112), Image.Resampling.BILINEAR)
        small = render(scene, (112, 112))
        differences.append(np.abs(np.asarray(own, np.int64) - np.asarray(small, np.int64)).mean())
    assert np.mean(differences) < 1.0
    assert max(differences) < 3.0


def test_stages_bound_what_pictures_hold() -> None:
    for scene in scenes(0):
        assert len(scene.things) + (scene.number is not None) == 1
        assert scene.number is None or len(scene.number.text) == 1
        assert max(scene.width, scene.height) < 728
    for scene in scenes(1):
        assert len(scene.things) <= 3
        assert scene.number is None or len(scene.number.text) <= 2
    full = [draw_scene(Random(seed), STAGES[2]) for seed in range(600)]
    assert {len(scene.things) for scene in full} == {0, 1, 2, 3, 4, 5}
    assert {len(scene.number.text) for scene in full if scene.number} == {1, 2, 3}
    assert {scene.ground.kind for scene in full} == {"plain", "gradient", "noisy"}
    large = [max(scene.width, scene.height) for scene in full]
    assert 0.02 < sum(side >= 728 for side in large) / 600 < 0.1
    assert 64 <= min(large) < 100
    assert 728 < max(large) <= 1500
    aspects = [scene.width / scene.height for scene in full]
    assert 0.55 < min(aspects) < 0.7
    assert 1.5 < max(aspects) < 1.75


def test_numbers_have_no_leading_nought() -> None:
    texts = {scene.number.text for scene in scenes(number=True) if scene.number}
    assert all(text == str(int(text)) for text in texts)
