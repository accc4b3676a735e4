"""`step3 bench`: how fast a server answers under load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.console import Console

if TYPE_CHECKING:
    from step3.bench.load import Load
    from step3.bench.prompts import Asking

Number = TypeVar("Number", int, float)

_LOAD = "Load"
_WORK = "Requests"
_SERVER = "Server"
_OUTPUT = "Output"


def bench(
    url: str = typer.Option("http://127.0.0.1:8000", help="Where the server is.", rich_help_panel=_SERVER),
    api_key: str | None = typer.Option(
        None, envvar="STEP3_API_KEY", help="Key that the server asks for.", rich_help_panel=_SERVER
    ),
    model: str | None = typer.Option(
        None, help="What the server calls the model; left out, its first one.", rich_help_panel=_SERVER
    ),
    endpoint: str = typer.Option("chat", help="chat or completions.", rich_help_panel=_SERVER),
    concurrency: str | None = typer.Option(
        None, help="Requests under way at any time, one run each: 1,4,16.", rich_help_panel=_LOAD
    ),
    rate: str | None = typer.Option(
        None,
        help="Requests a second, at random times (Poisson) whether or not others have ended: 1,2,4.",
        rich_help_panel=_LOAD,
    ),
    trace: Path | None = typer.Option(
        None,
        help="Requests of a JSONL file at their own times and lengths: timestamp (ms) or arrival (s), "
        "input_length, output_length.",
        rich_help_panel=_LOAD,
    ),
    requests: int = typer.Option(64, min=1, max=1_000_000, help="Of each run.", rich_help_panel=_LOAD),
    seconds: float = typer.Option(
        120, min=0.1, max=86400, help="After which a run sends no more.", rich_help_panel=_LOAD
    ),
    warmup: int = typer.Option(
        4, min=0, max=1000, help="Requests before, not counted.", rich_help_panel=_LOAD
    ),
    prompt: str = typer.Option(
        "128",
        help="Tokens of a prompt, the template's included: 128, uniform(64,256) or lognormal(128,0.7).",
        rich_help_panel=_WORK,
    ),
    output: str = typer.Option("64", help="Tokens of an answer, in the same forms.", rich_help_panel=_WORK),
    ignore_eos: bool = typer.Option(
        True, help="Ask for the whole length; not every server knows the field.", rich_help_panel=_WORK
    ),
    temperature: float = typer.Option(0.0, min=0.0, max=2.0, help="Of sampling.", rich_help_panel=_WORK),
    timeout: float = typer.Option(600, min=0.1, help="Seconds for one answer.", rich_help_panel=_WORK),
    seed: int = typer.Option(0, min=0, help="Of lengths, words and times.", rich_help_panel=_WORK),
    as_json: Path | None = typer.Option(
        None, "--json", help="Write all numbers to this file.", rich_help_panel=_OUTPUT
    ),
    plot: Path | None = typer.Option(None, help="Draw them into this PNG.", rich_help_panel=_OUTPUT),
) -> None:
    """Measure TTFT, TPOT and throughput of a server that speaks OpenAI's API.

    TTFT counts from opening the connection to the first token that shows, reasoning included; TPOT is the
    mean from token to token after it. Failed requests are counted apart, with their reasons, and the exit
    code is then 1.

    \b
    step3 bench --concurrency 1,16,64
    step3 bench --rate 2,4,8 --prompt "lognormal(512,0.7)" --output 128 --plot rates.png
    step3 bench --trace mooncake.jsonl --requests 500 --json trace.json
    """
    import asyncio
    import json

    from rich.progress import Progress

    from step3.bench.errors import BenchError
    from step3.bench.load import Plan, run
    from step3.bench.prompts import Asking, fitted
    from step3.bench.report import draw, load_name, results_tables, summary, warnings
    from step3.bench.stream import Endpoint, get_json
    from step3.plan.simulate.requests import ClosedLoop, Lengths
    from step3.plan.workload import parse_contexts

    if endpoint not in ("chat", "completions"):
        raise BenchError(f"--endpoint is chat or completions, found {endpoint!r}")
    if plot is not None and plot.suffix.lower() != ".png":
        raise BenchError(f"--plot writes PNG: name the file so, found {plot}")
    loads = _loads(concurrency, rate, trace)
    is_chat = endpoint == "chat"
    target = Endpoint.of(url, "/v1/chat/completions" if is_chat else "/v1/completions", api_key)
    lengths = Lengths(parse_contexts(prompt), parse_contexts(output))
    errors = Console(stderr=True)

    async def measure() -> tuple[Asking, list[dict[str, Any]]]:
        from random import Random

        name = model or _first_model(await get_json(Endpoint.of(url, "/v1/models", api_key), timeout))
        asking = Asking(name, is_chat, ignore_eos, {"temperature": temperature})
        asking = await fitted(asking, target, timeout, Random(seed))
        if warmup:
            await run(
                Plan(target, asking, lengths, warmup, seconds, timeout, seed + 1), ClosedLoop(min(4, warmup))
            )
        results = []
        plan = Plan(target, asking, lengths, requests, seconds, timeout, seed)
        with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
            for load in loads:
                task = bar.add_task(load_name(load), total=requests)
                results.append(summary(await run(plan, load, lambda task=task: bar.advance(task))))  # type: ignore[misc]
        return asking, results

    asking, results = asyncio.run(measure())
    console = Console()
    console.print(
        f"[bold]{asking.model}[/] at {url}, {'chat' if is_chat else 'completions'}: "
        f"{'the trace’s lengths' if trace else f'prompts of {prompt}, answers of {output} tokens'}",
        highlight=False,
    )
    for table in results_tables(results):
        console.print(table)
    for told in warnings(results):
        console.print(told, style="yellow", markup=False, highlight=False)
    title = (
        f"{asking.model}: prompts of {prompt}, answers of {output} tokens" if trace is None else asking.model
    )
    if as_json is not None:
        asked = {"url": url, "model": asking.model, "endpoint": endpoint, "prompt": prompt, "output": output}
        document = {**asked, "seed": seed, "ignore_eos": ignore_eos, "runs": results}
        _write(as_json, lambda: as_json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8"))
    if plot is not None:
        _write(plot, lambda: draw(results, title, plot))
    if any(result["failed"] for result in results):
        raise typer.Exit(1)


def _loads(concurrency: str | None, rate: str | None, trace: Path | None) -> list[Load]:
    from step3.bench.errors import BenchError
    from step3.plan.simulate.requests import ClosedLoop, OpenLoop, Trace

    if trace is not None:
        if concurrency or rate:
            raise BenchError("--trace has its own times: leave --concurrency and --rate out")
        if not trace.is_file():
            raise BenchError(f"no such trace: {trace}")
        return [Trace(trace)]
    if concurrency is None and rate is None:
        concurrency = "1,4,16"
    closed = [ClosedLoop(count) for count in _numbers("--concurrency", concurrency, int)]
    return [*closed, *(OpenLoop(one) for one in _numbers("--rate", rate, float))]


def _numbers(flag: str, text: str | None, kind: Callable[[str], Number]) -> list[Number]:
    from step3.bench.errors import BenchError

    try:
        return [kind(part) for part in text.split(",")] if text else []
    except ValueError:
        raise BenchError(f"{flag} must be numbers with commas between, like 1,4,16, found {text!r}") from None


def _first_model(listed: Any) -> str:
    from step3.bench.errors import BenchError

    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise BenchError("the server names no model at /v1/models: give --model") from None


def _write(path: Path, write: Callable[[], object]) -> None:
    from step3.bench.errors import BenchError

    try:
        write()
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror}") from None
    Console().print(f"wrote {path}", highlight=False, markup=False)
