"""The bundled model's tokenizer: a small byte-level BPE with Step3's special tokens and chat template."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from step3.nano.scenes.sample import completion_text, prompt_text
from step3.nano.scenes.stream import CATEGORIES, samples

BOS, EOS, PAD, BOT, EOT = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
    "<|BOT|>",
    "<|EOT|>",
)
CONTROL_TOKENS = (
    BOS, EOS, PAD, BOT, EOT,
    "<im_start>", "<im_end>", "<im_patch>", "<patch_start>", "<patch_end>", "<patch_newline>",
)  # fmt: skip
# Part of what the model says: decoding must not skip them, or reasoning and calls could not be told apart.
SPOKEN_TOKENS = (
    "<think>", "</think>", "<｜tool_calls_begin｜>", "<｜tool_calls_end｜>",
    "<｜tool_call_begin｜>", "<｜tool_call_end｜>", "<｜tool_sep｜>",
)  # fmt: skip
SPECIAL_TOKENS = (*CONTROL_TOKENS, *SPOKEN_TOKENS)

VOCAB_SIZE = 2048
_ENGLISH_SHARE = 40  # how often the plain text is repeated among the samples


def training_texts(seed: int = 0, count: int = 20_000) -> Iterator[str]:
    """What the vocabulary is learned from: samples of every kind, and some plain English."""
    mix = dict.fromkeys(CATEGORIES, 1.0) | {"tool": 6.0}
    special = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
    for sample in itertools.islice(samples(seed, "train", mix), count):
        yield from special.split(prompt_text(sample) + completion_text(sample))
    english = (resources.files("step3.nano") / "assets" / "english.txt").read_text(encoding="utf-8")
    yield from itertools.repeat(english, _ENGLISH_SHARE)


def train_tokenizer(vocab_size: int = VOCAB_SIZE, seed: int = 0, count: int = 20_000) -> Tokenizer:
    """A byte-level BPE: any text comes back as it was, each digit is a token, special tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(seed, count), trainer)
    # The trainer marks all of them as special; the flag decides whether decoding may skip a token.
    written = json.loads(tokenizer.to_str())
    for token in written["added_tokens"]:
        token["special"] = token["content"] in CONTROL_TOKENS
    return Tokenizer.from_str(json.dumps(written))


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int = 4096) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, as Transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOT,
        "pad_token": PAD,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(chat_template(), encoding="utf-8")


def chat_template() -> str:
    """The Jinja text that turns chat messages, with tools and pictures, into Step3's prompt."""
    return (resources.files("step3.nano") / "assets" / "chat_template.jinja").read_text(encoding="utf-8")
