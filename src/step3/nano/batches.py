"""Samples as tensors: token ids with what is to be learned, pictures as the tower sees them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from step3.model.processing_step3 import Step3Processor
from step3.nano.architecture import FEATURES, SIDE
from step3.nano.scenes.draw import Scene, render
from step3.nano.scenes.lessons import Lesson
from step3.nano.scenes.questions import listing
from step3.nano.scenes.sample import Sample, completion_text, prompt_text

IGNORED = -100
# Behind the list of what is in the picture stand few tokens, and they are the ones that must think; so are
# the digits of a number.
_CONCLUSION_WEIGHT = 4.0
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
_PICTURE = "<im_start>" + "<im_patch>" * FEATURES + "<im_end>"


@dataclass(frozen=True)
class Batch:
    """Padded sequences and their pictures.

    Attributes:
        input_ids, attention_mask: `[samples, tokens]`.
        labels: `[samples, tokens]`, -100 outside the answers.
        weights: `[samples, tokens]`, of each token's loss.
        pixel_values, crops: `[pictures, 3, side, side]` and `[crops, 3, side, side]`, or None.
        num_patches: crops of each picture.
        scenes: of the pictures.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    weights: Tensor
    pixel_values: Tensor | None
    crops: Tensor | None
    num_patches: list[int]
    scenes: list[Scene]


@dataclass(frozen=True)
class Example:
    """A sample or a lesson as token ids.

    Attributes:
        prompt, answer: what is read, and what is written after it.
        weights: of the answer's tokens; nought where a token is not to be learned.
        scene, crops: the picture, and its crops `[crops, 3, side, side]` if it is cut.
    """

    prompt: list[int]
    answer: list[int]
    weights: list[float]
    scene: Scene | None = None
    crops: Tensor | None = None

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)


def pixels(scenes: Sequence[Scene]) -> Tensor:
    """`[pictures, 3, 96, 96]`: drawn straight at the tower's size, without crops."""
    drawn = np.stack([np.asarray(render(scene, size=(SIDE, SIDE))) for scene in scenes])
    return (torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255 - _MEAN) / _STD


def encode(processor: Step3Processor, sample: Sample) -> Example:
    """Token ids of the prompt, with the picture's places, and of the answer to it."""
    prompt, crops = prompt_text(sample), None
    if sample.scene is not None:
        picture = _PICTURE
        if processor.image_processor.plan(sample.scene.width, sample.scene.height).num_crops:
            inputs = processor(images=[render(sample.scene)], text="<im_patch>", return_tensors="pt")
            picture = processor.tokenizer.decode(inputs["input_ids"][0])
            crops = inputs["patch_pixel_values"]
        prompt = prompt.replace("<im_patch>", picture)
    answer = _tokens(processor, completion_text(sample))
    listed = 0
    if (
        sample.scene is not None
        and sample.scene.things
        and sample.reasoning.startswith(listing(sample.scene))
    ):
        listed = len(_tokens(processor, listing(sample.scene)))
    weights = [1.0] * listed + [_CONCLUSION_WEIGHT] * (len(answer) - listed)
    return Example(_tokens(processor, prompt), answer, weights, sample.scene, crops)


def encode_lesson(processor: Step3Processor, lesson: Lesson) -> Example:
    """Token ids of a lesson; what is only read has no weight."""
    tokens, weights = [], []
    for part, is_learned in lesson.parts:
        new = _tokens(processor, part.replace("<im_patch>", _PICTURE))
        tokens += new
        weights += [_CONCLUSION_WEIGHT if is_learned else 0.0] * len(new)
    return Example([], tokens, weights, lesson.scene)


def _tokens(processor: Step3Processor, text: str) -> list[int]:
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def batches(processor: Step3Processor, examples: Iterable[Example], tokens_per_batch: int) -> list[Batch]:
    """The examples by length, as many to a batch as keep its padded size within `tokens_per_batch`."""
    groups: list[list[Example]] = [[]]
    for one in sorted(examples, key=lambda example: example.length):
        if groups[-1] and (len(groups[-1]) + 1) * one.length > tokens_per_batch:
            groups.append([])
        groups[-1].append(one)
    return [_pad(group, processor.tokenizer.pad_token_id) for group in groups]


def _pad(group: list[Example], pad: int) -> Batch:
    length = max(one.length for one in group)
    input_ids = torch.full((len(group), length), pad)
    labels = torch.full((len(group), length), IGNORED)
    attention_mask = torch.zeros((len(group), length), dtype=torch.long)
    weights = torch.zeros((len(group), length))
    for row, one in enumerate(group):
        input_ids[row, : one.length] = torch.tensor(one.prompt + one.answer)
        weighed = torch.tensor(one.weights)
        labels[row, len(one.prompt) : one.length] = torch.where(
            weighed > 0, torch.tensor(one.answer), IGNORED
        )
        attention_mask[row, : one.length] = 1
        weights[row, len(one.prompt) : one.length] = weighed
    pictured = [one for one in group if one.scene is not None]
    scenes = [one.scene for one in pictured if one.scene is not None]
    crops = [one.crops for one in pictured if one.crops is not None]
    return Batch(
        input_ids,
        attention_mask,
        labels,
        weights,
        pixel_values=pixels(scenes) if scenes else None,
        crops=torch.cat(crops) if crops else None,
        num_patches=[0 if one.crops is None else len(one.crops) for one in pictured],
        scenes=scenes,
    )
