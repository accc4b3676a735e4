import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from scripted_server import DONE, chunk, serving, usage, words
from typer.testing import CliRunner

from step3.cli.chat_answers import ChatError, Delta, Turn
from step3.cli.chat_session import ChatSession
from step3.cli.main import app
from step3.errors import Step3Error

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


class Scripted:
    """Gives the scripts' deltas, one script an answer; an exception in one is raised."""

    name = "scripted"

    def __init__(self, *scripts: Sequence[Any]) -> None:
        self.scripts, self.asked = list(scripts), list[list[Turn]]()
        self.closed = 0

    def answer(self, turns: Sequence[Turn]) -> Iterator[Delta]:
        self.asked.append(list(turns))
        try:
            for item in self.scripts.pop(0):
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.closed += 1


def talk(source: Scripted, *lines: Any, system: str | None = None) -> str:
    """What the terminal shows; an exception among the lines is raised where a line is read."""
    left = iter(lines)

    def ask() -> str:
        line = next(left, None)
        if line is None:
            raise EOFError
        if isinstance(line, BaseException):
            raise line
        return line

    out = io.StringIO()
    ChatSession(
        Console(file=out, width=100, force_terminal=True, highlight=False, color_system="standard"),
        source,
        system,
        ask,
    ).run()
    return out.getvalue()


def said(text: str) -> list[Delta]:
    return [Delta(content=text, tokens=3, finish_reason="stop")]


def test_reasoning_is_dimmed_and_the_conversation_goes_on() -> None:
    source = Scripted(
        [Delta(reasoning="hm"), Delta(content="yes"), Delta(finish_reason="stop")], said("again")
    )
    shown = talk(source, "really?", "sure?")
    assert "\x1b[2mhm\x1b[0m" in shown
    assert "yes" in shown
    assert [(turn.role, turn.text) for turn in source.asked[1]] == [
        ("user", "really?"),
        ("assistant", "yes"),
        ("user", "sure?"),
    ]


def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    source = Scripted([Delta(content="part"), KeyboardInterrupt()], said("more"))
    shown = talk(source, "one", KeyboardInterrupt(), "two")
    assert "stopped" in shown
    assert "more" in shown
    assert source.closed == 2
    assert [turn.text for turn in source.asked[1]] == ["one", "part", "two"]


def test_a_question_that_failed_is_not_asked_again() -> None:
    source = Scripted([ChatError("no room")], [ChatError("no room")], said("fine"))
    shown = talk(source, "one", "/again", "two")
    assert shown.count("no room") == 2
    assert [[turn.text for turn in turns] for turns in source.asked] == [["one"], ["one"], ["two"]]


def test_what_came_before_a_failure_is_part_of_the_conversation() -> None:
    source = Scripted([Delta(content="half"), ChatError("broke off")], said("fine"))
    talk(source, "one", "two")
    assert [turn.text for turn in source.asked[1]] == ["one", "half", "two"]


def test_what_a_model_writes_cannot_drive_the_terminal() -> None:
    shown = talk(Scripted(said("a\x1b]0;owned\x07b\x9bc\rd")), "hi")
    assert "a\N{REPLACEMENT CHARACTER}]0;owned\N{REPLACEMENT CHARACTER}b" in shown
    assert "\x1b]0" not in shown
    assert "\x9b" not in shown
    assert "\r" not in shown


def test_commands_change_what_is_asked(tmp_path: Path) -> None:
    picture = tmp_path / "a picture.png"
    Image.new("RGB", (4, 4)).save(picture)
    kept = tmp_path / "chat.json"
    source = Scripted(said("one"), said("two"), said("three"), said("four"))
    shown = talk(
        source,
        f"/image '{picture}'",
        "what is it?",
        "/system Be brief.",
        "/again",
        f"/save {kept}",
        "/clear",
        "/system",
        "new",
        "/quit",
        "never",
    )
    assert "1 picture goes with the next question" in shown
    assert [turn.role for turn in source.asked[0]] == ["user"]
    assert source.asked[0][0].pictures[0].content == picture.read_bytes()
    assert [turn.role for turn in source.asked[1]] == ["system", "user"]
    assert [(turn.role, turn.text) for turn in source.asked[2]] == [("user", "new")]
    messages = json.loads(kept.read_text())
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[1]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert len(source.asked) == 3


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/nonsense", "/help lists them"),
        ("/image", "needs a file"),
        ("/image nowhere.png", "no such picture: nowhere.png"),
        ("/image 'open", "quotation"),
        ("/save", "needs a file"),
        (f"/save {__file__}", "is there already"),
        ("/again", "there is no question yet"),
    ],
)
def test_wrong_commands_are_named(line: str, told: str) -> None:
    assert told in talk(Scripted(), line)


def test_help_names_every_command() -> None:
    shown = talk(Scripted(), "/help")
    for name in ("image", "system", "again", "clear", "save", "help", "quit"):
        assert f"/{name}" in shown


def invoke(*arguments: str, typed: str) -> Any:
    return CliRunner().invoke(app, ["chat", *arguments], input=typed, env={"COLUMNS": "200"})


def test_a_server_answers_with_its_own_model_and_the_given_parameters() -> None:
    script = [chunk(role="assistant", content=""), chunk(reasoning_content="hm"), *words("good day")]
    with serving(lambda _: script) as server:
        result = invoke(
            "--url", f"{server.url}/v1", "--api-key", "k", "--seed", "3", "--system", "S", typed="hello\n"
        )
    assert result.exit_code == 0, result.output
    assert "good day" in result.output
    assert "2 tokens" in result.output
    [body] = server.asked
    assert (body["model"], body["seed"], server.keys) == ("scripted", 3, ["Bearer k"])
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ((401, "a key is needed"), "the server refused (401): a key is needed"),
        ([chunk(content="a"), {"error": {"message": "engine died"}}], "engine died"),
        ([chunk(content="a"), OSError()], "ended before the answer did"),
        ([chunk(content="a"), usage(1, 1)], "ended before the answer did"),
        ([chunk(content="a"), b"{"], "no JSON"),
    ],
)
def test_a_servers_failures_are_told_and_the_chat_goes_on(script: Any, told: str) -> None:
    with serving(lambda _: script) as server:
        result = invoke("--url", server.url, typed="hello\n/quit\n")
    assert result.exit_code == 0
    assert told in result.output


def test_a_server_that_is_not_there_is_named() -> None:
    with serving(lambda _: [DONE]) as server:
        url = server.url
    result = invoke("--url", url, typed="")
    assert isinstance(result.exception, Step3Error)
    assert f"{url} cannot be reached" in str(result.exception)


@pytest.mark.parametrize("flags", [["--url", "nowhere"], ["--url", "http://x", "checkpoint"]])
def test_bad_options_are_named(flags: list[str]) -> None:
    assert "--url" in str(invoke(*flags, typed="").exception)


def test_a_model_in_this_process_answers_about_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "grey.png"
    Image.new("RGB", (60, 40), (90, 90, 90)).save(picture)
    typed = f"/image {picture}\nWhat is this?\n/image {__file__}\nAnd this?\n"
    result = invoke(str(GOLDEN / "vl"), "--max-tokens", "4", "--temperature", "0", typed=typed)
    assert result.exit_code == 0, result.exception
    assert "4 tokens" in result.output
    assert "no known format" in result.output
