import pytest
import torch
from torch import Tensor

from step3.errors import Step3Error
from step3.model.placement import crop_counts, pictures_by_sequence, take_pictures


def numbered(*crops: int) -> dict[str, Tensor]:
    """Pictures and crops whose only pixel is their number."""
    return {
        "pixel_values": torch.arange(len(crops)).view(-1, 1),
        "patch_pixel_values": torch.arange(sum(crops)).view(-1, 1) + 100,
        "patch_newline_mask": torch.arange(sum(crops)) % 2 == 0,
        "num_patches": torch.tensor(crops),
    }


def test_pictures_go_to_the_sequences_that_have_places_for_them() -> None:
    assert pictures_by_sequence([4, 0, 11], [4, 5, 6]) == [range(1), range(1, 1), range(1, 3)]


def test_no_pictures_and_no_places() -> None:
    assert pictures_by_sequence([0, 0], []) == [range(0), range(0)]


@pytest.mark.parametrize(
    ("places", "lengths"),
    [([3], [4]), ([6], [4, 4]), ([4, 8], [4, 4]), ([5, 3], [4, 4]), ([1], [])],
)
def test_places_that_are_not_whole_pictures(places: list[int], lengths: list[int]) -> None:
    with pytest.raises(Step3Error, match=r"sequence \d has \d places for picture features"):
        pictures_by_sequence(places, lengths)


def test_pictures_without_a_place() -> None:
    with pytest.raises(Step3Error, match="3 pictures are given, but the prompts have places for the first 2"):
        pictures_by_sequence([4, 4], [4, 4, 4])


def test_taken_pictures_bring_their_crops_in_order() -> None:
    taken = take_pictures(numbered(2, 0, 3), [2, 0, 2])
    assert taken["pixel_values"].flatten().tolist() == [2, 0, 2]
    assert taken["num_patches"].tolist() == [3, 2, 3]
    assert taken["patch_pixel_values"].flatten().tolist() == [102, 103, 104, 100, 101, 102, 103, 104]
    assert taken["patch_newline_mask"].tolist() == [True, False, True, True, False, True, False, True]


def test_none_taken() -> None:
    taken = take_pictures(numbered(2, 1), [])
    assert {name: len(tensor) for name, tensor in taken.items()} == dict.fromkeys(taken, 0)


def test_pictures_without_counts_have_no_crops() -> None:
    assert crop_counts({"pixel_values": torch.zeros(3, 1)}) == [0, 0, 0]
