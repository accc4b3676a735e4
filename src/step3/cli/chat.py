"""`step3 chat`: a conversation in the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from step3.cli.chat_answers import AnswerSource

_ANSWERS = "Answers"
_SERVER = "With a server"
_MODEL = "In this process"
_HISTORY_LINES = 2000


def chat(
    checkpoint: str | None = typer.Argument(
        None, help="A checkpoint's folder or its name on the Hugging Face Hub; left out, the bundled model."
    ),
    url: str | None = typer.Option(
        None, help="A server that speaks OpenAI's API, instead of a model here.", rich_help_panel=_SERVER
    ),
    api_key: str | None = typer.Option(
        None, envvar="STEP3_API_KEY", help="Key that the server asks for.", rich_help_panel=_SERVER
    ),
    model_name: str = typer.Option(
        "", help="What the server calls the model; left out, its first one.", rich_help_panel=_SERVER
    ),
    device: str = typer.Option("cpu", help="Where to compute, as torch names it.", rich_help_panel=_MODEL),
    dtype: str = typer.Option("auto", help="auto, float32, bfloat16 or float16.", rich_help_panel=_MODEL),
    max_model_len: int | None = typer.Option(
        None, min=1, help="Longest conversation in tokens.", rich_help_panel=_MODEL
    ),
    system: str | None = typer.Option(
        None, help="A system prompt in place of the model's own.", rich_help_panel=_ANSWERS
    ),
    max_tokens: int | None = typer.Option(
        None, min=1, help="Longest answer, reasoning included.", rich_help_panel=_ANSWERS
    ),
    temperature: float | None = typer.Option(
        None,
        min=0.0,
        help="0 takes the likeliest token each time; left out, as the model recommends.",
        rich_help_panel=_ANSWERS,
    ),
    top_p: float | None = typer.Option(
        None, min=0.01, max=1.0, help="Sample from this much of the probability.", rich_help_panel=_ANSWERS
    ),
    seed: int | None = typer.Option(
        None, help="For sampling: the same seed gives the same answer.", rich_help_panel=_ANSWERS
    ),
) -> None:
    """Talk with a model: streamed answers, reasoning dimmed, pictures with /image FILE.

    \b
    step3 chat                                   the bundled model, in this process
    step3 chat ./step3-fp8 --device cuda
    step3 chat --url http://127.0.0.1:8000       a server

    /help lists the commands. Ctrl-C stops an answer, Ctrl-D leaves.
    """
    from step3.cli.chat_answers import ChatError
    from step3.cli.chat_session import ChatSession

    if url is not None and checkpoint is not None:
        raise ChatError("give either a checkpoint or --url: a server has its own model")
    given = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    params = {name: value for name, value in given.items() if value is not None}
    console = Console(highlight=False)
    source = _source(console, url, api_key, model_name, checkpoint, params, device, dtype, max_model_len)
    console.print(f"Talking with [bold]{source.name}[/]. /help lists the commands, Ctrl-D leaves.")
    with closing(source), _line_editing() as ask:
        ChatSession(console, source, system, ask).run()


def _source(
    console: Console,
    url: str | None,
    api_key: str | None,
    model_name: str,
    checkpoint: str | None,
    params: dict[str, Any],
    device: str,
    dtype: str,
    max_model_len: int | None,
) -> AnswerSource:
    from step3.cli.chat_answers import ModelAnswers, ServerAnswers

    if url is not None:
        return ServerAnswers(url, api_key, params, model_name)
    options: dict[str, Any] = {"device": device, "dtype": dtype, "max_num_seqs": 1}
    if max_model_len is not None:
        options["max_model_len"] = max_model_len
    with console.status("Loading the model ..."):
        return ModelAnswers(checkpoint, options, params)


@contextmanager
def _line_editing() -> Iterator[Callable[[], str]]:
    """Reads lines with history and editing, where the terminal has them."""
    try:
        import readline
    except ModuleNotFoundError:
        readline = None  # type: ignore[assignment]
    if readline is None or not sys.stdin.isatty():
        yield lambda: input("> ")
        return
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    history = state / "step3" / "chat_history"
    try:
        readline.read_history_file(history)
    except OSError:
        # None yet, or none that may be read.
        readline.clear_history()
    readline.set_history_length(_HISTORY_LINES)
    readline.parse_and_bind("tab: complete")
    readline.set_completer_delims(" ")
    try:
        yield lambda: input("> ")
    finally:
        _keep_history(readline, history)


def _keep_history(readline: Any, history: Path) -> None:
    try:
        history.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(history)
        # Questions are nobody else's.
        history.chmod(0o600)
    except OSError as error:
        Console(stderr=True).print(f"[dim]The history cannot be kept: {error.strerror}[/]")
