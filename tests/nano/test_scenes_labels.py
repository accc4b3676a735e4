from random import Random

from step3.nano.scenes.draw import COLOURS, SHAPES, SIZES, STAGES, draw_scene
from step3.nano.scenes.labels import cell_labels


def test_every_thing_is_labelled_in_the_cell_of_its_centre_and_nowhere_else() -> None:
    for seed in range(80):
        scene = draw_scene(Random(seed), STAGES[2], number=False)
        for grid in (3, 4):
            labels = cell_labels(scene, grid)
            found = set()
            for row in range(grid):
                for column in range(grid):
                    ids = tuple(int(part[row, column]) for part in (labels.shape, labels.colour, labels.size))
                    if any(ids):
                        shape, colour, size = ids
                        found.add(
                            (
                                row,
                                column,
                                SHAPES[shape - 1],
                                list(COLOURS)[colour - 1],
                                SIZES[size - 1],
                            )
                        )
            assert found == {
                (int(t.y * grid), int(t.x * grid), t.shape, t.colour, t.size) for t in scene.things
            }
            assert len(found) == len(scene.things)
            assert labels.length == labels.ink == 0


def test_a_number_is_labelled_by_its_digits_from_the_left() -> None:
    for seed in range(40):
        scene = draw_scene(Random(seed), STAGES[2], number=True)
        assert scene.number is not None
        labels = cell_labels(scene)
        assert not labels.shape.any()
        digits = [int(d) for d in labels.digits if d >= 0]
        assert "".join(map(str, digits)) == scene.number.text
        assert labels.length == len(digits)
        assert list(labels.digits[labels.length :]) == [-1] * (3 - labels.length)
        assert list(COLOURS)[labels.ink - 1] == scene.number.colour
