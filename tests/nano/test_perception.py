from random import Random

import numpy as np
import torch

from step3.nano.perception import CELLS, PerceptionHead, picture_labels
from step3.nano.scenes.draw import COLOURS, DIGITS, SHAPES, STAGES, draw_crowd, draw_scene, render

GRID = 12


def scene_of(seed: int, number: bool):
    return draw_scene(Random(seed), STAGES[2], number=number)


def test_labels_name_each_thing_in_its_cell():
    scene = scene_of(3, number=False)
    labels = picture_labels([scene], GRID)
    assert (labels.glyph > 0).sum() == len(scene.things)
    for thing in scene.things:
        assert SHAPES[labels.glyph[0, thing.cell] - 1] == thing.shape
        assert list(COLOURS)[labels.colour[0, thing.cell] - 1] == thing.colour
    assert labels.digits.tolist() == [[0, 0, 0]]


def test_labels_spell_a_number_from_the_left():
    scene = scene_of(1, number=True)
    labels = picture_labels([scene], GRID)
    assert scene.number is not None
    spelled = [digit - 1 for digit in labels.digits[0].tolist() if digit]
    assert "".join(map(str, spelled)) == scene.number.text


def test_a_number_s_digits_are_named_in_the_cells_of_their_centres():
    for seed in range(30):
        number = scene_of(seed, number=True).number
        assert number is not None
        glyphs = picture_labels([scene_of(seed, number=True)], GRID).glyph[0].tolist()
        centres = [
            number.x + ((i + 0.5) / len(number.text) - 0.5) * number.width for i in range(len(number.text))
        ]
        cells = [int(number.y * 3) * 3 + int(x * 3) for x in centres]
        for cell, digit in zip(cells, number.text, strict=True):
            expected = len(SHAPES) + 1 + int(digit) if cells.count(cell) == 1 else -100
            assert glyphs[cell] == expected
        assert sum(glyph != 0 for glyph in glyphs) == len(set(cells))


def test_a_crowd_s_digits_are_named_as_well_as_its_shapes():
    scenes = [draw_crowd(Random(seed), STAGES[2]) for seed in range(10)]
    labels = picture_labels(scenes, GRID)
    glyphs = [thing.shape for scene in scenes for thing in scene.things]
    assert set(glyphs) & set(DIGITS)
    assert set(glyphs) & set(SHAPES)
    named = [(SHAPES + DIGITS)[i - 1] for i in labels.glyph.flatten().tolist() if i]
    assert named == glyphs


def test_a_patch_is_named_by_what_covers_it():
    for seed in range(20):
        scene = scene_of(seed, number=False)
        patches = picture_labels([scene], GRID).patch_glyph.view(GRID, GRID)
        for thing in scene.things:
            at = int(thing.y * GRID), int(thing.x * GRID)
            assert SHAPES[patches[at] - 1] == thing.shape


def test_a_digit_s_patches_hold_its_ink():
    for seed in range(20):
        scene = scene_of(seed, number=True)
        assert scene.number is not None
        labels = picture_labels([scene], GRID)
        digits = labels.patch_glyph.view(GRID, GRID)
        drawn = torch.from_numpy(np.array(render(scene, (GRID, GRID)))).long()
        ink = (drawn - torch.tensor(scene.number.rgb)).abs().sum(-1)
        inked = ink < ink.median()
        assert (digits > 0)[inked].float().mean() > (digits > 0)[~inked].float().mean()
        columns = [
            (digits == len(SHAPES) + 1 + int(d)).any(0).nonzero().float().mean() for d in scene.number.text
        ]
        distinct = len(set(scene.number.text)) == len(columns)
        assert not distinct or columns == sorted(columns)


def test_the_head_can_learn_a_handful_of_pictures_by_heart():
    torch.manual_seed(0)
    scenes = [draw_scene(Random(seed), STAGES[2]) for seed in range(8)]
    labels = picture_labels(scenes, GRID)
    rows, features = torch.randn(8, GRID**2, 32), torch.randn(8, CELLS, 64)
    head = PerceptionHead(32, CELLS, 64)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.05)
    first, _ = head.loss(rows, features, labels)
    for _ in range(100):
        optimiser.zero_grad()
        loss, right = head.loss(rows, features, labels)
        loss.backward()
        optimiser.step()
    assert loss < 0.5 * first
    assert right["shape"] == right["colour"] == right["number"] == 1.0
