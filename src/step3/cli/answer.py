"""Streams an answer to the terminal: reasoning dimmed, the rest as it comes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from step3.model.processing_step3 import Step3Processor

_END_OF_REASONING = "</think>"


def load(checkpoint: str, with_pictures: bool = False) -> "tuple[PreTrainedModel, Step3Processor]":
    """The network and its processor, as a checkpoint folder holds them.

    Raises:
        Step3Error: it is not there, not a Step3 checkpoint, or has no vision tower when pictures are given.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from step3.errors import Step3Error
    from step3.model.processing_step3 import Step3Processor

    try:
        with _quiet():
            config = AutoConfig.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise Step3Error(f"cannot open the checkpoint {checkpoint}: {error}") from None
    if not config.model_type.startswith("step3_"):
        raise Step3Error(f"{checkpoint} is not a Step3 checkpoint: its model_type is {config.model_type!r}")
    if with_pictures and config.model_type != "step3_vl":
        raise Step3Error(f"{checkpoint} has no vision tower: leave the pictures out, or give a step3_vl one")
    with _quiet():
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint, config=config, torch_dtype="auto", device_map="auto"
        )
        return model.eval(), Step3Processor.from_pretrained(checkpoint)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Transformers' log and progress bars out of the answer, and leaves both as they were."""
    from transformers import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


def stream_answer(
    console: Console,
    model: "PreTrainedModel",
    processor: "Step3Processor",
    messages: Sequence[dict[str, Any]],
    max_new_tokens: int,
    **sampling: Any,
) -> str:
    """Prints the answer to `messages` as it is written; returns it whole, reasoning included."""
    from transformers import TextIteratorStreamer

    inputs = processor.apply_chat_template(
        list(messages), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    failed: list[BaseException] = []

    def generate() -> None:
        try:
            model.generate(**inputs, streamer=streamer, max_new_tokens=max_new_tokens, **sampling)
        except BaseException as error:
            failed.append(error)
            streamer.end()

    writer = Thread(target=generate, daemon=True)
    writer.start()
    written, reasoning = "", True
    for piece in streamer:
        written += piece
        if reasoning and _END_OF_REASONING in written:
            reasoning = False
            thought, _, piece = piece.partition(_END_OF_REASONING)
            console.print(Text(thought, style="dim"), end="")
            piece = piece.lstrip("\n")
        console.print(Text(piece, style="dim" if reasoning else ""), end="", soft_wrap=True)
    console.print()
    writer.join()
    if failed:
        raise failed[0]
    return written
