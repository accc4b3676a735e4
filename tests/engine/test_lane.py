"""Lanes: any number of them, each at its own layer, answered by FFN shards in any order."""

import random
from collections.abc import Generator
from typing import Any

import pytest
import torch
from engine_requests import GOLDEN, golden_cases, shared_llm
from torch import Tensor

from step3 import SamplingParams
from step3.checkpoint import Checkpoint
from step3.engine.config import EngineConfig
from step3.engine.engine import Engine
from step3.engine.intake import Intake
from step3.engine.lane import StepResult
from step3.engine.network import read_network
from step3.ffn import FFNCall, FFNShard, split

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=0)
CHECKPOINT = Checkpoint.open(GOLDEN / "text")


def start(num_lanes: int, **options: Any) -> tuple[Engine, Intake]:
    config = EngineConfig(dtype="float32", max_model_len=1024, max_num_seqs=6, **options)
    network = read_network(GOLDEN / "text", CHECKPOINT.config)
    engine = Engine(config, CHECKPOINT, network, num_lanes=num_lanes, holds_ffn=False)
    return engine, Intake(config, network, shared_llm("text")._model.tokens, 1024)


def serve(engine: Engine, shards: list[FFNShard], draw: random.Random) -> None:
    """Steps every lane as soon as it can go on, in random order; checks the blocks whenever a lane ends."""
    steps: dict[int, Generator[FFNCall, Tensor, StepResult]] = {}
    calls: dict[int, FFNCall] = {}

    def resume(number: int, answer: Tensor | None) -> None:
        try:
            calls[number] = steps[number].send(answer)  # type: ignore[arg-type]
        except StopIteration as end:
            del steps[number]
            engine.settle(end.value)
            engine.assert_consistent()

    with torch.inference_mode():
        while engine.has_requests:
            engine.poll()
            idle = [number for number in range(len(engine.lanes)) if number not in steps]
            for number in idle:
                steps[number] = engine.lanes[number].step()
                resume(number, None)
            if calls:
                number = draw.choice(list(calls))
                call = calls.pop(number)
                resume(number, sum(shard.forward(call) for shard in shards))  # type: ignore[arg-type]


@pytest.mark.parametrize(("experts", "slices"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("num_lanes", [1, 2, 3, 5])
def test_golden_answers_over_lanes_and_shards(num_lanes: int, experts: int, slices: int) -> None:
    engine, intake = start(num_lanes)
    shards = [FFNShard.load(CHECKPOINT, torch.float32, piece=piece) for piece in split(8, experts, slices)]
    cases = golden_cases("text")
    requests = [intake.request(case["prompt_token_ids"], GREEDY) for case in cases]
    for request in requests:
        engine.add(request)
    serve(engine, shards, random.Random(num_lanes))
    for case, request in zip(cases, requests, strict=True):
        [answer] = request.sequences
        assert answer.output_token_ids == case["token_ids"]
        told = [place.logprob for place in answer.logprobs]
        assert told == pytest.approx(case["logprobs"], abs=2e-3)


def test_a_lane_without_work_does_not_hold_up_the_others() -> None:
    engine, intake = start(num_lanes=3)
    request = intake.request([5, 6, 8], GREEDY)
    engine.add(request)
    serve(engine, [FFNShard.load(CHECKPOINT, torch.float32)], random.Random(0))
    assert request.is_finished


def finish(step: Generator[FFNCall, Tensor, StepResult], call: FFNCall, shard: FFNShard) -> StepResult:
    """Answers `call` and all that follow it."""
    try:
        while True:
            call = step.send(shard.forward(call))
    except StopIteration as end:
        return end.value


def test_what_is_given_up_in_mid_step_keeps_its_blocks_until_the_step_ends() -> None:
    engine, intake = start(num_lanes=2)
    shard = FFNShard.load(CHECKPOINT, torch.float32)
    request = intake.request([*range(20, 60)], GREEDY)
    [sequence] = request.sequences
    engine.add(request)
    with torch.inference_mode():
        step = engine.lanes[0].step()
        call = next(step)
        engine.abort(request.id)
        assert sequence.blocks
        engine.settle(finish(step, call, shard))
    assert sequence.blocks == []
    assert (sequence.finish_reason, sequence.num_output_tokens) == ("abort", 0)
    engine.assert_consistent()


def test_lanes_that_share_too_few_blocks_all_come_to_an_end() -> None:
    one_token = 4 * 2 * 32 * 4
    engine, intake = start(num_lanes=3, block_size=1, kv_cache_memory_bytes=1024 * one_token)
    requests = [intake.request([20 + i, *range(30, 370)], GREEDY) for i in range(6)]
    for request in requests:
        engine.add(request)
    serve(engine, [FFNShard.load(CHECKPOINT, torch.float32)], random.Random(0))
    assert engine.statistics().preemptions > 0
    assert [request.sequences[0].num_output_tokens for request in requests] == [24] * 6
