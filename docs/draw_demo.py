"""Draws docs/demo.svg: what `step3 demo` shows in a terminal. Run it after the bundled model changes."""

from pathlib import Path

from rich.console import Console

from step3.cli import demo


def main() -> None:
    console = Console(record=True, width=76, force_terminal=True, color_system="truecolor")
    demo.show(console, demo.drawn_scene(seed=7), demo.QUESTIONS)
    Path(__file__).with_name("demo.svg").write_text(console.export_svg(title="make demo"))


if __name__ == "__main__":
    main()
