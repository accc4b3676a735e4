"""How often the bundled model is right, by category, on scenes and questions that it never saw.

Pictures are drawn at their own size and go through the processor, crops and all: what is measured is what a
user gets.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from PIL.Image import Image
from transformers import PreTrainedModel

from step3.model.processing_step3 import Step3Processor
from step3.nano.scenes.check import is_right
from step3.nano.scenes.draw import STAGES, render
from step3.nano.scenes.sample import Sample, messages
from step3.nano.scenes.stream import CATEGORIES, samples

# What the training aims at: categories as their users would name them, and which samples count.
GOALS = ("colour", "shape", "count up to four", "exists", "number up to two digits", "sum", "tool")


@dataclass
class Score:
    """Right answers of one category, and some of the wrong ones."""

    right: int = 0
    asked: int = 0
    wrong: list[dict[str, str]] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.right / self.asked if self.asked else float("nan")


def names(sample: Sample) -> Iterator[str]:
    """The rows in which `sample` counts: its category, and the part of it that has a goal of its own."""
    yield sample.category
    if sample.category == "count" and int(sample.expected[0]) <= 4:
        yield "count up to four"
    if sample.category == "number" and sample.kind in ("1 digits", "2 digits"):
        yield "number up to two digits"


def evaluation_samples(each: int, seed: int, categories: Sequence[str] = CATEGORIES) -> list[Sample]:
    """`each` unseen samples of every category, of full difficulty."""
    drawn: list[Sample] = []
    for category in categories:
        stream = samples(seed, "eval", {category: 1.0}, STAGES[-1])
        drawn += [next(stream) for _ in range(each)]
    return drawn


def prompt_and_pictures(processor: Step3Processor, sample: Sample) -> tuple[str, list[Image]]:
    """The prompt's text, made by the chat template, and its pictures at their own size."""
    pictures = [] if sample.scene is None else [render(sample.scene)]
    chat = messages(sample)
    for message in chat:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "image":
                part["image"] = pictures[0]
    text = processor.apply_chat_template(
        chat, tools=list(sample.tools) or None, add_generation_prompt=True, tokenize=False
    )
    return text, pictures


@torch.inference_mode()
def answer(
    model: PreTrainedModel, processor: Step3Processor, asked: Sequence[Sample], max_new_tokens: int = 160
) -> list[str]:
    """The model's greedy answers, reasoning included, to one batch of samples."""
    prompts = [prompt_and_pictures(processor, sample) for sample in asked]
    inputs = processor(
        text=[text for text, _ in prompts],
        images=[picture for _, pictures in prompts for picture in pictures] or None,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    written = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new = written[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(new, skip_special_tokens=False)


def evaluate(
    model: PreTrainedModel, processor: Step3Processor, asked: Sequence[Sample], batch_size: int = 32
) -> Iterator[tuple[int, dict[str, Score]]]:
    """Answers `asked` batch by batch; yields how many are done and the scores so far."""
    scores: dict[str, Score] = defaultdict(Score)
    # Alike lengths together: padding is wasted work.
    ordered = sorted(asked, key=lambda sample: (sample.category, len(sample.question)))
    for start in range(0, len(ordered), batch_size):
        group = ordered[start : start + batch_size]
        for sample, text in zip(group, answer(model, processor, group), strict=True):
            right = is_right(sample, text)
            for name in names(sample):
                score = scores[name]
                score.asked += 1
                score.right += right
                if not right:
                    said = text.split("<|EOT|>")[0]
                    expected = " ".join(sample.expected) or str(sample.tool_call)
                    score.wrong.append({"question": sample.question, "expected": expected, "said": said})
        yield start + len(group), scores
