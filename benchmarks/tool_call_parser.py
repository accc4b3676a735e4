"""Reading tool calls: characters per second, and whether twice the text takes twice the time.

    python benchmarks/tool_call_parser.py [--characters 400000] [--repeats 3]

Each text is read whole and one character at a time, at the given length and at half of it. The best of the
repeats counts, in processor time. A growth of 2 is linear time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import track
from rich.table import Table

from step3.server.tool_calls import ToolCallStream, parse

TOOLS = [
    {
        "name": "get_weather",
        "parameters": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    }
]
CALL = (
    '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="get_weather">\n'
    '<steptml:parameter name="city">Tokyo</steptml:parameter>\n'
    '<steptml:parameter name="days">3</steptml:parameter>\n'
    "</steptml:invoke><｜tool_call_end｜>\n"
)
OPEN_VALUE = '<｜tool_calls_begin｜>\n<steptml:invoke name="get_weather"><steptml:parameter name="city">'
TEXTS = {
    "an answer without calls": ("", "The quick brown fox jumps over 13 lazy dogs. "),
    "calls of two parameters": ("<｜tool_calls_begin｜>\n", CALL),
    "one string of HTML": (OPEN_VALUE, '<div class="a">\n  <p>x &lt; y</p>\n</div>\n'),
    "a value that never ends": (OPEN_VALUE, "</steptml:invoke><｜tool_call_end｜> x "),
    "marks broken off": ("", "<｜tool_calls_begin"),
}


def read_by_character(text: str) -> None:
    """Reads `text` as the longest stream that it can come in."""
    stream = ToolCallStream(TOOLS)
    for character in text:
        stream.push(character)
    stream.finish()


def read_whole(text: str) -> None:
    """Reads `text` at once."""
    parse(text, TOOLS)


def best_seconds(read: Callable[[str], None], text: str, repeats: int) -> float:
    """The least processor time that `read` takes for `text`."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        read(text)
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Measures every text both ways and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--characters", type=int, default=400_000, help="length of each text (400000)")
    parser.add_argument("--repeats", type=int, default=3, help="times each text is read (3)")
    options = parser.parse_args()
    if min(options.characters // 2, options.repeats) < 1:
        parser.error("--characters must be 2 or more and --repeats 1 or more")
    table = Table("text", "read", "characters/s", "growth", title=f"{options.characters:,} characters")
    cases = [(name, how) for name in TEXTS for how in ("whole", "by character")]
    for name, how in track(cases, "Reading", console=Console(stderr=True), transient=True):
        head, unit = TEXTS[name]
        text = (head + unit * (options.characters // len(unit) + 1))[: options.characters]
        read = read_whole if how == "whole" else read_by_character
        half = best_seconds(read, text[: len(text) // 2], options.repeats)
        full = best_seconds(read, text, options.repeats)
        table.add_row(name, how, f"{len(text) / full:,.0f}", f"{full / half:.2f}")
    for column in table.columns[2:]:
        column.justify = "right"
    Console().print(table)


if __name__ == "__main__":
    main()
