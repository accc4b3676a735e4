import pytest

from step3.model.messages import PromptError, forbid_image_token, normalise, pictures_of


def test_a_message_is_copied_without_its_nones() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": None, "name": "x"}
    assert normalise(message, 0) == {"role": "assistant", "name": "x"}
    assert message["content"] is None


def test_parts_take_one_shape() -> None:
    content = [
        "a",
        {"type": "text", "text": "b"},
        {"type": "image_url", "image_url": {"url": "c.png", "detail": "high"}},
        {"type": "image_url", "image_url": "d.png"},
        {"type": "image_pil", "image_pil": "a picture"},
        {"type": "image", "path": "e.png"},
    ]
    assert normalise({"role": "user", "content": content}, 0)["content"] == [
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
        {"type": "image", "image": "c.png"},
        {"type": "image", "image": "d.png"},
        {"type": "image", "image": "a picture"},
        {"type": "image", "path": "e.png"},
    ]


def test_arguments_of_calls_become_objects() -> None:
    calls = [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"function": {"name": "g", "arguments": {"b": 2}}},
        {"name": "h", "arguments": ""},
        {"name": "i"},
    ]
    assert normalise({"role": "assistant", "tool_calls": calls}, 0)["tool_calls"] == [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
        {"function": {"name": "g", "arguments": {"b": 2}}},
        {"name": "h", "arguments": {}},
        {"name": "i", "arguments": {}},
    ]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("hello", "must be an object"),
        ({"content": "a"}, "role"),
        ({"role": 3, "content": "a"}, "role"),
        ({"role": "user", "content": 3}, "must be text or a list"),
        ({"role": "user", "content": [3]}, "must be an object"),
        ({"role": "user", "content": [{"type": "video", "video": "a"}]}, "text or image"),
        ({"role": "user", "content": [{"type": "text"}]}, "text or image"),
        ({"role": "assistant", "tool_calls": "f"}, "tool_calls must be a list"),
        ({"role": "assistant", "tool_calls": ["f"]}, "name its function"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "name its function"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}, "not valid JSON"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}, "must be an object"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[" * 99_999}]}, "not valid JSON"),
    ],
)
def test_malformed_messages_are_named_by_their_turn(message: object, said: str) -> None:
    with pytest.raises(PromptError, match=f"message 4.*{said}"):
        normalise(message, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "is <im_patch> a token?"},
        {"role": "user", "content": [{"type": "text", "text": "<im_patch>"}]},
        {"role": "user", "content": ["<im_patch>"]},
        {"role": "tool", "content": "x<im_patch>"},
        {"role": "assistant", "reasoning_content": "<im_patch>"},
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": ["<im_patch>"]}}]},
        {
            "role": "assistant",
            "tool_calls": [{"name": "f", "arguments": '{"<im_patch>": "\\u003cim_patch>"}'}],
        },
        {"role": "<im_patch>", "content": ""},
    ],
)
def test_a_typed_image_token_is_refused_wherever_it_stands(message: dict) -> None:
    with pytest.raises(PromptError, match=r"message 2 .*contains the text <im_patch>"):
        normalise(message, 2)


def test_long_values_are_shortened_in_errors() -> None:
    with pytest.raises(PromptError) as raised:
        normalise({"role": "user", "content": [{"type": "audio", "audio": "A" * 10_000}]}, 0)
    assert len(str(raised.value)) < 300


def test_where_a_picture_comes_from_is_not_text() -> None:
    forbid_image_token([{"type": "image", "path": "<im_patch>.png"}], "here")
    with pytest.raises(PromptError, match="here contains"):
        forbid_image_token([{"type": "image", "path": "a.png", "text": "<im_patch>"}], "here")
    with pytest.raises(PromptError, match="a tool contains"):
        forbid_image_token({"function": {"description": "draws <im_patch>"}}, "a tool")


def test_pictures_come_in_the_order_of_the_messages() -> None:
    messages = [
        normalise(message, turn)
        for turn, message in enumerate(
            [
                {"role": "user", "content": [{"type": "image", "image": "a"}, {"type": "image", "url": "b"}]},
                {"role": "assistant", "content": "text"},
                {
                    "role": "user",
                    "content": [{"type": "image", "path": "c"}, "x", {"type": "image", "base64": "AAEC"}],
                },
            ]
        )
    ]
    assert list(pictures_of(messages)) == ["a", "b", "c", bytes([0, 1, 2])]


def test_an_image_part_without_a_picture_is_refused() -> None:
    with pytest.raises(PromptError, match="message 0: an image part"):
        list(pictures_of([{"role": "user", "content": [{"type": "image"}]}]))
