import asyncio

import pytest

from step3.server.engine_client import Call, EngineFailure


def test_a_call_that_takes_too_long_is_ended_in_the_engine() -> None:
    ended: list[str] = []

    async def run() -> None:
        async with Call(lambda: None, lambda: ended.append("abort"), 0.01) as call:
            call.put("item", 1)
            assert await anext(call) == 1
            await anext(call)

    with pytest.raises(EngineFailure, match="within") as caught:
        asyncio.run(run())
    assert (caught.value.kind, ended) == ("late", ["abort"])


def test_a_call_that_has_ended_is_not_ended_again() -> None:
    ended: list[str] = []

    async def run() -> list[int]:
        async with Call(lambda: None, lambda: ended.append("abort"), 60) as call:
            call.put("item", 1)
            call.put("end", None)
            return [item async for item in call]

    assert (asyncio.run(run()), ended) == ([1], [])
