"""Trains the bundled model from nothing: the tower learns to see, the decoder to read, then both together.

`see` (tower alone, dense labels) and `read` (decoder alone, text) run side by side, a process each; `join`
runs two processes that average their gradients. Every stage writes a state now and then and goes on from it,
and samples are a function of (seed, index), so that a run that was cut off ends as if it had not been.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F

from step3.errors import Step3Error
from step3.model.modeling_step3 import load_balancing_loss
from step3.model.modeling_step3_vl import Step3VLForConditionalGeneration
from step3.model.processing_step3 import Step3Processor
from step3.nano.architecture import FEATURES, GRID_OF_PATCHES, configuration, load_processor
from step3.nano.batches import IGNORED, Batch, batches, encode, encode_lesson, pixels
from step3.nano.muon import Muon
from step3.nano.perception import PerceptionHead, picture_labels
from step3.nano.scenes.draw import STAGES, Difficulty, Scene
from step3.nano.scenes.stream import MIXES, TEXT_CATEGORIES, crowd, lesson, number_scene, sample


@dataclass(frozen=True)
class Stage:
    """One part of the training.

    Attributes:
        name: "see", "read" or "join".
        steps: optimiser steps.
        samples: samples a step, over all processes.
        matrix_rate, other_rate: peak learning rates of Muon and of AdamW.
        processes: how many average their gradients.
        perception_weight: share of the dense picture loss in `join`.
        pictures: further pictures a step, in `join`, that only the tower learns from.
        lessons: texts a step in which the decoder looks things up and copies.
        settled: the last share of the steps, in which the rates fall to nought.
    """

    name: str
    steps: int
    samples: int
    matrix_rate: float
    other_rate: float
    processes: int = 1
    perception_weight: float = 0.0
    pictures: int = 0
    lessons: int = 0
    warm_up: int = 50
    settled: float = 0.4


DEFAULT_STAGES = {
    "see": Stage("see", steps=1000, samples=32, matrix_rate=5e-3, other_rate=2e-3),
    "read": Stage("read", steps=800, samples=12, matrix_rate=5e-3, other_rate=2e-3, lessons=20),
    "join": Stage(
        "join",
        steps=4000,
        samples=32,
        matrix_rate=3e-3,
        other_rate=1.2e-3,
        processes=2,
        perception_weight=0.1,
        pictures=48,
        lessons=16,
        settled=0.5,
    ),
}
_READ_MIX = {category: MIXES[-1][category] for category in TEXT_CATEGORIES} | {"tool": 4.0}
# What takes longest to learn: to read numbers, to copy arguments, and to look things up in the own list.
_JOIN_MIX = {
    "colour": 1.2, "shape": 1.0, "size": 0.3, "count": 1.5, "exists": 2.0, "number": 3.0, "position": 1.2,
    "describe": 0.5, "sum": 3.0, "greeting": 0.2, "identity": 0.25, "unknown": 0.3, "tool": 6.0,
    "tool_result": 0.2,
}  # fmt: skip
# Longest padded batch of the decoder, in tokens: larger ones leave the caches and are padded more.
_TOKENS_PER_BATCH = 1024
# Every how many samples one is asked with thinking off.
_UNTHOUGHT = 5
_SAVE_EVERY_SECONDS = 120.0
_BEGIN = "begin.pt"
# `see` uses the pictures before this index.
_JOIN_PICTURES_FROM = 10_000_000


@dataclass
class Progress:
    """Where a stage stands; written beside its weights."""

    step: int = 0
    seconds: float = 0.0


class Trainee:
    """The model, the perception head and their optimisers."""

    def __init__(self, stage: Stage, processor: Step3Processor, seed: int) -> None:
        torch.manual_seed(seed)
        self.stage = stage
        config = configuration(processor.tokenizer)
        self.model = Step3VLForConditionalGeneration(config)
        self.head = PerceptionHead(config.vision_config.hidden_size, FEATURES, config.text_config.hidden_size)
        _initialise(self.model)
        self.parameters = list(self._trained())
        matrices = [p for name, p in self.parameters if _is_matrix(name, p)]
        others = [p for name, p in self.parameters if not _is_matrix(name, p)]
        self.muon = Muon(matrices, lr=stage.matrix_rate, weight_decay=0.02)
        self.adamw = torch.optim.AdamW(others, lr=stage.other_rate, betas=(0.9, 0.98), weight_decay=0.0)

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        is_vision = {"see": (True,), "read": (False,), "join": (True, False)}[self.stage.name]
        for name, parameter in self.model.named_parameters():
            if ("vision_model" in name or "vit_" in name) in is_vision:
                yield name, parameter
        if True in is_vision:
            for name, parameter in self.head.named_parameters():
                yield f"head.{name}", parameter

    def set_rate(self, share: float) -> None:
        for optimiser, rate in ((self.muon, self.stage.matrix_rate), (self.adamw, self.stage.other_rate)):
            for group in optimiser.param_groups:
                group["lr"] = rate * share

    def update(self) -> float:
        """Averages the gradients over the processes, clips them and takes a step; returns their norm."""
        tensors = [p for _, p in self.parameters]
        for parameter in tensors:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if torch.distributed.is_initialized():
            flat = torch.cat([p.grad.flatten() for p in tensors])
            torch.distributed.all_reduce(flat)
            flat /= torch.distributed.get_world_size()
            for parameter, part in zip(tensors, flat.split([p.numel() for p in tensors]), strict=True):
                parameter.grad.copy_(part.view_as(parameter))
        norm = nn.utils.clip_grad_norm_(tensors, 5.0)
        self.muon.step()
        self.adamw.step()
        self.muon.zero_grad()
        self.adamw.zero_grad()
        return float(norm)

    def state(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "muon": self.muon.state_dict(),
            "adamw": self.adamw.state_dict(),
        }

    def load(self, state: dict, with_optimisers: bool = True) -> None:
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        if with_optimisers:
            self.muon.load_state_dict(state["muon"])
            self.adamw.load_state_dict(state["adamw"])


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """What Muon trains: hidden matrices, not the tables at either end, the router or the thrown-away head."""
    return parameter.ndim >= 2 and not any(
        part in name for part in ("embed", "lm_head", "moe.gate.weight", "head.")
    )


@torch.no_grad()
def _initialise(model: Step3VLForConditionalGeneration) -> None:
    """Keeps the scale of what flows through; the tower's norms start small, so that its layers, whose norms
    stand behind them, start near the identity."""
    for name, parameter in model.named_parameters():
        if "layer_norm" in name and name.endswith("weight"):
            parameter.fill_(0.2)
        elif "position_embedding" in name or "class_embedding" in name:
            parameter.normal_(0.0, 0.3)
        elif "embed_tokens" in name:
            parameter.normal_(0.0, 0.5)
        elif parameter.ndim == 4:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5)
        elif parameter.ndim >= 2:
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5)


def rate_share(stage: Stage, step: int) -> float:
    """Share of the peak rate at `step`: a warm-up, a plateau, a straight fall to a fiftieth."""
    left = (stage.steps - step) / (stage.settled * stage.steps)
    return min(1.0, (step + 1) / stage.warm_up, max(left, 0.02))


def pictures_to_see(first: int, count: int, seed: int, ease: Difficulty) -> list[Scene]:
    """Half of them crowds, the rest printed numbers: each says much."""
    long = replace(ease, digits=(1, 3))
    indices = range(first, first + count)
    return [crowd(seed, i, long) if i % 2 else number_scene(seed, i, long) for i in indices]


def see_step(trainee: Trainee, step: int, seed: int) -> dict[str, float]:
    """One step of the tower alone. The grounds grow harder over the first half of the steps."""
    stage = trainee.stage
    ease = STAGES[min(2, int(step / stage.steps * 4))]
    scenes = pictures_to_see(step * stage.samples, stage.samples, seed, ease)
    loss, right = perception_loss(trainee, scenes)
    loss.backward()
    return {"loss": loss.item(), **right}


def perception_loss(trainee: Trainee, scenes: list[Scene]) -> tuple[Tensor, dict[str, float]]:
    """What the tower reads of `scenes`, and how much of it is right."""
    rows = trainee.model.model.vision_model(pixels(scenes))
    features = trainee.model.model.project(rows)
    return trainee.head.loss(rows, features, picture_labels(scenes, GRID_OF_PATCHES))


def language_step(
    trainee: Trainee, processor: Step3Processor, step: int, seed: int, rank: int
) -> dict[str, float]:
    """One step of the decoder, with the tower where the samples have pictures."""
    stage = trainee.stage
    per_process = stage.samples // stage.processes
    first = step * stage.samples + rank * per_process
    mix = _READ_MIX if stage.name == "read" else _JOIN_MIX
    drawn = []
    for index in range(first, first + per_process):
        one = sample(seed, index, "train", mix, STAGES[-1])
        drawn.append(encode(processor, replace(one, reasoning="") if index % _UNTHOUGHT == 0 else one))
    lessons = stage.lessons // stage.processes
    first = step * stage.lessons + rank * lessons
    with_pictures = stage.name == "join"
    for i in range(lessons):
        drawn.append(encode_lesson(processor, lesson(seed, first + i, STAGES[-1], with_pictures)))
    parts = batches(processor, drawn, _TOKENS_PER_BATCH)
    learned = sum(float(part.weights.sum()) for part in parts)
    totals: dict[str, list[float]] = {"loss": [0.0], "balance": []}
    for part in parts:
        loss, measured = language_loss(trainee, part, learned, len(part.input_ids) / len(drawn))
        loss.backward()
        totals["loss"][0] += measured.pop("loss")
        for name, value in measured.items():
            totals.setdefault(name, []).append(value)
    if stage.pictures:
        count = stage.pictures // stage.processes
        begin = _JOIN_PICTURES_FROM + (step * stage.processes + rank) * count
        perception, right = perception_loss(trainee, pictures_to_see(begin, count, seed, STAGES[-1]))
        (stage.perception_weight * perception).backward()
        totals |= {f"sees {name}": [value] for name, value in right.items()}
    return {name: _mean(values) for name, values in totals.items()}


def language_loss(
    trainee: Trainee, batch: Batch, learned: float, share: float
) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy of the answers' tokens, the balance of the experts, and what the tower reads.

    Args:
        learned: weight of all answer tokens of the step, over which the cross entropy is a mean.
        share: this batch's share of the step's samples.
    """
    model, config = trainee.model, trainee.model.config
    embeds = model.get_input_embeddings()(batch.input_ids)
    measured: dict[str, float] = {}
    perception = torch.zeros(())
    if batch.pixel_values is not None:
        rows = model.model.vision_model(batch.pixel_values)
        whole = model.model.project(rows)
        features = whole
        if batch.crops is not None:
            features = model.model.arrange(whole, model.model.encode_pictures(batch.crops), batch.num_patches)
        places = (batch.input_ids == config.image_token_id)[..., None]
        embeds = embeds.masked_scatter(places, torch.cat([f.flatten(0, -2) for f in features]))
        labels = picture_labels(batch.scenes, GRID_OF_PATCHES)
        perception, _ = trainee.head.loss(rows, whole, labels)
    outputs = model.model.language_model(
        inputs_embeds=embeds, attention_mask=batch.attention_mask, output_router_logits=True, use_cache=False
    )
    targets = batch.labels[:, 1:]
    counted = targets != IGNORED
    logits = model.lm_head(outputs.last_hidden_state[:, :-1][counted])
    losses = F.cross_entropy(logits, targets[counted], reduction="none")
    loss = (losses * batch.weights[:, 1:][counted]).sum() / learned
    top_k = config.text_config.moe_top_k
    balance = load_balancing_loss(outputs.router_logits, top_k, batch.attention_mask)
    measured |= {"loss": loss.item(), "balance": balance.item()}
    total = loss + share * (
        config.text_config.router_aux_loss_coef * balance + trainee.stage.perception_weight * perception
    )
    return total, measured


def _mean(values: list[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else float("nan")


def run_stage(stage: Stage, out: Path, processor: Step3Processor, seed: int = 0, rank: int = 0) -> None:
    """Runs `stage` to its end, from its last state if there is one; the weights land in `out`."""
    torch.set_num_threads(1)
    trainee = Trainee(stage, processor, seed)
    state_file, done_file = out / f"{stage.name}.state.pt", out / f"{stage.name}.pt"
    progress = Progress()
    if state_file.exists():
        saved = torch.load(state_file, weights_only=True)
        trainee.load(saved)
        progress = Progress(**saved["progress"])
    elif stage.name == "join":
        trainee.load(_joined(out), with_optimisers=False)
    elif (out / _BEGIN).exists():
        trainee.load(torch.load(out / _BEGIN, weights_only=True), with_optimisers=False)
    started = saved_at = time.monotonic()
    before = progress.seconds
    recent: dict[str, list[float]] = {}
    while progress.step < stage.steps:
        trainee.set_rate(rate_share(stage, progress.step))
        if stage.name == "see":
            measured = see_step(trainee, progress.step, seed)
        else:
            measured = language_step(trainee, processor, progress.step, seed, rank)
        measured["gradient"] = trainee.update()
        progress.step += 1
        progress.seconds = before + time.monotonic() - started
        for name, value in measured.items():
            recent.setdefault(name, []).append(value)
        if rank == 0 and (progress.step % 25 == 0 or progress.step == stage.steps):
            _log(out / f"{stage.name}.jsonl", progress, stage, recent)
            recent = {}
        if rank == 0 and time.monotonic() - saved_at > _SAVE_EVERY_SECONDS:
            _save({**trainee.state(), "progress": asdict(progress)}, state_file)
            saved_at = time.monotonic()
    if rank == 0:
        _save({"model": trainee.model.state_dict(), "head": trainee.head.state_dict()}, done_file)
        state_file.unlink(missing_ok=True)


def _joined(out: Path) -> dict:
    """The tower that learned to see and the decoder that learned to read, in one model."""
    for name in ("see", "read"):
        if not (out / f"{name}.pt").exists():
            raise Step3Error(f"{out / f'{name}.pt'} is missing: run the stage {name!r} before 'join'")
    seen = torch.load(out / "see.pt", weights_only=True)
    read = torch.load(out / "read.pt", weights_only=True)
    tower = {
        name: tensor for name, tensor in seen["model"].items() if "vision_model" in name or "vit_" in name
    }
    return {"model": {**read["model"], **tower}, "head": seen["head"]}


def begin_from(checkpoint: Path, out: Path) -> None:
    """Lets `see` and `read` go on from a checkpoint's weights instead of from nothing.

    The perception head is not in a checkpoint; it starts anew.
    """
    out.mkdir(parents=True, exist_ok=True)
    model = Step3VLForConditionalGeneration.from_pretrained(checkpoint, torch_dtype=torch.float32)
    fresh = Trainee(DEFAULT_STAGES["join"], load_processor(), seed=0)
    state = {"model": model.state_dict(), "head": fresh.head.state_dict()}
    _save(state, out / _BEGIN)


def _save(state: dict, file: Path) -> None:
    """Whole or not at all: a run that is cut off while writing keeps its last state."""
    half = file.with_suffix(".half")
    torch.save(state, half)
    os.replace(half, file)


def _log(file: Path, progress: Progress, stage: Stage, recent: dict[str, list[float]]) -> None:
    line = {
        "step": progress.step,
        "of": stage.steps,
        "minutes": round(progress.seconds / 60, 2),
        "samples_per_second": round(progress.step * stage.samples / progress.seconds, 1),
        **{name: round(_mean(values), 4) for name, values in recent.items()},
    }
    with file.open("a") as log:
        log.write(json.dumps(line) + "\n")


def _join_process(rank: int, stage: Stage, out: Path, seed: int, address: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=stage.processes)
    try:
        run_stage(stage, out, load_processor(), seed, rank)
    finally:
        torch.distributed.destroy_process_group()


def _single_process(_: int, stage: Stage, out: Path, seed: int) -> None:
    run_stage(stage, out, load_processor(), seed)


def start_stage(stage: Stage, out: Path, seed: int = 0) -> torch.multiprocessing.ProcessContext | None:
    """Starts `stage` in processes of its own; None if it is done already. `join()` the result."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / f"{stage.name}.pt").exists():
        return None
    spawn = torch.multiprocessing.spawn
    if stage.processes == 1:
        return spawn(_single_process, (stage, out, seed), nprocs=1, join=False)
    meeting = out / "meeting"
    meeting.unlink(missing_ok=True)
    address = f"file://{meeting.absolute()}"
    return spawn(_join_process, (stage, out, seed, address), nprocs=stage.processes, join=False)


def scaled(stage: Stage, share: float) -> Stage:
    """`stage` with a share of its steps, at least one: for a quick try."""
    return replace(stage, steps=max(1, round(stage.steps * share)))
