"""`step3 topology` and `step3 trace`: look at a running deployment, and change it, over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from step3.errors import Step3Error

_URL = typer.Option("http://127.0.0.1:8000", help="The server.")
_KEY = typer.Option(None, envvar="STEP3_API_KEY", help="The server's API key, if it asks for one.")
_SECONDS_TO_ANSWER = 120.0
_MAX_BYTES = 1 << 30


def topology(
    url: str = _URL,
    api_key: str | None = _KEY,
    drain: str | None = typer.Option(
        None, help="Let an instance finish what it has and leave: attention:1 or ffn:0."
    ),
    add: str | None = typer.Option(
        None, help="Start one more on the server's host: attention, or ffn:0 for a replica of shard 0."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Show the instances of a running server, where their time goes and what limits them; or change them."""
    console = Console()
    for action, given in (("drain", drain), ("add", add)):
        if given is not None:
            role, number = read_instance(given, needs_number=action == "drain")
            done = _ask(url, "/cluster", api_key, {"action": action, "role": role, "number": number})
            console.print(done["done"])
    if drain is not None or add is not None:
        return
    found = _ask(url, "/cluster", api_key)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    _show(console, found)


def trace(
    out: Path = typer.Option(Path("trace.json"), help="File to write; ui.perfetto.dev opens it."),
    seconds: float = typer.Option(2.0, min=0.01, max=60.0, help="How long to record."),
    url: str = _URL,
    api_key: str | None = _KEY,
) -> None:
    """Write one trace of all instances on one clock: what each lane, wire and FFN instance does when."""
    found = _ask(url, f"/cluster/trace?seconds={seconds}", api_key)
    try:
        out.write_text(json.dumps(found), encoding="utf-8")
    except OSError as error:
        raise Step3Error(f"{out} cannot be written: {error.strerror}") from None
    spans = sum(event["ph"] == "X" for event in found["traceEvents"])
    Console().print(f"{spans:,} spans in [bold]{out}[/]: open it in https://ui.perfetto.dev")


def read_instance(text: str, needs_number: bool) -> tuple[str, int]:
    """`ffn:0` in its parts; without a number 0.

    Raises:
        Step3Error: it is not of that form.
    """
    role, _, number = text.partition(":")
    if role not in ("attention", "ffn") or not (number.isdecimal() or (not number and not needs_number)):
        raise Step3Error(f"an instance is written like attention:1 or ffn:0, found {text[:100]!r}")
    return role, int(number or 0)


def _show(console: Console, found: dict[str, Any]) -> None:
    table = Table("instance", "state", "device", "pid", "does")
    for one in found["attention"]:
        lanes = one["lanes"]
        steps = sum(lane["steps"] for lane in lanes)
        tokens = sum(lane["tokens"] for lane in lanes)
        does = f"{one['running']} answers, {one['waiting']} wait, KV {one['kv_cache_usage']:.0%}"
        if steps:
            does += f", {len(lanes)} lanes of {tokens / steps:.1f} tokens"
        table.add_row(
            f"attention {one['instance']}", one["state"], one["device"] or "", str(one["pid"]), does
        )
    for one in found["ffn"]:
        does = f"shard {one['shard']}, {one['calls']:,} calls in {one['products']:,} products"
        name = f"ffn {one['instance']}"
        table.add_row(name, one["state"], one["device"] or "", str(one["pid"]), does)
    console.print(f"[bold]{found['topology']}[/]" + (f" at {found['address']}" if found["address"] else ""))
    console.print(table)
    restarts = ", ".join(f"{count} {role}" for role, count in sorted(found["restarts"].items()))
    if restarts:
        console.print(f"replaced: {restarts}; requests that went on elsewhere: {found['moved_requests']}")
    console.print(found["limit"])


def _ask(url: str, path: str, key: str | None, body: dict[str, Any] | None = None) -> Any:
    if not url.startswith(("http://", "https://")):
        raise Step3Error(f"--url must be a server's, like http://127.0.0.1:8000, found {url[:100]!r}")
    request = urllib.request.Request(url.rstrip("/") + path)
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS_TO_ANSWER) as response:
            return json.loads(response.read(_MAX_BYTES))
    except urllib.error.HTTPError as error:
        raise Step3Error(f"{url}: {_reason(error)}") from None
    except (OSError, ValueError) as error:
        raise Step3Error(f"{url} does not answer: {getattr(error, 'reason', error)}") from None


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return json.loads(error.read(1 << 20))["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"status {error.code}"
