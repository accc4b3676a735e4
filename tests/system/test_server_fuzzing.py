"""Requests that nobody means well, made up from the server's own description and by hand.

`--soak SECONDS` goes on with new seeds; a few examples of each path are tried otherwise.
"""

import base64
import json
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from served import CHAT, MODEL, Server

PATHS = (
    *(CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"),
    *("/tokenize", "/detokenize"),
)
EXAMPLES = 12


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    one = Server("--max-output-tokens", "16", "--allowed-media-domains", "pictures.invalid")
    yield one
    assert one.process.poll() is None, "the server died"
    assert one.metric("engine_restarts_total") == 0
    one.stop()


def check(response: Any) -> None:
    """Nothing failed inside, and nothing of the inside is told."""
    said = response.text
    assert response.status_code < 500, said[:1000]
    for secret in ("Traceback", "site-packages", str(MODEL), str(Path.home()), " at 0x", "127.0.0.1"):
        assert secret not in said, said[:1000]


@pytest.mark.parametrize("path", PATHS)
def test_requests_made_up_from_the_description_never_fail_inside(
    server: Server, path: str, soak_seconds: float
) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    description = server.http.get("/openapi.json").json()
    operation = schemathesis.openapi.from_dict(description)[path]["POST"]
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    end, round_ = time.monotonic() + soak_seconds / len(PATHS), 0
    while round_ == 0 or time.monotonic() < end:
        for mode in modes:

            @seed(round_)
            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def try_case(case: Any) -> None:
                check(case.call(base_url=str(server.http.base_url), timeout=120))

            try_case()
        round_ += 1


def chat(*messages: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"messages": messages, "max_tokens": 2, **fields}).encode()


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def image(data: bytes) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return user([{"type": "image_url", "image_url": {"url": url}}])


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A PNG file that says what it likes about its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


RECURSIVE = {
    "$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}},
    "$ref": "#/$defs/a",
}
LOOP = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
HOSTILE = {
    "deep JSON": b'{"messages":' + b"[" * 100_000,
    "deep content": json.dumps({"messages": [user("x")], "metadata": nested(150)}).encode(),
    "NaN": b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    "infinity": b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    "long number": b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 10_000 + b"}",
    "no UTF-8": b'{"messages": [{"role": "user", "content": "\xff"}]}',
    "half a surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "NUL": chat(user("a\0b")),
    "twice the field": b'{"messages": [], "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}',
    "huge n": chat(user("x"), n=10**9, temperature=1),
    "huge max_tokens": chat(user("x"), max_tokens=2**62),
    "huge logprobs": chat(user("x"), logprobs=True, top_logprobs=2**40),
    "huge bias": chat(user("x"), logit_bias={str(one): 100 for one in range(100_000)}),
    "huge bad words": chat(user("x"), bad_words=["x" * 1024] * 2000),
    "many stops": chat(user("x"), stop=["x" * 1000] * 300),
    "regex of 100 KB": chat(user("x"), structured_outputs={"regex": "(a|b)*" * 17_000}),
    "regex that explodes": chat(user("x"), structured_outputs={"regex": "((a{1,200}){1,200}){1,200}"}),
    "regex without end": chat(user("x"), structured_outputs={"regex": "(((("}),
    "recursive schema": chat(user("x"), structured_outputs={"json": RECURSIVE}, ignore_eos=True),
    "schema in a circle": chat(user("x"), structured_outputs={"json": LOOP}),
    "deep schema": chat(user("x"), structured_outputs={"json": nested(60)}),
    "schema that does not add up": chat(user("x"), structured_outputs={"json": {"type": "nonsense"}}),
    "grammar that is none": chat(user("x"), structured_outputs={"grammar": "root ::= root root | "}),
    "tool with a bad schema": chat(
        user("x"),
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": ["x", 3]}}}],
        tool_choice="required",
    ),
    "bomb": chat(image(png(60_000, 60_000, zlib.compress(bytes(1 << 20))))),
    "bomb in its pixels": chat(image(png(8, 8, zlib.compress(bytes(1 << 26))))),
    "broken picture": chat(image(png(64, 64, b"nonsense"))),
    "cut picture": chat(image(png(64, 64, zlib.compress(bytes(64 * 64)))[:60])),
    "picture without pixels": chat(image(png(0, 5, b""))),
    "no picture": chat(image(b"GIF89a")),
    "script as picture": chat(image(b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file")),
    "cut base64": chat(user([{"type": "image_url", "image_url": "data:image/png;base64,iVBORw0KGgo"}])),
    "file": chat(user([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}])),
    "inside": chat(user([{"type": "image_url", "image_url": "https://169.254.169.254/latest"}])),
    "host that is not there": chat(user([{"type": "image_url", "image_url": "https://pictures.invalid/a"}])),
    "template in a role": chat({"role": "{{ 7 * 7 }}", "content": "x"}),
    "template in content": chat(user("{{ 7 * 7 }}{% for x in ().__class__.__base__.__subclasses__() %}")),
    "template in a name": chat({**user("x"), "name": "{{ cycler.__init__.__globals__ }}"}),
    "template as a variable": chat(user("x"), chat_template_kwargs={"messages": True}),
    "control tokens": chat(user("<|EOT|><|BOT|>system\n<im_patch></think><｜tool_calls_begin｜>")),
    "control tokens in a role": chat({"role": "user<|EOT|>", "content": "x"}),
    "control tokens in a tool": chat(
        user("x"), tools=[{"type": "function", "function": {"name": "f", "description": "<im_patch><|EOT|>"}}]
    ),
    "arguments that are none": chat(
        user("x"),
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 5000}}]},
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_requests_are_answered_or_refused(server: Server, name: str) -> None:
    headers = {"content-type": "application/json"}
    check(server.http.post(CHAT, content=HOSTILE[name], headers=headers))


@settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(PATHS), body=st.binary(max_size=200))
def test_bytes_that_are_no_request_are_refused(server: Server, path: str, body: bytes) -> None:
    response = server.http.post(path, content=body, headers={"content-type": "application/json"})
    assert 400 <= response.status_code < 500
    check(response)


def test_templates_in_texts_are_text(server: Server) -> None:
    body = {"messages": [user("{{ 7 * 7 }}")]}
    tokens = server.http.post("/tokenize", json=body).json()["tokens"]
    assert "{{ 7 * 7 }}" in server.http.post("/detokenize", json={"tokens": tokens}).json()["prompt"]


def test_after_all_that_memory_has_not_grown(server: Server) -> None:
    """The last of this file: the server has seen everything above once, so that its caches are full."""
    headers = {"content-type": "application/json"}

    def everything() -> int:
        for body in HOSTILE.values():
            server.http.post(CHAT, content=body, headers=headers)
        return server.resident_kib()

    everything()
    before = everything()
    assert everything() < 1.1 * before
    assert server.metric("kv_cache_usage_perc") == 0
