import asyncio
import threading
import time
from typing import Any

import pytest
from scripted_server import DONE, chunk, serving, usage, words

from step3.bench.errors import BenchError
from step3.bench.stream import Endpoint, Sample, get_json, stream

PATH = "/v1/chat/completions"


def sample_of(script: Any, timeout: float = 60) -> Sample:
    with serving(lambda _: script) as server:
        return asyncio.run(stream(Endpoint.of(server.url, PATH), {"x": 1}, timeout))


def test_a_whole_answer_has_its_times_in_order_and_the_servers_count_of_tokens() -> None:
    sample = sample_of(words("one two three four"))
    assert sample.error is None
    assert (sample.prompt_tokens, sample.output_tokens, len(sample.gaps)) == (7, 4, 3)
    assert sample.first is not None
    assert sample.last is not None
    assert sample.started <= sample.first <= sample.last <= sample.ended
    assert sample.tpot == pytest.approx((sample.last - sample.first) / 3)


def test_the_opening_role_is_no_token_and_reasoning_is() -> None:
    held, released = threading.Event(), list[float]()

    def release() -> None:
        released.append(time.perf_counter())
        held.set()

    threading.Timer(0.2, release).start()
    script = [chunk(role="assistant", content=""), held, chunk(reasoning_content="hm"), usage(1, 1), DONE]
    sample = sample_of(script)
    assert sample.error is None
    assert sample.first is not None
    assert sample.first >= released[0]
    assert sample.tpot is None


def test_without_usage_events_are_counted() -> None:
    script = [one for one in words("a b c") if not (isinstance(one, dict) and "usage" in one)]
    sample = sample_of(script)
    assert (sample.error, sample.prompt_tokens, sample.output_tokens) == (None, None, 3)


def test_text_that_looks_like_usage_or_an_error_is_text() -> None:
    text = 'say "usage": {"prompt_tokens": 9} {"error"'
    sample = sample_of([chunk(content=text), chunk(content=text), usage(1, 2), DONE])
    assert (sample.error, sample.output_tokens) == (None, 2)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ((429, "try again later"), "429: try again later"),
        ([chunk(content="a"), {"error": {"message": "engine died"}}, DONE], "in the stream: engine died"),
        ([chunk(content="a"), OSError()], "ended before the answer did"),
        ([chunk(content="a")], "ended before the answer did"),
        ([b"no json"], "JSONDecodeError"),
    ],
)
def test_every_failure_is_told(script: Any, told: str) -> None:
    assert told in (sample_of(script).error or "")


def test_an_answer_that_does_not_end_in_time_is_given_up() -> None:
    held = threading.Event()
    sample = sample_of([chunk(content="a"), held], timeout=0.3)
    held.set()
    assert sample.error == "no whole answer within 0.3 s"


def test_nobody_there_is_an_error_of_the_sample() -> None:
    with serving(lambda _: ()) as server:
        url = server.url
    sample = asyncio.run(stream(Endpoint.of(url, PATH), {}, 5))
    assert "ConnectionRefusedError" in (sample.error or "")
    with pytest.raises(BenchError, match="cannot be asked"):
        asyncio.run(get_json(Endpoint.of(url, "/v1/models"), 5))


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://x:99999"])
def test_urls_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(BenchError, match="--url"):
        Endpoint.of(url, PATH)


def test_a_url_may_end_in_v1_and_have_a_prefix() -> None:
    for url in ("https://host/api/v1", "https://host/api/", "https://host/api"):
        found = Endpoint.of(url, PATH, "k")
        assert (found.port, found.path, found.is_tls) == (443, "/api/v1/chat/completions", True)
    assert b"Authorization: Bearer k\r\n" in found.request({})
