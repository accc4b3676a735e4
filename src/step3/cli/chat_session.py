"""A chat in the terminal: questions, streamed answers and the commands between them."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from step3.cli.chat_answers import AnswerSource, ChatError, Delta, Picture, Turn
from step3.errors import Step3Error

MAX_PICTURE_BYTES = 64 << 20

# What a model writes may not move the cursor or change the terminal.
_CONTROLS = dict.fromkeys(
    {*range(32), *range(127, 160)} - {ord("\n"), ord("\t")}, "\N{REPLACEMENT CHARACTER}"
)


class ChatSession:
    """One conversation, until the user leaves."""

    def __init__(
        self, console: Console, source: AnswerSource, system: str | None, ask: Callable[[], str]
    ) -> None:
        """
        Args:
            system: a system prompt, None for the model's own.
            ask: reads a line from the user; raises EOFError at the end.
        """
        self._console, self._source, self._ask = console, source, ask
        self._system = system
        self._turns: list[Turn] = []
        self._pictures: list[Picture] = []
        self._commands: dict[str, tuple[str, str, Callable[[str], None]]] = {
            "image": ("FILE …", "pictures for the next question", self._attach),
            "system": ("[TEXT]", "another system prompt; without TEXT the model's own", self._set_system),
            "again": ("", "another answer to the last question", self._again),
            "clear": ("", "forget the conversation", self._clear),
            "save": ("FILE", "write the conversation as JSON, in the form of OpenAI's messages", self._save),
            "help": ("", "this list", self._help),
            "quit": ("", "leave, as Ctrl-D does", self._quit),
        }

    def run(self) -> None:
        """Answers until the input ends or the user leaves."""
        while True:
            try:
                line = self._ask().strip()
            except EOFError:
                self._console.print()
                return
            except KeyboardInterrupt:
                self._console.print("\n[dim]Ctrl-D or /quit leaves.[/]")
                continue
            if not line:
                continue
            try:
                self._take(line)
            except EOFError:
                return
            except Step3Error as error:
                self._console.print("[bold red]error:[/]", Text(str(error)))

    def _take(self, line: str) -> None:
        name, _, rest = line[1:].partition(" ")
        if line.startswith("/") and name in self._commands:
            self._commands[name][2](rest.strip())
        elif line.startswith("/") and name.isalpha():
            raise ChatError(f"there is no command /{name}: /help lists them")
        else:
            if self._turns and self._turns[-1].role == "user":
                # It failed, or was stopped before anything came: it would spoil all that follow.
                self._turns.pop()
            self._turns.append(Turn("user", line, tuple(self._pictures)))
            self._pictures = []
            self._answer()

    def _answer(self) -> None:
        system = [] if self._system is None else [Turn("system", self._system)]
        shown, failure = _ShownAnswer(self._console), None
        try:
            with closing(self._source.answer([*system, *self._turns])) as deltas:  # type: ignore[type-var]
                for delta in deltas:
                    shown.add(delta)
        except KeyboardInterrupt:
            shown.end("stopped")
        except Step3Error as error:
            shown.end(None)
            failure = error
        else:
            shown.end(shown.finish_reason)
        if shown.content:
            self._turns.append(Turn("assistant", shown.content))
        if failure is not None:
            raise failure

    def _attach(self, names: str) -> None:
        try:
            paths = [Path(name).expanduser() for name in shlex.split(names)]
        except ValueError as error:
            raise ChatError(f"/image {names}: {error}") from None
        if not paths:
            raise ChatError("/image needs a file: /image photo.jpg")
        found = [_read_picture(path) for path in paths]
        self._pictures += found
        count = len(self._pictures)
        noun = "picture goes" if count == 1 else "pictures go"
        self._console.print(f"[dim]{count} {noun} with the next question.[/]")

    def _set_system(self, text: str) -> None:
        self._system = text or None
        self._console.print(
            f"[dim]{'The system prompt is set.' if text else 'The system prompt is the model’s own.'}[/]"
        )

    def _again(self, _: str) -> None:
        while self._turns and self._turns[-1].role != "user":
            self._turns.pop()
        if not self._turns:
            raise ChatError("there is no question yet")
        self._answer()

    def _clear(self, _: str) -> None:
        self._turns, self._pictures = [], []
        self._console.print("[dim]Forgotten.[/]")

    def _save(self, name: str) -> None:
        if not name:
            raise ChatError("/save needs a file: /save chat.json")
        path = Path(name).expanduser()
        system = [] if self._system is None else [Turn("system", self._system)]
        messages = [turn.message() for turn in (*system, *self._turns)]
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(messages, file, ensure_ascii=False, indent=1)
        except FileExistsError:
            raise ChatError(f"{path} is there already: choose another name") from None
        except OSError as error:
            raise ChatError(f"{path} cannot be written: {error.strerror}") from None
        self._console.print(f"[dim]{len(messages)} messages in {escape(str(path))}.[/]")

    def _help(self, _: str) -> None:
        table = Table.grid(padding=(0, 2))
        for name, (arguments, what, _run) in self._commands.items():
            table.add_row(Text(f"/{name} {arguments}", style="bold"), Text(what))
        table.add_row(Text("Ctrl-C", style="bold"), Text("stops an answer"))
        self._console.print(table)

    def _quit(self, _: str) -> None:
        raise EOFError


class _ShownAnswer:
    """Prints an answer as it comes: reasoning dimmed, then the text, then what it took."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.content, self.finish_reason = "", None  # type: tuple[str, str | None]
        self._reasoned, self._tokens, self._pieces = False, 0, 0
        self._begin = time.perf_counter()
        self._first: float | None = None
        self._last = self._begin

    def add(self, delta: Delta) -> None:
        now = time.perf_counter()
        if delta.reasoning or delta.content:
            self._first = self._first or now
            self._last = now
            self._pieces += 1
        self._tokens = delta.tokens or self._tokens
        self.finish_reason = delta.finish_reason or self.finish_reason
        if delta.reasoning:
            self._print(delta.reasoning, "dim")
            self._reasoned = True
        if delta.content:
            if self._reasoned and not self.content:
                self._print("\n", "")
            self.content += delta.content
            self._print(delta.content, "")

    def end(self, reason: str | None) -> None:
        if self._first is None:
            if reason == "stopped":
                self._console.print("[dim]stopped[/]")
            return
        self._console.print()
        notes = [f"{(self._first - self._begin) * 1e3:,.0f} ms to first token"]
        # A stopped answer of a server has no usage; its pieces are mostly tokens.
        tokens, seconds = self._tokens or self._pieces, self._last - self._first
        if tokens > 1 and seconds > 0:
            notes.append(f"{(tokens - 1) / seconds:,.0f} tokens/s")
        notes.append(f"{tokens:,} token{'' if tokens == 1 else 's'}")
        if reason == "length":
            notes.append("cut off at the longest answer allowed")
        elif reason == "stopped":
            notes.append("stopped")
        self._console.print(Text(" · ".join(notes), style="dim italic"))

    def _print(self, text: str, style: str) -> None:
        self._console.print(Text(text.translate(_CONTROLS), style=style), end="", soft_wrap=True)


def _read_picture(path: Path) -> Picture:
    if not path.is_file():
        raise ChatError(f"no such picture: {path}")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PICTURE_BYTES + 1)
    except OSError as error:
        raise ChatError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_PICTURE_BYTES:
        raise ChatError(f"{path} has more than {MAX_PICTURE_BYTES >> 20} MiB: send a smaller picture")
    return Picture(path, content)
