"""Thousands of random requests through an engine with hardly any room.

The network is replaced by one without rounding: it writes each token with its position into the real cache,
reads a sequence's whole context back through its blocks, compares it with what the sequence believes, and
makes the next token's logits a function of it. So one wrong block, slot or position is seen in the very step
in which it is used, and an answer equals the one alone exactly or not at all.
"""

import random
import time
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch
from engine_requests import make_llm, text_of
from torch import Tensor

from step3 import LLM, SamplingParams
from step3.engine.batch import Batch, BatchBuilder
from step3.engine.decoding import Decoded
from step3.engine.kv_store import KVStore
from step3.engine.pictures import PictureEncoder
from step3.engine.request import PlacedPicture, Request, Sequence, Status
from step3.engine.scheduler import Scheduled
from step3.ffn import FFNCall
from step3.kernels import attention

VOCABULARY, PATCH = 512, 7
Asked = tuple[Any, SamplingParams, int]

LOGITS = torch.randn(997, VOCABULARY, generator=torch.Generator().manual_seed(0))


def fill_of(picture: PlacedPicture, place: int) -> float:
    """What stands in the cache for a feature of a picture."""
    return 1000.0 + picture.digest[0] * 1000 + place


def context_of(sequence: Sequence, count: int) -> np.ndarray:
    """What the cache should hold of a sequence's tokens and drafts."""
    context = np.array([*sequence.tokens, *sequence.drafts][:count], np.float64)
    for picture in sequence.request.pictures:
        for number, place in enumerate(picture.places):
            if place < count:
                context[place] = fill_of(picture, number)
    return context


def choose(context: np.ndarray) -> int:
    """A row of `LOGITS`, other for any other context."""
    return int((context * (np.arange(len(context)) % 89 + 1)).sum() % 997)


class ExactPictures(PictureEncoder):
    """Features that say which they are."""

    def __init__(self) -> None:
        super().__init__(None, None, max_bytes=400 * 4)  # type: ignore[arg-type]

    def features(self, picture: PlacedPicture) -> Tensor:
        return torch.tensor([[fill_of(picture, i)] for i in range(len(picture.places))])


class ExactNetwork:
    """Stands in for the decoder and for the builder of its batches."""

    def __init__(self, builder: BatchBuilder, store: KVStore) -> None:
        self._builder, self._store = builder, store
        self._step: list[Scheduled] = []

    def build(self, step: list[Scheduled]) -> Batch:
        self._step = step
        return self._builder.build(step)

    def decode(
        self, batch: Batch, *, is_greedy: bool = False, keeps_hidden: bool = False
    ) -> Generator[FFNCall, Tensor, Decoded]:
        keys, values = self._store.layer(0)
        written = torch.zeros(len(batch.tokens), keys.shape[-1])
        written[:, 0] = torch.tensor(batch.tokens)
        for rows, features in batch.features:
            written[torch.from_numpy(rows), 0] = features[:, 0]
        positions = torch.from_numpy(batch.paging.positions())[:, None].expand_as(written)
        slots = torch.from_numpy(batch.paging.slots(self._store.block_size))
        attention.write(keys, values, slots, written, positions)
        hidden = torch.zeros(len(batch.tokens), 1)
        for scheduled, row in zip(self._step, batch.starts, strict=True):
            self._look(scheduled, hidden[row : row + scheduled.num_tokens])
        logits, kept = self.logits(hidden[list(batch.scored)]), hidden if keeps_hidden else None
        if is_greedy:
            return Decoded(None, logits.argmax(-1).tolist(), kept)
        return Decoded(logits, None, kept)
        yield

    def logits(self, hidden: Tensor) -> Tensor:
        return LOGITS[hidden[:, 0].long()].clone()

    def _look(self, scheduled: Scheduled, hidden: Tensor) -> None:
        """Reads a sequence's context back, and writes its rows' choices."""
        sequence, end = scheduled.sequence, scheduled.start + scheduled.num_tokens
        keys, values = self._store.layer(0)
        cached = keys[sequence.blocks].flatten(0, 1)[:end, 0].double().numpy()
        positions = values[sequence.blocks].flatten(0, 1)[:end, 0].numpy()
        expected = context_of(sequence, end)
        assert np.array_equal(cached, expected), f"request {sequence.request.id} reads what it did not write"
        assert np.array_equal(positions, np.arange(end))
        if scheduled.is_last:
            for row in range(scheduled.num_tokens - 1 - len(sequence.drafts), scheduled.num_tokens):
                hidden[row] = choose(cached[: scheduled.start + row + 1])


def exact_llm(**options: Any) -> LLM:
    """The golden model's tokenizer, limits and engine around an exact network."""
    llm = make_llm("vl", max_model_len=400, **options)
    lane = llm.engine.lanes[0]
    lane._builder._pictures = ExactPictures()
    network = ExactNetwork(lane._builder, lane._decoder._store)
    lane._builder, lane._decoder = network, network  # type: ignore[assignment]
    return llm


class Script:
    """Random requests, each made anew as often as it is wanted."""

    def __init__(self, llm: LLM, seed: int) -> None:
        self._intake = llm._model.intake
        self._draw = random.Random(seed)
        self._beginnings = [[self._token() for _ in range(150)] for _ in range(4)]
        self._images = [np.full((30, 30, 3), shade, np.uint8) for shade in range(3)]

    def _token(self) -> int:
        return self._draw.randrange(20, VOCABULARY)

    def ask(self) -> Asked:
        """A prompt, parameters and a priority."""
        draw = self._draw
        beginning = draw.choice(self._beginnings)[: draw.randrange(150)]
        ids = [*beginning, *(self._token() for _ in range(draw.randrange(1, 40)))]
        prompt: Any = ids
        if draw.random() < 0.15:
            # Few places, so that different pictures stand in the same one.
            place = draw.choice((3, 10))
            beginning = self._beginnings[0]
            prompt = {
                "prompt_token_ids": [*beginning[:place], PATCH, *beginning[place:20], self._token()],
                "multi_modal_data": {"image": draw.choice(self._images)},
            }
        elif draw.random() < 0.1:
            prompt = {"prompt_token_ids": ids, "cache_salt": draw.choice("ab")}
        is_greedy = draw.random() < 0.4
        length = draw.randrange(1, 40)
        params = SamplingParams(
            n=1 if is_greedy else draw.choice((1, 1, 1, 2, 3)),
            temperature=0 if is_greedy else draw.choice((0.5, 1.0)),
            top_k=draw.choice((0, 0, 5)),
            seed=draw.randrange(1000),
            max_tokens=length,
            min_tokens=draw.choice((0, 0, length // 2)),
            ignore_eos=draw.random() < 0.5,
            stop_token_ids=[self._token() for _ in range(draw.choice((0, 0, 10)))],
            stop=draw.choice(((), (), ("e", "in"), ("the",))),
            repetition_penalty=draw.choice((1.0, 1.0, 1.3)),
            logprobs=draw.choice((None, None, 2)),
            prompt_logprobs=draw.choice((None, None, None, None, 1)),
        )
        return prompt, params, draw.choice((0, 0, 0, -1, 1))

    def request(self, asked: Asked) -> Request:
        prompt, params, priority = asked
        return self._intake.request(prompt, params, priority=priority)


def draft_some_right(draw: random.Random, sequences: list[Sequence]) -> None:
    """Drafts as a good and a bad guesser would make them."""
    for sequence in sequences:
        if draw.random() < 0.3:
            context = context_of(sequence, len(sequence.tokens))
            for _ in range(draw.randrange(1, 5)):
                best = int(LOGITS[choose(context)].argmax())
                token = best if draw.random() < 0.7 else draw.randrange(20, VOCABULARY)
                sequence.drafts.append(token)
                context = np.append(context, token)


def answers(request: Request) -> list[Any]:
    """All that must not depend on what else is in the engine."""
    told = [
        (s.output_token_ids, text_of(s), s.finish_reason, s.stop_reason, s.logprobs)
        for s in request.sequences
    ]
    return [request.prompt_token_ids, request.prompt_logprobs, told]


def soak(seed: int, count: int, **options: Any) -> tuple[LLM, list[tuple[Request, Asked]]]:
    """Sends `count` random requests through a tight engine, gives some up, and returns all that ended."""
    draw = random.Random(seed)
    # 400 tokens for one sequence: three or four of the usual ones at a time.
    bytes_per_token = 4 * 2 * 32 * 4
    tight = exact_llm(
        kv_cache_memory_bytes=416 * bytes_per_token, max_num_seqs=12, max_num_batched_tokens=48, **options
    )
    engine = tight.engine
    if draw.random() < 0.5:
        engine.lanes[0].scheduler._draft = lambda sequences: draft_some_right(draw, sequences)
    script, ended = Script(tight, seed), []
    running: dict[str, tuple[Request, Asked]] = {}
    while count or engine.has_requests:
        while count and len(running) < 30 and draw.random() < 0.7:
            asked = script.ask()
            request = script.request(asked)
            running[request.id] = (request, asked)
            engine.add(request)
            count -= 1
        if running and draw.random() < 0.02:
            engine.abort(draw.choice(list(running)))
        engine.step()
        engine.assert_consistent()
        for request_id in [one for one, (request, _) in running.items() if request.is_finished]:
            ended.append(running.pop(request_id))
    assert engine.statistics().kv_cache_usage == 0
    assert sum(engine.statistics().finished.values()) == len(ended)
    assert not engine._waiting
    assert not engine.lanes[0].scheduler.running
    assert len(engine.lanes[0].scheduler._seats) == 12
    return tight, ended


def compare_with_alone(ended: list[tuple[Request, Asked]]) -> int:
    """Computes each request that was not given up once more, alone; returns how many there were."""
    roomy = exact_llm(enable_prefix_caching=False)
    script, compared = Script(roomy, 0), 0
    for request, asked in ended:
        assert all(sequence.status is Status.FINISHED for sequence in request.sequences)
        if any(sequence.finish_reason == "abort" for sequence in request.sequences):
            continue
        alone = script.request(asked)
        roomy.engine.add(alone)
        while roomy.engine.has_requests:
            roomy.engine.step()
        assert answers(request) == answers(alone)
        compared += 1
    return compared


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_random_requests_leave_nothing_behind_and_answer_as_if_alone(
    prefix_caching: bool, soak_seconds: float
) -> None:
    begin, seed = time.monotonic(), int(prefix_caching)
    while True:
        llm, ended = soak(seed, 150, enable_prefix_caching=prefix_caching, block_size=(1, 4, 16)[seed % 3])
        assert llm.get_statistics().preemptions > 0
        assert compare_with_alone(ended) > 100
        seed += 2
        if time.monotonic() - begin > soak_seconds:
            return
