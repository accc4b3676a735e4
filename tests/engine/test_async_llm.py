"""Many callers at once: streams, aborts, limits, and an engine that goes on."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from engine_requests import GOLDEN, shared_llm

from step3 import AsyncLLM, RequestOutputKind, SamplingParams
from step3.engine.async_llm import OverloadedError
from step3.engine.config import EngineError
from step3.engine.engine import Engine
from step3.engine.outputs import RequestOutput
from step3.errors import Step3Error

PATIENCE = 60.0
LONG = SamplingParams(temperature=0, max_tokens=900, ignore_eos=True)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


def start(**options: Any) -> AsyncLLM:
    defaults = {"dtype": "float32", "max_model_len": 1024, "max_num_seqs": 4}
    return AsyncLLM(str(GOLDEN / "text"), **{**defaults, **options})


@pytest.fixture
def llm() -> Iterator[AsyncLLM]:
    started = start()
    yield started
    started.shutdown()


def params(kind: RequestOutputKind = RequestOutputKind.CUMULATIVE, **options: Any) -> SamplingParams:
    fields = {"temperature": 0, "max_tokens": 12, "ignore_eos": True, "output_kind": kind}
    return SamplingParams(**{**fields, **options})


async def collect(llm: AsyncLLM, prompt: Any, wanted: SamplingParams, **options: Any) -> list[RequestOutput]:
    return [output async for output in llm.generate(prompt, wanted, **options)]


async def until_idle(llm: AsyncLLM) -> None:
    while True:
        statistics = llm.get_statistics()
        if not statistics.running and not statistics.waiting:
            return
        await asyncio.sleep(0.01)


async def until_ended(llm: AsyncLLM) -> None:
    """Statistics lag behind: those from before a request look idle too, but name none that ended."""
    while not llm.get_statistics().finished:
        await asyncio.sleep(0.01)


def expected(prompt: Any) -> Any:
    return shared_llm("text").generate(prompt, params(), use_tqdm=False)[0].outputs[0]


def test_a_cumulative_stream_grows_to_the_whole(llm: AsyncLLM) -> None:
    outputs = run(collect(llm, [5, 6, 8], params()))
    lengths = [len(output.outputs[0].token_ids) for output in outputs]
    assert lengths == sorted(set(lengths))
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    assert outputs[-1].outputs[0].token_ids == expected([5, 6, 8]).token_ids
    assert outputs[-1].outputs[0].text == expected([5, 6, 8]).text


def test_the_pieces_of_a_stream_make_the_whole(llm: AsyncLLM) -> None:
    outputs = run(collect(llm, [5, 6, 8], params(RequestOutputKind.DELTA, logprobs=1)))
    answers = [answer for output in outputs for answer in output.outputs]
    whole = expected([5, 6, 8])
    assert [token for answer in answers for token in answer.token_ids] == whole.token_ids
    assert "".join(answer.text for answer in answers) == whole.text
    assert sum(len(answer.logprobs or []) for answer in answers) == 12
    assert [answer.finish_reason for answer in answers if answer.finish_reason] == ["length"]


def test_who_wants_only_the_end_gets_only_that(llm: AsyncLLM) -> None:
    [output] = run(collect(llm, [5, 6, 8], params(RequestOutputKind.FINAL_ONLY)))
    assert output.finished
    assert output.outputs[0].token_ids == expected([5, 6, 8]).token_ids


@pytest.mark.parametrize("kind", list(RequestOutputKind))
def test_several_answers_come_in_one_stream(llm: AsyncLLM, kind: RequestOutputKind) -> None:
    wanted = params(kind, temperature=1.0, seed=3, n=3)
    outputs = run(collect(llm, [*range(20, 60)], wanted))
    [whole] = shared_llm("text").generate([[*range(20, 60)]], wanted, use_tqdm=False)
    for index in range(3):
        pieces = [answer for output in outputs for answer in output.outputs if answer.index == index]
        tokens = pieces[-1].token_ids
        if kind is RequestOutputKind.DELTA:
            tokens = [token for piece in pieces for token in piece.token_ids]
            assert [piece.finish_reason for piece in pieces].count("length") == 1
        assert tokens == whole.outputs[index].token_ids


def test_many_callers_get_what_each_would_get_alone(llm: AsyncLLM) -> None:
    prompts = [[*range(20 + i, 30 + 2 * i)] for i in range(12)]

    async def all_at_once() -> list[list[RequestOutput]]:
        return await asyncio.gather(*(collect(llm, prompt, params()) for prompt in prompts))

    for prompt, outputs in zip(prompts, run(all_at_once()), strict=True):
        assert outputs[-1].outputs[0].token_ids == expected(prompt).token_ids


def test_a_bad_request_fails_alone(llm: AsyncLLM) -> None:
    async def together() -> list[Any]:
        work = [collect(llm, prompt, params()) for prompt in ([5], [9999], "")]
        return await asyncio.gather(*work, return_exceptions=True)

    good, out_of_range, empty = run(together())
    assert good[-1].finished
    assert isinstance(out_of_range, Step3Error)
    assert isinstance(empty, Step3Error)


def test_who_stops_listening_frees_everything(llm: AsyncLLM) -> None:
    async def leave_early() -> None:
        stream = llm.generate([5, 6, 8], LONG)
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]
        await until_ended(llm)

    run(leave_early())
    assert llm.get_statistics().finished == {"abort": 1}
    assert llm.get_statistics().kv_cache_usage == 0
    llm._model.engine.assert_consistent()


def test_a_cancelled_task_frees_everything(llm: AsyncLLM) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(collect(llm, [5, 6, 8], LONG))
        while not llm.get_statistics().running:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_idle(llm)

    run(cancel())
    assert llm.get_statistics().finished == {"abort": 1}


def test_an_abort_ends_the_stream_with_what_there_is(llm: AsyncLLM) -> None:
    async def abort_later() -> list[RequestOutput]:
        outputs = []
        async for output in llm.generate([5, 6, 8], LONG, "mine"):
            outputs.append(output)
            await llm.abort("mine")
        return outputs

    output = run(abort_later())[-1]
    assert output.finished
    assert output.outputs[0].finish_reason == "abort"
    assert 1 <= len(output.outputs[0].token_ids) < 900


def test_an_abort_of_nobody_does_nothing(llm: AsyncLLM) -> None:
    async def abort() -> list[RequestOutput]:
        await llm.abort("nobody")
        return await collect(llm, [5], params())

    assert run(abort())[-1].finished


def test_two_requests_cannot_have_one_id(llm: AsyncLLM) -> None:
    async def twice() -> list[Any]:
        work = [collect(llm, [5], params(max_tokens=100), request_id="same") for _ in range(2)]
        return await asyncio.gather(*work, return_exceptions=True)

    results = run(twice())
    errors = [result for result in results if isinstance(result, Step3Error)]
    assert len(errors) == 1
    assert "'same' is being answered already" in str(errors[0])


def test_more_than_may_wait_are_refused_until_there_is_room() -> None:
    llm = start(max_num_seqs=1, max_waiting=1)

    async def crowd() -> list[RequestOutput]:
        tasks = [asyncio.create_task(collect(llm, [5, i], LONG)) for i in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="try again later"):
            await collect(llm, [5], params())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return await collect(llm, [5], params())

    assert run(crowd())[-1].finished
    llm.shutdown()


def test_an_answer_goes_on_from_what_was_generated(llm: AsyncLLM) -> None:
    for wanted in (params(), params(temperature=1.0, seed=5, stop=["zzzz"])):
        whole = run(collect(llm, [5, 6, 8], wanted))[-1].outputs[0]
        rest = run(collect(llm, [5, 6, 8], wanted, output_token_ids=whole.token_ids[:7]))[-1].outputs[0]
        assert rest.token_ids == whole.token_ids
        assert rest.text == whole.text


def test_chats_are_rendered_for_generate(llm: AsyncLLM) -> None:
    async def chat() -> list[RequestOutput]:
        prompt = await llm.render_chat([{"role": "user", "content": "Hello"}])
        return await collect(llm, prompt, params())

    conversation = [{"role": "user", "content": "Hello"}]
    [whole] = shared_llm("text").chat(conversation, params(), use_tqdm=False)
    assert run(chat())[-1].outputs[0].token_ids == whole.outputs[0].token_ids


def test_open_streams_end_with_the_engine() -> None:
    llm = start()

    async def shut_down() -> None:
        async for _ in llm.generate([5, 6, 8], LONG):
            threading.Thread(target=llm.shutdown).start()

    with pytest.raises(EngineError, match="it was shut down"):
        run(shut_down())
    with pytest.raises(EngineError):
        run(collect(llm, [5], params()))
    assert not llm.is_running


def test_an_engine_that_breaks_tells_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = start()

    def broken(self: Engine) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Engine, "step", broken)
    with pytest.raises(EngineError, match="out of luck"):
        run(collect(llm, [5], params()))
    with pytest.raises(EngineError, match="out of luck"):
        run(llm.check_health())
    assert not llm.is_running
    llm.shutdown()


def test_refuses_a_limit_that_is_none() -> None:
    with pytest.raises(EngineError, match="max_waiting must be a whole number"):
        start(max_waiting=-1)
