"""Which pictures belong to which sequence of a batch, read off the places that their features fill."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from step3.errors import Step3Error

PICTURE_INPUTS = ("pixel_values", "patch_pixel_values", "num_patches", "patch_newline_mask")
_BY_CROP = ("patch_pixel_values", "patch_newline_mask")


def crop_counts(pictures: Mapping[str, Tensor]) -> list[int]:
    """Crops of each picture; none where `num_patches` is left out."""
    counts = pictures.get("num_patches")
    return [0] * len(pictures["pixel_values"]) if counts is None else [int(count) for count in counts]


def pictures_by_sequence(places: Sequence[int], lengths: Sequence[int]) -> list[range]:
    """The numbers of each sequence's pictures.

    Args:
        places: for each sequence, how many `<im_patch>` it has.
        lengths: for each picture, in the order of the prompts, how many features it gives, crops included.

    Raises:
        Step3Error: the places of a sequence are not those of whole pictures, or pictures are left over.
    """
    found = []
    first = 0
    for row, count in enumerate(places):
        last, left = first, count
        while left > 0 and last < len(lengths):
            left -= lengths[last]
            last += 1
        if left:
            raise Step3Error(
                f"sequence {row} has {count} places for picture features, but the pictures from number "
                f"{first} on give {list(lengths[first:last])}: use the processor's input_ids and pictures "
                "together, and cut no prompt inside a picture"
            )
        found.append(range(first, last))
        first = last
    if first < len(lengths):
        raise Step3Error(
            f"{len(lengths)} pictures are given, but the prompts have places for the first {first} of them"
        )
    return found


def take_pictures(pictures: Mapping[str, Tensor], wanted: Sequence[int]) -> dict[str, Tensor]:
    """The pictures with the numbers `wanted`, in that order, each with its crops.

    Args:
        pictures: the processor's tensors for pictures; those of whole pictures and those of crops.
    """
    counts = crop_counts(pictures)
    starts = [sum(counts[:number]) for number in range(len(counts))]
    crops = [starts[number] + crop for number in wanted for crop in range(counts[number])]
    return {
        name: tensor[torch.tensor(crops if name in _BY_CROP else list(wanted), dtype=torch.long)]
        for name, tensor in pictures.items()
    }
