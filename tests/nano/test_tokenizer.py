import itertools
import json
from collections.abc import Iterable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from step3.nano.scenes.sample import completion_text, messages, prompt_text, reply
from step3.nano.scenes.stream import CATEGORIES, samples
from step3.nano.tokenizer import SPECIAL_TOKENS, save_tokenizer, train_tokenizer

WEIGHTS = Path(str(resources.files("step3.nano") / "weights"))
START = "<｜begin▁of▁sentence｜>You are a helpful assistant."
OPEN = "<|BOT|>assistant\n<think>\n"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return train_tokenizer(vocab_size=600, count=400)


def prompt(tokenizer: Any, chat: list[dict[str, Any]], **options: Any) -> str:
    options.setdefault("add_generation_prompt", True)
    return tokenizer.apply_chat_template(chat, tokenize=False, **options)


def user(content: Any = "Hi") -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_it_loads_as_a_fast_tokenizer_with_step3s_tokens_first(tokenizer: Any) -> None:
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert len(tokenizer) == 2048
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(18))
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<｜begin▁of▁sentence｜>", "<|EOT|>")
    assert tokenizer.pad_token == "<｜▁pad▁｜>"


def test_special_tokens_are_those_of_the_golden_checkpoints(tokenizer: Any) -> None:
    golden = Path(__file__).parents[1] / "data" / "golden" / "vl" / "tokenizer.json"
    added = json.loads(golden.read_text(encoding="utf-8"))["added_tokens"]
    assert [(t["id"], t["content"]) for t in added] == list(enumerate(SPECIAL_TOKENS))


@pytest.mark.parametrize(
    "text", ["", "héllo wörld", "日本語 😀", "a\n\n  b\t", "x\x00y", "12345", "\u2028", "Ünïcödé №7"]
)
def test_any_text_comes_back(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_each_digit_is_a_token_of_its_own(tokenizer: Any) -> None:
    assert tokenizer.tokenize("47+385=2") == ["4", "7", "+", "3", "8", "5", "=", "2"]
    assert tokenizer.tokenize("10:30")[:2] == ["1", "0"]
    digits = [t for t in tokenizer.get_vocab() if any(c.isdigit() for c in t) and t.isascii()]
    assert sorted(digits) == [*"0123456789", *(t for t in SPECIAL_TOKENS if any(c.isdigit() for c in t))]


def test_special_tokens_are_cut_out_of_text_whole(tokenizer: Any) -> None:
    ids = tokenizer("".join(SPECIAL_TOKENS), add_special_tokens=False)["input_ids"]
    assert ids == list(range(18))


def test_decoding_without_special_tokens_keeps_reasoning_and_calls_apart(tokenizer: Any) -> None:
    text = "why\n</think>\n<｜tool_calls_begin｜>x<｜tool_calls_end｜><|EOT|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.removesuffix("<|EOT|>")


def test_nothing_is_added_to_a_text(tokenizer: Any) -> None:
    assert tokenizer("a").input_ids == tokenizer("a", add_special_tokens=False).input_ids


def test_samples_are_short(tokenizer: Any) -> None:
    lengths = [
        len(tokenizer(prompt_text(s) + completion_text(s)).input_ids)
        for s in itertools.islice(samples(9), 300)
    ]
    assert max(lengths) < 320
    assert sum(lengths) / len(lengths) < 100


def test_training_gives_the_same_tokenizer_again(small: Tokenizer) -> None:
    assert train_tokenizer(vocab_size=600, count=400).to_str() == small.to_str()
    assert small.get_vocab_size() == 600


def test_a_saved_tokenizer_loads_with_its_template(small: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(small, tmp_path / "new", max_length=777)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert loaded.model_max_length == 777
    assert prompt(loaded, [user()]) == f"{START}<|BOT|>user\nHi<|EOT|>{OPEN}"
    assert loaded.decode(loaded("Ünïcödé 42").input_ids) == "Ünïcödé 42"


def test_the_shipped_template_is_the_packages(tokenizer: Any) -> None:
    source = resources.files("step3.nano") / "assets" / "chat_template.jinja"
    assert (WEIGHTS / "chat_template.jinja").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("part", [{"type": "image"}, {"type": "image_url", "image_url": {"url": "a.png"}}])
def test_a_picture_is_one_patch_token_where_it_stands(tokenizer: Any, part: dict[str, Any]) -> None:
    chat = [user([part, {"type": "text", "text": "What is ...?"}])]
    assert prompt(tokenizer, chat) == (f"{START}<|BOT|>user\n<im_patch>What is ...?<|EOT|>{OPEN}")
    chat = [user([{"type": "text", "text": "This "}, part, part, {"type": "text", "text": " here"}])]
    assert prompt(tokenizer, chat) == (f"{START}<|BOT|>user\nThis <im_patch><im_patch> here<|EOT|>{OPEN}")


def test_a_system_message_takes_the_place_of_the_default(tokenizer: Any) -> None:
    for content in ("Be brief.", [{"type": "text", "text": "Be brief."}]):
        chat = [{"role": "system", "content": content}, user()]
        assert prompt(tokenizer, chat) == (f"<｜begin▁of▁sentence｜>Be brief.<|BOT|>user\nHi<|EOT|>{OPEN}")


def test_thinking_can_be_closed_at_once(tokenizer: Any) -> None:
    assert prompt(tokenizer, [user()], enable_thinking=False).endswith(f"<|EOT|>{OPEN}</think>\n")
    assert prompt(tokenizer, [user()], enable_thinking=True).endswith(f"<|EOT|>{OPEN}")
    assert prompt(tokenizer, [user()], add_generation_prompt=False) == f"{START}<|BOT|>user\nHi<|EOT|>"


def test_earlier_reasoning_is_written_where_the_message_carries_it(tokenizer: Any) -> None:
    past = {"role": "assistant", "content": "Hello!"}
    kept = past | {"reasoning_content": "A greeting."}
    assert f"{OPEN}</think>\nHello!<|EOT|>" in prompt(tokenizer, [user(), past, user()])
    assert f"{OPEN}A greeting.\n</think>\nHello!<|EOT|>" in prompt(tokenizer, [user(), kept, user()])


def tool(properties: dict[str, Any], required: Iterable[str] = ()) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": "f", "description": "Does.", "parameters": schema}}


@pytest.mark.parametrize(
    ("definition", "line"),
    [
        (tool({"city": {"type": "string"}}, ["city"]), "f(city: string): Does."),
        (
            tool({"a": {"type": "integer"}, "b": {"type": "number"}}, ["b"]),
            "f(a?: integer, b: number): Does.",
        ),
        (tool({"u": {"type": "string", "enum": ["c", "f"]}}, ["u"]), 'f(u: "c" | "f"): Does.'),
        (
            tool({"q": {"type": "string", "description": "What to find"}}, ["q"]),
            "f(q: string (What to find)): Does.",
        ),
        (
            tool({"l": {"type": "array", "items": {"type": "string"}}}, ["l"]),
            'f(l: {"type": "array", "items": {"type": "string"}}): Does.',
        ),
        (
            tool({"n": {"type": "integer", "enum": [1, 2]}}),
            'f(n?: {"type": "integer", "enum": [1, 2]}): Does.',
        ),
        (tool({}), "f(): Does."),
        ({"name": "bare"}, "bare()"),
    ],
)
def test_a_tool_is_one_line_that_says_its_schema(
    tokenizer: Any, definition: dict[str, Any], line: str
) -> None:
    text = prompt(tokenizer, [user()], tools=[definition])
    assert text == f"{START}\n\nTools:\n{line}<|BOT|>user\nHi<|EOT|>{OPEN}"


def call(arguments: Any) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}


def test_a_call_and_its_result_are_written_as_the_model_writes_them(tokenizer: Any) -> None:
    chat = [user(), call({"city": "Tokyo", "days": 3, "exact": True}), {"role": "tool", "content": "rain"}]
    assert prompt(tokenizer, chat) == (
        f"{START}<|BOT|>user\nHi<|EOT|>{OPEN}</think>\n"
        "<｜tool_calls_begin｜>\n"
        '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="get_weather">\n'
        '<steptml:parameter name="city">Tokyo</steptml:parameter>\n'
        '<steptml:parameter name="days">3</steptml:parameter>\n'
        '<steptml:parameter name="exact">true</steptml:parameter>\n'
        "</steptml:invoke><｜tool_call_end｜>\n"
        "<｜tool_calls_end｜><|EOT|>"
        f"<|BOT|>tool\nrain<|EOT|>{OPEN}"
    )


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"city": "Tokyo"},
    {"text": 'say "a, b: {c}" [d] \\ / \n\t', "empty": "", "n": -1.5, "no": None, "yes": False},
    {"emoji": "😀 é 日本", "nested": {"list": [1, "two, }]", {"deep": '"'}], "t": True}, "last": []},
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_arguments_as_json_text_are_written_like_the_object(
    tokenizer: Any, arguments: dict[str, Any], ascii_only: bool
) -> None:
    as_object = prompt(tokenizer, [user(), call(arguments)])
    # Inside nested values the text stays as the client wrote it.
    text = json.dumps(arguments, ensure_ascii=ascii_only and "nested" not in arguments)
    assert prompt(tokenizer, [user(), call(text)]) == as_object


@pytest.mark.parametrize("category", CATEGORIES)
def test_prompts_written_for_training_are_the_templates(tokenizer: Any, category: str) -> None:
    for sample in itertools.islice(samples(5, mix={category: 1}), 40):
        tools = [dict(one) for one in sample.tools] or None
        asked = messages(sample)
        assert prompt_text(sample) == prompt(tokenizer, asked, tools=tools)
        whole = prompt(tokenizer, [*asked, reply(sample)], tools=tools, add_generation_prompt=False)
        assert prompt_text(sample) + completion_text(sample) == whole


def test_prompts_with_thinking_off_are_the_templates(tokenizer: Any) -> None:
    for sample in itertools.islice(samples(6), 40):
        tools = [dict(one) for one in sample.tools] or None
        quiet = replace(sample, reasoning="")
        asked = messages(quiet)
        assert prompt_text(quiet) == prompt(tokenizer, asked, tools=tools, enable_thinking=False)
        assert "think>" not in completion_text(quiet)
        assert completion_text(sample).endswith(completion_text(quiet))
