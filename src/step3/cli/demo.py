"""`step3 demo`: the bundled model looks at a picture and answers."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from PIL.Image import Image

QUESTIONS = ("Describe the picture.", "How many things are there?", "What is 47 + 38?")
# Columns of the picture in the terminal; a half block shows two pixels, one above the other.
_COLUMNS = 48


def demo(
    question: list[str] = typer.Option([], "--question", "-q", help="Ask this; may be given several times."),
    image: Path | None = typer.Option(None, "--image", "-i", help="Ask about this picture instead."),
    seed: int = typer.Option(7, help="Which picture is drawn."),
    save: Path = typer.Option(Path("step3-demo.png"), help="Where the drawn picture is kept."),
) -> None:
    """Draw a picture, show it here, and let the bundled Step3 answer questions about it."""
    from step3.errors import Step3Error
    from step3.model.image_processing_step3 import Step3ImageProcessor
    from step3.model.pictures import read_picture

    console = Console()
    if image is None:
        picture = drawn_scene(seed)
        picture.save(save)
        console.print(f"A picture drawn for this demo, kept as [bold]{save}[/]:")
    elif image.is_file():
        picture = read_picture(image, Step3ImageProcessor().max_pixels)
    else:
        raise Step3Error(f"no such picture: {image}")
    show(console, picture, question or QUESTIONS)


def drawn_scene(seed: int) -> "Image":
    """A picture with a few coloured things."""
    from step3.nano.scenes.draw import STAGES, draw_scene, render

    return render(draw_scene(Random(seed), STAGES[-1], number=False))


def show(console: Console, picture: "Image", questions: Sequence[str]) -> None:
    """Prints the picture, each question and the bundled model's answer."""
    from step3.cli.answer import load, stream_answer
    from step3.nano.architecture import BUNDLED

    console.print(_half_blocks(picture))
    model, processor = load(str(BUNDLED))
    for question in questions:
        console.print(f"\n[bold]{question}[/]")
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        stream_answer(console, model, processor, messages, max_new_tokens=256, do_sample=False)


def _half_blocks(picture: "Image") -> Text:
    rows = max(2, round(_COLUMNS * picture.height / picture.width / 2) * 2)
    small = picture.convert("RGB").resize((_COLUMNS, rows))
    text = Text()
    for y in range(0, rows, 2):
        for x in range(_COLUMNS):
            upper, lower = ("rgb({},{},{})".format(*_pixel(small, x, at)) for at in (y, y + 1))
            text.append("▀", style=f"{upper} on {lower}")
        text.append("\n")
    return text


def _pixel(picture: "Image", x: int, y: int) -> tuple[int, int, int]:
    red, green, blue = picture.getpixel((x, y))  # type: ignore[misc]
    return red, green, blue
