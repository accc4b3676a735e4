"""tokenizer.json by itself: what Transformers would read, without the seconds that its import takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from step3.checkpoint.bounded_json import read_object
from step3.errors import Step3Error

MAX_BYTES = 64 << 20

_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
# Of tokenizer_config.json: those name special tokens, and these change nothing about the tokens of a text.
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_OTHER = ("tokenizer_class", "model_max_length", "clean_up_tokenization_spaces", "chat_template")
_ADDING_FILES = ("added_tokens.json", "special_tokens_map.json")


class PlainTokenizer:
    """A tokenizer with the few members of Transformers' that text and token ids need.

    Attributes:
        backend_tokenizer: as in Transformers.
    """

    def __init__(self, backend: Tokenizer, bos_token: str | None, eos_token: str | None) -> None:
        self.backend_tokenizer = backend
        self.bos_token = bos_token
        self.eos_token_id = None if eos_token is None else backend.token_to_id(eos_token)

    @classmethod
    def read(cls, folder: Path) -> PlainTokenizer | None:
        """The tokenizer of a folder, or None where Transformers could add to what its tokenizer.json says."""
        file = folder / "tokenizer.json"
        if not file.is_file() or any((folder / name).exists() for name in _ADDING_FILES):
            return None
        try:
            config = read_object(folder / "tokenizer_config.json", MAX_BYTES)
        except (OSError, Step3Error):
            return None
        if config.get("tokenizer_class") not in _CLASSES or set(config) - {*_SPECIAL, *_OTHER}:
            return None
        try:
            backend = Tokenizer.from_file(str(file))
        except Exception:  # tokenizers raises Exception itself; Transformers will say what is wrong
            return None
        if backend.truncation is not None or backend.padding is not None or not _has_special(backend, config):
            return None
        return cls(backend, config.get("bos_token"), config.get("eos_token"))

    def get_vocab(self) -> dict[str, int]:
        """All tokens, as they are written in tokenizer.json."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text."""
        return self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids


def _has_special(backend: Tokenizer, config: Mapping[str, Any]) -> bool:
    """Whether all special tokens of tokenizer_config.json are special in tokenizer.json too."""
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    named = [config[name] for name in _SPECIAL if config.get(name) is not None]
    return all(isinstance(name, str) and name in special for name in named)
