"""A server as users start it, with the golden model, and clients of every kind."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import CHAT, HI, MODEL, PATIENCE, Server, picture, until


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.stop()


def test_a_stream_says_what_a_whole_answer_says(server: Server) -> None:
    whole = server.chat(max_tokens=40)["choices"][0]["message"]
    with server.http.stream("POST", CHAT, json={**HI, "max_tokens": 40, "stream": True}) as response:
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    deltas = [json.loads(line)["choices"][0]["delta"] for line in data[:-1]]
    for name in ("content", "reasoning_content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == (whole[name] or "")
    assert whole["reasoning_content"]


@pytest.mark.parametrize("header", ["data:image/png;base64,", "data:image;base64,"])
def test_pictures_are_seen(server: Server, header: str) -> None:
    usage = server.chat(messages=[{"role": "user", "content": picture(64, 48, header)}], max_tokens=2)[
        "usage"
    ]
    assert usage["prompt_tokens"] > 169


def test_control_tokens_that_users_type_are_text(server: Server) -> None:
    def tokens(text: str) -> list[int]:
        body = {"messages": [{"role": "user", "content": text}]}
        return server.http.post("/tokenize", json=body).json()["tokens"]

    quiet, loud = tokens("x"), tokens("x<|EOT|><im_patch></think><|BOT|>")
    vocabulary = json.loads((MODEL / "tokenizer.json").read_text())["added_tokens"]
    controls = {token["id"] for token in vocabulary}
    assert [one for one in loud if one in controls] == [one for one in quiet if one in controls]
    said = server.http.post("/detokenize", json={"tokens": loud}).json()["prompt"]
    assert "x<|EOT|><im_patch></think><|BOT|>" in said
    server.chat(messages=[{"role": "user", "content": "<im_patch>"}], max_tokens=1)


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": picture(400, 400)}]},
        {"messages": [{"role": "user", "content": picture(8, 8, "data:image/png;base64,AAAA")}]},
        {"messages": [{"role": "user", "content": "x" * 3_000_000}]},
        {"messages": [{"role": "user", "content": "a b " * 5_000}]},
        {"temperature": -1},
        {"top_p": 7},
        {"logprobs": True, "top_logprobs": 10_000},
        {"stop_token_ids": [10**9]},
        {"logit_bias": {"999999": 1}},
        {"stop": ["x" * 100_000]},
        {"temperature": 1, "n": 64, "max_tokens": 10**18},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_hostile_requests_are_refused_and_nothing_of_the_inside_is_told(
    server: Server, change: dict[str, Any], stream: bool
) -> None:
    response = server.http.post(CHAT, json={**HI, **change, "stream": stream})
    assert 400 <= response.status_code < 500, response.text[:500]
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert str(MODEL) not in response.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_memory(server: Server, stream: bool) -> None:
    body = {**HI, "max_tokens": 1900, "ignore_eos": True, "stream": stream}
    before = server.aborted()
    with server.http.stream("POST", CHAT, json=body) if stream else _quitting(server, body) as response:
        if stream:
            # Held on to: httpx hangs up when the iterator is gone.
            lines = response.iter_lines()
            next(lines)
            until(lambda: server.metric("num_requests_running") == 1)
    until(lambda: server.aborted() == before + 1)
    until(lambda: server.metric("num_requests_running") == 0)
    assert server.metric("kv_cache_usage_perc") == 0


class _quitting:
    """Sends a request and hangs up when it is being answered."""

    def __init__(self, server: Server, body: dict[str, Any]) -> None:
        self._server, self._body = server, body

    def __enter__(self) -> None:
        client = httpx.Client(base_url=self._server.http.base_url, timeout=0.5)
        with client, pytest.raises(httpx.ReadTimeout):
            client.post(CHAT, json=self._body)

    def __exit__(self, *_: object) -> None:
        return None


def test_openais_client_reads_answers_streams_and_errors(server: Server) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.http.base_url}/v1", api_key="none", max_retries=0)
    messages = HI["messages"]
    whole = client.chat.completions.create(model="golden", messages=messages, max_tokens=8, temperature=0)
    assert whole.usage.completion_tokens == 8
    chunks = list(
        client.chat.completions.create(
            model="golden",
            messages=messages,
            max_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    assert client.models.list().data[0].id == "golden"
    text = client.completions.create(model="golden", prompt="Once", max_tokens=4, logprobs=2, seed=1)
    assert len(text.choices[0].logprobs.tokens) == 4
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="golden", messages=messages, temperature=9)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=messages)


def test_an_engine_that_dies_is_replaced(server: Server) -> None:
    [engine] = re.findall(
        r"\d+", Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    )
    body = {**HI, "max_tokens": 1900, "ignore_eos": True, "stream": True}
    with server.http.stream("POST", CHAT, json=body) as response:
        lines = response.iter_lines()
        next(lines)
        os.kill(int(engine), signal.SIGKILL)
        said = "\n".join(lines)
    assert "service_unavailable_error" in said
    assert "[DONE]" in said
    assert server.http.get("/health").status_code == 503
    assert server.http.post(CHAT, json=HI).status_code == 503
    until(lambda: server.http.get("/health").status_code == 200)
    assert server.chat(max_tokens=3)["usage"]["completion_tokens"] == 3


def test_told_to_stop_it_finishes_what_runs_and_takes_nothing_new(server: Server) -> None:
    body = {**HI, "max_tokens": 300, "ignore_eos": True, "stream": True}
    with server.http.stream("POST", CHAT, json=body) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.terminate()
        time.sleep(0.2)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.http.base_url}/health")
        said = "\n".join(lines)
    assert '"finish_reason":"length"' in said
    assert said.rstrip().endswith("[DONE]")
    assert server.process.wait(PATIENCE) == 0
