import asyncio
import json
from typing import Any

import pytest
from stand_in import StandIn, answers, client_of, get, post

from step3.server.engine_client import EngineFailure, EngineGone

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            },
        },
    }
]
CALL_TEXT = (
    "Let me see.<｜tool_calls_begin｜>\n<｜tool_call_begin｜>function<｜tool_sep｜>"
    '<steptml:invoke name="weather">\n<steptml:parameter name="city">Tokyo</steptml:parameter>\n'
    '<steptml:parameter name="days">3</steptml:parameter>\n</steptml:invoke><｜tool_call_end｜>\n'
    "<｜tool_calls_end｜>"
)


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def pieces_of(text: str, size: int) -> list[tuple[int, str, str | None]]:
    cut = [text[start : start + size] for start in range(0, len(text), size)]
    return [(0, piece, None) for piece in cut] + [(0, "", "stop")]


def test_an_answer_has_openais_shape_with_reasoning_apart() -> None:
    engine = StandIn(chat=answers((0, "hm\n</think>\nyes", "stop"), in_reasoning=True))
    response = post(engine, CHAT, HI)
    assert response.status_code == 200
    body = response.json()
    [choice] = body["choices"]
    assert choice["message"]["content"] == "yes"
    assert choice["message"]["reasoning_content"] == choice["message"]["reasoning"] == "hm"
    assert (choice["finish_reason"], body["object"], body["model"]) == ("stop", "chat.completion", "step3")
    assert body["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 1,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_stream_gives_what_a_whole_answer_gives_with_calls_and_reasoning(size: int) -> None:
    text = "so\n</think>\n" + CALL_TEXT
    body = {**HI, "tools": TOOLS}
    whole = post(StandIn(chat=answers((0, text, "stop"), in_reasoning=True)), CHAT, body).json()
    engine = StandIn(chat=answers(*pieces_of(text, size), in_reasoning=True))
    chunks = events(post(engine, CHAT, {**body, "stream": True}).text)
    choices = [chunk["choices"][0] for chunk in chunks]
    message = whole["choices"][0]["message"]
    for name in ("content", "reasoning_content", "reasoning"):
        assert "".join(choice["delta"].get(name) or "" for choice in choices) == message[name]
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    assert [call["function"].get("name") for call in calls if "id" in call] == ["weather"]
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert arguments == message["tool_calls"][0]["function"]["arguments"]
    assert json.loads(arguments) == {"city": "Tokyo", "days": 3}
    assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"] == "tool_calls"
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}


def test_usage_comes_last_in_a_stream_if_asked_for() -> None:
    engine = StandIn(chat=answers((0, "a", None), (0, "b", "length")))
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *_, last = events(post(engine, CHAT, {**HI, **options}).text)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 2


def test_a_silent_stream_shows_that_it_lives() -> None:
    class Later(asyncio.Event):
        """Comes when enough comments had time to be sent."""

        async def wait(self) -> Any:
            await asyncio.sleep(0.2)

    engine = StandIn(chat=[*answers((0, "a", None)), Later(), *answers((0, "b", "stop"))[1:]])
    response = post(engine, CHAT, {**HI, "stream": True}, keep_alive_seconds=0.02)
    assert ": keep-alive\n\n" in response.text
    assert len(events(response.text)) == 3


def test_without_tools_markup_of_calls_is_text() -> None:
    body = post(
        StandIn(chat=answers((0, CALL_TEXT, "stop"))), CHAT, {**HI, "tools": TOOLS, "tool_choice": "none"}
    )
    assert body.json()["choices"][0]["message"]["content"] == CALL_TEXT


def test_several_answers_keep_their_numbers() -> None:
    engine = StandIn(chat=answers((1, "one", "stop"), (0, "zero", "stop")))
    choices = post(engine, CHAT, {**HI, "n": 2}).json()["choices"]
    assert [(one["index"], one["message"]["content"]) for one in choices] == [(0, "zero"), (1, "one")]


def test_log_probabilities_have_openais_shape() -> None:
    script = [
        {"in_reasoning": False},
        [1, 0, [[0, "é", 1, 0, "stop", None, [[b"\xc3\xa9", -0.5, [[b"\xc3\xa9", -0.5]]]]]]],
    ]
    engine = StandIn(chat=script)
    body = post(engine, CHAT, {**HI, "logprobs": True, "top_logprobs": 1}).json()
    token = {"token": "é", "logprob": -0.5, "bytes": [0xC3, 0xA9]}
    assert body["choices"][0]["logprobs"]["content"] == [{**token, "top_logprobs": [token]}]
    assert engine.asked[0][1]["params"]["logprobs"] == 1


def test_parameters_reach_the_engine_under_its_names() -> None:
    engine = StandIn(chat=answers((0, "x", "stop")))
    schema = {"type": "object"}
    asked = {
        **HI,
        "temperature": 0,
        "max_completion_tokens": 9,
        "seed": 3,
        "stop": ["a", "b"],
        "logit_bias": {"5": -1},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert post(engine, CHAT, asked).status_code == 200
    [(_, call)] = engine.asked
    expected = {"temperature": 0, "max_tokens": 9, "seed": 3, "stop": ["a", "b"], "logit_bias": {5: -1.0}}
    assert {name: call["params"][name] for name in expected} == expected
    assert call["params"]["structured_outputs"] == {"json": schema}
    assert call["template"] == {"enable_thinking": False}


def test_completions_of_several_prompts_are_numbered_in_order() -> None:
    engine = StandIn(
        complete=[[2, 1, [[0, "a", 1, 0, "stop", None, None], [1, "b", 1, 0, "length", None, None]]]]
    )
    body = post(engine, "/v1/completions", {"prompt": [[1, 2], [3, 4]], "n": 2}).json()
    assert [(one["index"], one["text"]) for one in body["choices"]] == [
        (0, "a"),
        (1, "b"),
        (2, "a"),
        (3, "b"),
    ]
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (4, 4)
    assert sorted(call["prompt"] for _, call in engine.asked) == [[1, 2], [3, 4]]


def test_completions_stream() -> None:
    engine = StandIn(
        complete=[[2, 0, [[0, text, 1, 0, end, None, None]]] for text, end in (("a", None), ("b", "stop"))]
    )
    chunks = events(post(engine, "/v1/completions", {"prompt": "x", "stream": True}).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "ab"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "<|BOT|>user", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}]}, None),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "/etc/passwd"}]}]},
            None,
        ),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 10**9}, "n"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"top_logprobs": 3}, None),
        ({"stream_options": {"include_usage": True}}, None),
        ({"tool_choice": "required"}, None),
        ({"tools": [{"type": "function", "function": {"name": "<|EOT|>"}}]}, "tools[0].function.name"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, None),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"functions": []}, "functions"),
    ],
)
def test_a_request_that_is_wrong_is_refused_in_openais_words(
    change: dict[str, Any], param: str | None
) -> None:
    engine = StandIn(chat=answers((0, "x", "stop")))
    response = post(engine, CHAT, {**HI, **change})
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
    assert not engine.asked


def test_an_unknown_field_is_named_as_openai_names_it() -> None:
    error = post(StandIn(), CHAT, {**HI, "temprature": 1}).json()["error"]
    assert error["message"] == "Unrecognized request argument supplied: temprature"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"NaN", b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    response = post(StandIn(), CHAT, body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_too_large_is_refused() -> None:
    response = post(StandIn(), CHAT, b'{"a": "' + b"x" * 2000 + b'"}', max_body_bytes=1000)
    assert response.status_code == 413


def test_a_body_without_a_length_is_refused_while_it_is_read() -> None:
    taken = []

    async def endless() -> Any:
        while True:
            taken.append(None)
            yield b"x" * 100

    async def send() -> int:
        async with client_of(StandIn(), max_body_bytes=1000) as client:
            headers = {"content-type": "application/json"}
            return (await client.post(CHAT, content=endless(), headers=headers)).status_code

    assert asyncio.run(send()) == 413
    assert len(taken) < 20


def test_another_model_is_not_found() -> None:
    response = post(StandIn(), CHAT, {**HI, "model": "gpt"}, served_model_names=("a", "b"))
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("kind", "status"), [("invalid", 400), ("overloaded", 429), ("unavailable", 503), ("internal", 500)]
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses_has_its_own_status(kind: Any, status: int, stream: bool) -> None:
    engine = StandIn(chat=[{"in_reasoning": False}, EngineFailure(kind, "because")])
    response = post(engine, CHAT, {**HI, "stream": stream})
    assert response.status_code == status
    assert response.json()["error"]["message"] == "because"
    assert ("retry-after" in response.headers) == (status in (429, 503))


def test_a_stream_that_has_begun_ends_with_the_error() -> None:
    engine = StandIn(chat=[*answers((0, "a", None)), EngineGone()])
    *_, last = events(post(engine, CHAT, {**HI, "stream": True}).text)
    assert last["error"]["type"] == "service_unavailable_error"


def test_a_failure_of_the_server_tells_nothing_of_its_inside() -> None:
    response = post(StandIn(chat=[{"in_reasoning": False}, ["nonsense"]]), CHAT, HI)
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "the server failed to answer this request"


def test_too_many_answers_at_once_are_told_to_come_back() -> None:
    async def send() -> list[int]:
        held = asyncio.Event()
        engine = StandIn(chat=[{"in_reasoning": False}, held, *answers((0, "x", "stop"))[1:]])
        async with client_of(engine, max_waiting=1) as client:
            first = asyncio.create_task(client.post(CHAT, json={**HI, "n": 3}))
            while not engine.asked:
                await asyncio.sleep(0)
            refused = await client.post(CHAT, json=HI)
            held.set()
            statuses = [refused.status_code, (await first).status_code]
            engine.scripts["chat"] = answers((0, "x", "stop"))
            return [*statuses, (await client.post(CHAT, json=HI)).status_code]

    assert asyncio.run(send()) == [429, 200, 200]


def test_keys_are_asked_for_everywhere_but_for_health_and_version() -> None:
    keys = {"api_keys": ("one", "two")}
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
        assert get(StandIn(), path, **keys).status_code == 401
    for given in ("Bearer three", "Bearer", "one", "Basic one", "Bearer on"):
        assert get(StandIn(), "/v1/models", {"authorization": given}, **keys).status_code == 401
    assert get(StandIn(), "/v1/models", {"authorization": "Bearer two"}, **keys).status_code == 200
    assert get(StandIn(), "/health", **keys).status_code == 200
    assert get(StandIn(), "/version", **keys).status_code == 200


def test_health_is_that_of_the_engine() -> None:
    engine = StandIn()
    assert get(engine, "/health").status_code == 200
    engine.is_ready = False
    assert get(engine, "/health").status_code == 503
    assert post(engine, CHAT, HI).status_code == 503
    assert "step3_engine_up 0" in get(engine, "/metrics").text


def test_unknown_paths_and_methods_are_answered_in_openais_shape() -> None:
    assert get(StandIn(), "/nothing").json()["error"]["type"] == "not_found_error"
    response = get(StandIn(), CHAT)
    assert (response.status_code, set(response.json())) == (405, {"error"})


def test_other_origins_are_not_let_in() -> None:
    response = get(StandIn(), "/v1/models", {"origin": "https://example.org"})
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_models_are_listed_by_their_names() -> None:
    listed = get(StandIn(), "/v1/models", served_model_names=("a", "org/b")).json()["data"]
    assert [model["id"] for model in listed] == ["a", "org/b"]
    assert (
        get(StandIn(), "/v1/models/org/b", served_model_names=("a", "org/b")).json()["max_model_len"] == 100
    )
    assert get(StandIn(), "/v1/models/c").status_code == 404


def test_a_call_is_left_when_its_answer_is_given() -> None:
    engine = StandIn(chat=answers((0, "x", "stop")))
    post(engine, CHAT, HI)
    post(engine, CHAT, {**HI, "stream": True})
    assert engine.left == ["left", "left"]


MESSAGES = {"model": "step3", "max_tokens": 9, **HI}


def test_anthropics_clients_send_their_key_alone() -> None:
    engine = StandIn(chat=answers((0, "x", "stop")))
    keys: dict[str, Any] = {"api_keys": ("one",)}
    refused = post(engine, "/v1/messages", MESSAGES, {"x-api-key": "two"}, **keys)
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
    assert post(engine, "/v1/messages", MESSAGES, {"x-api-key": "one"}, **keys).status_code == 200


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"temprature": 1}, "temprature"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"tool_choice": {"type": "any"}}, "no tools"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "budget_tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "document"),
        ({"messages": [{"role": "system", "content": "x"}]}, "system"),
        ({"messages": [*HI["messages"], {"role": "assistant", "content": "so "}]}, "white space"),
        ({"messages": [*HI["messages"], {"role": "assistant", "content": []}]}, "text that goes on"),
    ],
)
def test_anthropics_errors_have_its_shape_and_say_what_is_wrong(change: dict[str, Any], said: str) -> None:
    engine = StandIn(chat=answers((0, "x", "stop")))
    response = post(engine, "/v1/messages", {**MESSAGES, **change})
    assert response.status_code == 400
    body = response.json()
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert said in body["error"]["message"]
    assert not engine.asked


def test_a_messages_stream_that_fails_ends_with_an_error_event() -> None:
    engine = StandIn(chat=[*answers((0, "a", None)), EngineGone()])
    text = post(engine, "/v1/messages", {**MESSAGES, "stream": True}).text
    assert text.index("event: message_start") < text.index("event: error")
    assert '"overloaded_error"' in text


def test_a_responses_stream_that_fails_says_so() -> None:
    engine = StandIn(chat=[*answers((0, "a", None)), EngineGone()])
    text = post(engine, "/v1/responses", {"input": "hi", "stream": True}).text
    assert "event: response.failed" in text
    assert "response.completed" not in text


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_is_given_up(stream: bool) -> None:
    engine = StandIn(chat=[EngineFailure("late", "not complete within 1 s")])
    response = post(engine, CHAT, {**HI, "stream": stream}, request_seconds=1)
    assert (response.status_code, response.json()["error"]["type"]) == (408, "timeout_error")


def test_origins_that_are_named_are_let_in() -> None:
    headers = {"origin": "https://a.org", "access-control-request-method": "POST"}
    allowed = {"allowed_origins": ("https://a.org",), "api_keys": ("one",)}
    granted = get(StandIn(), "/health", headers, **allowed).headers["access-control-allow-origin"]
    assert granted == "https://a.org"
    other = get(StandIn(), "/health", {"origin": "https://b.org"}, **allowed)
    assert "access-control-allow-origin" not in other.headers


def test_the_reference_describes_all_paths_and_loads_nothing_from_elsewhere() -> None:
    page = get(StandIn(), "/docs", api_keys=("one",))
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "//" not in page.text.replace("<!doctype html>", "")
    paths = get(StandIn(), "/openapi.json").json()["paths"]
    assert {CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"} <= set(
        paths
    )
    assert "422" not in paths[CHAT]["post"]["responses"]
