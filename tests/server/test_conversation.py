import base64

import pytest

from step3.server.conversation import conversation, picture_bytes
from step3.server.errors import RequestFault
from step3.server.protocol import Message

DATA = base64.b64encode(b"picture").decode()


@pytest.mark.parametrize(
    "header",
    [
        "data:image/png;base64,",
        "data:image;base64,",
        "data:image/jpeg;name=a.jpg;base64,",
        "DATA:image/x;base64,",
    ],
)
def test_data_urls_are_decoded(header: str) -> None:
    assert picture_bytes(header + DATA, "url") == b"picture"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.org/a.png", "fetches no pictures"),
        ("http://127.0.0.1/a.png", "fetches no pictures"),
        ("file:///etc/passwd", "fetches no pictures"),
        ("/etc/passwd", "fetches no pictures"),
        ("", "fetches no pictures"),
        ("data:text/html;base64," + DATA, "must look like"),
        ("data:image/png," + DATA, "must look like"),
        ("data:image/png;base64", "must look like"),
        ("data:image/png;base64," + DATA[:-3], "broken or cut off"),
        ("data:image/png;base64,*" + DATA, "broken or cut off"),
        ("data:image/png;base64,ü", "broken or cut off"),
    ],
)
def test_anything_else_is_refused_with_the_field(url: str, said: str) -> None:
    with pytest.raises(RequestFault, match=said) as caught:
        picture_bytes(url, "messages[0]")
    assert (caught.value.status_code, caught.value.param) == (400, "messages[0]")


def test_calls_of_earlier_turns_have_their_arguments_read() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "\\u003c|EOT|>"}'}}
    [message] = conversation([Message(role="assistant", tool_calls=[call])])
    assert message["tool_calls"][0]["function"]["arguments"] == {"a": "<|EOT|>"}


@pytest.mark.parametrize(
    "arguments", ["{", "[1]", '{"a": NaN}', '{"a": 99999999999999999999999}', "[" * 100_000]
)
def test_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    with pytest.raises(RequestFault, match=r"messages\[0\]\.tool_calls"):
        conversation([Message(role="assistant", tool_calls=[call])])


def test_developers_speak_as_the_system() -> None:
    assert conversation([Message(role="developer", content="x")]) == [{"role": "system", "content": "x"}]
