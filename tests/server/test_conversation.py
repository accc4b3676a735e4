import asyncio
import base64
from typing import Any

import pytest

from step3.server.conversation import conversation
from step3.server.errors import RequestFault
from step3.server.pictures import FetchLimits, PictureSource
from step3.server.protocol import Message

URL = "data:image/png;base64," + base64.b64encode(b"picture").decode()


def read(*messages: Message, max_pictures: int = 2, max_bytes: int = 20) -> list[dict[str, Any]]:
    async def run() -> list[dict[str, Any]]:
        return await conversation(messages, PictureSource(FetchLimits()), max_pictures, max_bytes)

    return asyncio.run(run())


def seeing(count: int) -> Message:
    part = {"type": "image_url", "image_url": {"url": URL}}
    return Message(role="user", content=[part] * count)


def test_pictures_come_as_their_files_in_order() -> None:
    [message] = read(seeing(2))
    assert message["content"] == [{"type": "image", "image": b"picture"}] * 2


@pytest.mark.parametrize(("options", "status"), [({"max_pictures": 1}, 400), ({"max_bytes": 13}, 413)])
def test_too_many_pictures_are_refused(options: dict[str, int], status: int) -> None:
    with pytest.raises(RequestFault) as caught:
        read(seeing(2), **options)
    assert caught.value.status_code == status


def test_calls_of_earlier_turns_have_their_arguments_read() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "\\u003c|EOT|>"}'}}
    [message] = read(Message(role="assistant", tool_calls=[call]))
    assert message["tool_calls"][0]["function"]["arguments"] == {"a": "<|EOT|>"}


@pytest.mark.parametrize(
    "arguments", ["{", "[1]", '{"a": NaN}', '{"a": 99999999999999999999999}', "[" * 100_000]
)
def test_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    with pytest.raises(RequestFault, match=r"messages\[0\]\.tool_calls"):
        read(Message(role="assistant", tool_calls=[call]))


def test_developers_speak_as_the_system() -> None:
    assert read(Message(role="developer", content="x")) == [{"role": "system", "content": "x"}]
