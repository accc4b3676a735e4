"""Tokens into text, as they come, without ever showing half a character."""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from typing import Any

from step3.errors import Step3Error


def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet: the character that stands for each byte in a byte-level vocabulary."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {chr(byte): byte for byte in shown}
    table.update({chr(256 + i): byte for i, byte in enumerate(hidden)})
    return table


class TokenTable:
    """The bytes of every token of a byte-level tokenizer, and which tokens are special.

    Attributes:
        longest: bytes of the longest token.
    """

    def __init__(self, tokens: list[bytes], special: frozenset[int]) -> None:
        self.tokens, self.special = tokens, special
        self.longest = max(map(len, tokens))

    @classmethod
    def of(cls, tokenizer: Any) -> TokenTable:
        """The table of a fast tokenizer.

        Raises:
            Step3Error: its tokens do not stand for bytes.
        """
        backend = tokenizer.backend_tokenizer
        decoder = json.loads(backend.to_str())["decoder"] or {}
        if decoder.get("type") != "ByteLevel":
            raise Step3Error(
                f"tokenizer.json: the decoder must be ByteLevel, as Step3's is, found {decoder.get('type')!r}"
            )
        byte_of = _byte_of()
        vocabulary = backend.get_vocab(with_added_tokens=True)
        tokens = [b""] * (max(vocabulary.values()) + 1)
        for text, token in vocabulary.items():
            try:
                tokens[token] = bytes(byte_of[character] for character in text)
            except KeyError:
                tokens[token] = text.encode()
        added = backend.get_added_tokens_decoder()
        return cls(tokens, frozenset(token for token, entry in added.items() if entry.special))

    def bytes_of(self, token: int) -> bytes:
        """Of a token; none for ids that the tokenizer does not know, which a padded vocabulary has."""
        return self.tokens[token] if token < len(self.tokens) else b""

    def text(self, token: int) -> str:
        """A token alone, as log-probabilities show it; half a character is shown as U+FFFD."""
        return self.bytes_of(token).decode("utf-8", "replace")


class Detokenizer:
    """The text of one answer, as its tokens come."""

    def __init__(self, table: TokenTable, skip_special_tokens: bool) -> None:
        self._table = table
        self._hidden = table.special if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, tokens: Sequence[int]) -> str:
        """The text that tokens add: whole characters; the bytes of an unfinished one wait for more.

        Bytes that no continuation can make a character of become U+FFFD, as in the tokenizer's `decode`.
        """
        bytes_of, hidden = self._table.bytes_of, self._hidden
        return self._decoder.decode(b"".join([bytes_of(token) for token in tokens if token not in hidden]))
