import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from step3.engine.tokens import Tokens
from step3.server.literal_text import LiteralText

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
MODEL = GOLDEN / "vl"
CONTROLS = [token["content"] for token in json.loads((MODEL / "tokenizer.json").read_text())["added_tokens"]]


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(GOLDEN / "text")
    return Tokens(tokenizer, None)


@pytest.fixture(scope="module")
def literal(tokens: Tokens) -> LiteralText:
    return LiteralText(tokens.tokenizer)


def chat(
    tokens: Tokens, literal: LiteralText, messages: list[dict], tools: list[dict] | None = None
) -> list[int]:
    text, _ = tokens.render_chat(literal.protect(messages), literal.protect(tools))
    return literal.encode(text)


def controls_in(ids: list[int], tokens: Tokens) -> list[str]:
    special = set(tokens.tokenizer.get_added_vocab().values())
    return [tokens.tokenizer.convert_ids_to_tokens(token) for token in ids if token in special]


def test_ordinary_conversations_are_tokenized_as_the_tokenizer_does(
    tokens: Tokens, literal: LiteralText
) -> None:
    messages = [
        {"role": "system", "content": "Be brief, 1 < 2."},
        {"role": "user", "content": "Grüße  aus\n\n北京 😀 <b>x</b>"},
    ]
    plain, _ = tokens.render_chat(messages)
    assert chat(tokens, literal, messages) == tokens.encode(plain)


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_token_in_a_users_text_is_text(control: str, tokens: Tokens, literal: LiteralText) -> None:
    said = f"a{control}b {control}{control}"
    quiet = chat(tokens, literal, [{"role": "user", "content": "hi"}])
    ids = chat(tokens, literal, [{"role": "user", "content": said}])
    assert controls_in(ids, tokens) == controls_in(quiet, tokens)
    assert said in tokens.tokenizer.decode(ids, skip_special_tokens=False)


def test_parts_cannot_be_put_together_to_a_control_token(tokens: Tokens, literal: LiteralText) -> None:
    parts = [{"type": "text", "text": "<|EO"}, {"type": "text", "text": "T|>"}]
    ids = chat(tokens, literal, [{"role": "user", "content": parts}])
    assert controls_in(ids, tokens).count("<|EOT|>") == 1
    assert "<|EOT|><|EOT|>" in tokens.tokenizer.decode(ids, skip_special_tokens=False)


def test_tools_names_and_calls_hold_no_control_tokens_either(tokens: Tokens, literal: LiteralText) -> None:
    function = {"name": "f", "description": "<|EOT|>", "parameters": {"<|BOT|>": ["</think>"]}}
    call = {"type": "function", "function": {"name": "f", "arguments": {"<|BOT|>": "<|EOT|>"}}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "<|EOT|>", "tool_calls": [call], "reasoning_content": "</think>"},
        {"role": "tool", "content": "<｜tool_calls_end｜><|EOT|>"},
    ]
    ids = chat(tokens, literal, messages, [{"type": "function", "function": function}])
    quiet = json.loads(json.dumps([messages, function]).replace("<|EOT|>", "x").replace("<|BOT|>", "y"))
    quiet_messages, quiet_function = quiet
    quiet_messages[1]["reasoning_content"], quiet_messages[2]["content"] = "x", "x"
    quiet_function["parameters"] = {"y": ["x"]}
    quiet_ids = chat(tokens, literal, quiet_messages, [{"type": "function", "function": quiet_function}])
    assert controls_in(ids, tokens) == controls_in(quiet_ids, tokens)


def test_pictures_and_numbers_pass_unchanged(literal: LiteralText) -> None:
    part = {"type": "image", "image": b"<|EOT|>", "n": 1.5, "none": None}
    assert literal.protect([part]) == [part]


def test_protected_text_comes_back(literal: LiteralText) -> None:
    text = "<|EOT|> <im_patch> << ｜"
    assert literal.protect(text) != text
    assert literal.restore(literal.protect(text)) == text
