"""`step3 generate`: one question, one streamed answer."""

from pathlib import Path
from typing import Any

import typer
from rich.console import Console


def generate(
    checkpoint: str | None = typer.Argument(None, help="A checkpoint folder; left out, the bundled model."),
    prompt: str = typer.Option(..., "--prompt", "-p", help="The question."),
    image: list[Path] = typer.Option([], "--image", "-i", help="A picture; may be given several times."),
    system: str | None = typer.Option(None, help="A system message in place of the default one."),
    max_new_tokens: int = typer.Option(1024, min=1, help="Longest answer, reasoning included."),
    temperature: float = typer.Option(0.0, min=0.0, help="0 takes the likeliest token each time."),
    top_p: float = typer.Option(1.0, min=0.01, max=1.0, help="Sample from this much of the probability."),
    seed: int = typer.Option(0, help="For sampling: the same seed gives the same answer."),
) -> None:
    """Answer one question, about pictures or not; the reasoning is shown dimmed.

    Example: step3 generate --image photo.jpg --prompt "What is in this picture?"
    """
    import torch

    from step3.cli.answer import load, stream_answer
    from step3.errors import Step3Error
    from step3.nano.architecture import BUNDLED

    missing = [str(path) for path in image if not path.is_file()]
    if missing:
        raise Step3Error(f"no such picture: {', '.join(missing)}")
    model, processor = load(checkpoint or str(BUNDLED), with_pictures=bool(image))
    content: list[dict[str, Any]] = [{"type": "image", "image": str(path)} for path in image]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [*content, {"type": "text", "text": prompt}]}
    ]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p}
    torch.manual_seed(seed)
    stream_answer(Console(), model, processor, messages, max_new_tokens, **sampling)
