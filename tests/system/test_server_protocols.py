"""Clients of every kind, as their makers wrote them, against a server as users start it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from served import Server, picture

anthropic = pytest.importorskip("anthropic")
openai = pytest.importorskip("openai")

TOOL = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Quito"]}, "soon": {"type": "boolean"}},
    "required": ["city", "soon"],
}
# Newer releases of the client leave the parameter out.
GREEDY = {"temperature": 0}
HI: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    one = Server("--api-key", "secret", "--api-key", "other")
    one.http.headers["authorization"] = "Bearer secret"
    yield one
    one.stop()


@pytest.fixture(scope="module")
def claude(server: Server) -> Any:
    return anthropic.Anthropic(base_url=str(server.http.base_url), api_key="secret", max_retries=0)


@pytest.fixture(scope="module")
def gpt(server: Server) -> Any:
    return openai.OpenAI(base_url=f"{server.http.base_url}/v1", api_key="secret", max_retries=0)


def test_anthropics_client_gets_text_alone_unless_it_asks_for_thinking(claude: Any) -> None:
    answer = claude.messages.create(
        model="golden", max_tokens=8, messages=HI, system="Be brief.", extra_body=GREEDY
    )
    assert [block.type for block in answer.content] == ["text"]
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 8)


def test_anthropics_thinking_ends_with_its_budget(claude: Any) -> None:
    def ask(budget: int) -> Any:
        return claude.messages.create(
            model="golden",
            max_tokens=60,
            messages=HI,
            extra_body=GREEDY,
            thinking={"type": "enabled", "budget_tokens": budget},
        )

    short, long = ask(10), ask(30)
    assert [block.type for block in short.content][:2] == ["thinking", "text"]
    assert long.content[0].thinking.startswith(short.content[0].thinking)
    assert len(long.content[0].thinking) > len(short.content[0].thinking)


def test_anthropics_stream_puts_together_what_a_whole_answer_is(claude: Any) -> None:
    asked: dict[str, Any] = {"model": "golden", "max_tokens": 40, "messages": HI, "extra_body": GREEDY}
    asked["thinking"] = {"type": "enabled", "budget_tokens": 12}
    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_message()
    assert [block.type for block in whole.content] == ["thinking", "text"]
    assert streamed.content[0].thinking == whole.content[0].thinking
    assert streamed.content[1].text == whole.content[1].text
    assert (streamed.stop_reason, streamed.usage.output_tokens) == ("max_tokens", 40)
    assert {"message_start", "content_block_start", "content_block_stop", "message_stop"} <= kinds


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_anthropics_tools_are_called_and_their_results_read(claude: Any, choice: Any) -> None:
    asked: dict[str, Any] = {
        "model": "golden",
        "max_tokens": 400,
        "extra_body": GREEDY,
        "tools": [{"name": "weather", "description": "x", "input_schema": TOOL}],
        "tool_choice": {**choice, "disable_parallel_tool_use": True},
    }
    answer = claude.messages.create(messages=HI, **asked)
    with claude.messages.stream(messages=HI, **asked) as stream:
        streamed = stream.get_final_message()
    [call] = [block for block in answer.content if block.type == "tool_use"]
    assert (call.name, answer.stop_reason) == ("weather", "tool_use")
    assert set(call.input) == {"city", "soon"}
    assert [block.input for block in streamed.content if block.type == "tool_use"] == [call.input]
    image = {"type": "base64", "media_type": "image/png", "data": _png()}
    result = [{"type": "text", "text": "sunny"}, {"type": "image", "source": image}]
    turns = [
        *HI,
        {"role": "assistant", "content": answer.content},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": call.id, "content": result},
                {"type": "text", "text": "so?"},
            ],
        },
    ]
    plain = claude.messages.count_tokens(model="golden", messages=HI).input_tokens
    assert claude.messages.count_tokens(model="golden", messages=turns).input_tokens > plain + 169
    asked.update(tool_choice={"type": "none"}, max_tokens=3)
    assert claude.messages.create(messages=turns, **asked).usage.output_tokens == 3


def test_anthropics_count_is_what_a_request_uses(claude: Any) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": _png()}}
    messages: Any = [{"role": "user", "content": [image, {"type": "text", "text": "what?"}]}]
    count = claude.messages.count_tokens(model="golden", messages=messages).input_tokens
    usage = claude.messages.create(model="golden", max_tokens=1, messages=messages).usage
    assert usage.input_tokens + usage.cache_read_input_tokens == count > 169


def test_anthropics_stop_sequences_end_the_answer_and_are_told(claude: Any) -> None:
    asked: dict[str, Any] = {"model": "golden", "messages": HI, "extra_body": GREEDY, "max_tokens": 40}
    text = claude.messages.create(**asked).content[0].text
    stop = text[len(text) // 2 :][:2]
    answer = claude.messages.create(stop_sequences=[stop], **asked)
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
    assert answer.content[0].text == text[: text.index(stop)]


def test_an_answer_may_be_begun_for_the_model(claude: Any, server: Server) -> None:
    begun = [*HI, {"role": "assistant", "content": "I say"}]
    count = claude.messages.count_tokens(model="golden", messages=begun).input_tokens
    assert count > claude.messages.count_tokens(model="golden", messages=HI).input_tokens - 3
    assert claude.messages.create(model="golden", max_tokens=2, messages=begun).usage.output_tokens == 2


def test_anthropics_errors_have_its_classes(claude: Any, server: Server) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        claude.messages.create(model="golden", max_tokens=1, messages=HI, extra_body={"temperature": 9})
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="claude", max_tokens=1, messages=HI)
    stranger = anthropic.Anthropic(base_url=str(server.http.base_url), api_key="x", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(model="golden", max_tokens=1, messages=HI)


def test_openais_responses_stream_what_a_whole_one_says(gpt: Any) -> None:
    asked: dict[str, Any] = {
        "model": "golden",
        "input": "hi",
        "instructions": "Be brief.",
        "max_output_tokens": 300,
        "temperature": 0,
        "reasoning": {"effort": "minimal"},
    }
    whole = gpt.responses.create(**asked)
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    cut = gpt.responses.create(model="golden", input="hi", max_output_tokens=40, temperature=0)
    assert [item.type for item in cut.output] == ["reasoning"]
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert whole.store is False
    assert 0 < whole.usage.output_tokens_details.reasoning_tokens < whole.usage.output_tokens
    with gpt.responses.stream(**asked) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1].response
    assert (last.status, last.output_text) == (whole.status, whole.output_text)
    assert last.output[0].content == whole.output[0].content


def test_openais_responses_call_tools_and_take_their_results(gpt: Any) -> None:
    tools = [{"type": "function", "name": "weather", "parameters": TOOL, "strict": True}]
    asked: dict[str, Any] = {
        "model": "golden",
        "input": [{"role": "user", "content": "hi"}],
        "max_output_tokens": 400,
        "temperature": 0,
        "tools": tools,
        "tool_choice": {"type": "function", "name": "weather"},
        "parallel_tool_calls": False,
        "reasoning": {"effort": "none"},
    }
    answer = gpt.responses.create(**asked)
    [call] = [item for item in answer.output if item.type == "function_call"]
    assert set(json.loads(call.arguments)) == {"city", "soon"}
    with gpt.responses.stream(**asked) as stream:
        streamed = stream.get_final_response()
    assert [one.arguments for one in streamed.output if one.type == "function_call"] == [call.arguments]
    turns = [*asked["input"], *answer.output]
    turns.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    asked.update(input=turns, tool_choice="none", max_output_tokens=3)
    assert gpt.responses.create(**asked).usage.output_tokens == 3


def test_openais_responses_keep_to_a_schema(gpt: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    answer = gpt.responses.create(
        model="golden",
        input="hi",
        max_output_tokens=200,
        reasoning={"effort": "none"},
        text={"format": {"type": "json_schema", "name": "x", "schema": schema}},
    )
    assert isinstance(json.loads(answer.output_text)["n"], int)


@pytest.mark.parametrize(
    "change",
    [
        {"store": True},
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"background": True},
        {"truncation": "auto"},
        {"top_logprobs": 2},
        {"prompt": {"id": "x"}},
        {"tools": [{"type": "web_search"}]},
        {"include": ["message.output_text.logprobs"]},
    ],
)
def test_what_responses_cannot_honour_is_refused_by_name(gpt: Any, change: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match=next(iter(change))):
        gpt.responses.create(model="golden", input="hi", **change)


def test_chat_thinks_as_much_as_it_is_asked_to(gpt: Any) -> None:
    def thoughts(**change: Any) -> int:
        answer = gpt.chat.completions.create(
            model="golden", messages=HI, max_tokens=40, temperature=0, **change
        )
        return answer.usage.completion_tokens_details.reasoning_tokens

    assert thoughts() == 40
    # The token that ends the reasoning counts.
    assert thoughts(extra_body={"thinking_token_budget": 7}) == 8
    for off in (
        {"reasoning_effort": "none"},
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
        {"extra_body": {"thinking_token_budget": 0}},
    ):
        assert thoughts(**off) == 1


def _png() -> str:
    return picture(64, 48)[0]["image_url"]["url"].partition(",")[2]
