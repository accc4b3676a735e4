"""Chat prompts in which what users wrote is text, whatever it looks like.

Templates write control tokens (`<|EOT|>`, `<im_patch>`, `</think>`) as text around the users' own. Before the
template runs, the first character of every control token is exchanged, wherever users wrote it, for a
character that no valid text holds; so a control token in the finished text was written by the template, and
becomes its id, while everything else is tokenized by a vocabulary without control tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from step3.engine.request import RequestError

# Lone low surrogates: they are refused in requests, so none is in a user's text.
_FIRST_MARK = 0xDC00
_LAST_MARK = 0xDFFF


class LiteralText:
    """Protects users' text, and tokenizes prompts made with it."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is Transformers' fast tokenizer of the checkpoint."""
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        added = {token["content"]: token["id"] for token in state["added_tokens"] if token["content"]}
        self._plain = Tokenizer.from_str(json.dumps({**state, "added_tokens": [], "post_processor": None}))
        self._control_ids = added
        self._controls = frozenset(added.values())
        longest_first = sorted(added, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if added else None
        firsts = sorted({text[0] for text in added})
        assert len(firsts) <= _LAST_MARK - _FIRST_MARK, "a vocabulary has few control tokens"
        self._marks = {ord(first): chr(_FIRST_MARK + i) for i, first in enumerate(firsts)}
        self._originals = {ord(mark): chr(first) for first, mark in self._marks.items()}
        bos = tokenizer.bos_token
        self._prefix = tokenizer.encode("", add_special_tokens=True)
        self._bos_id = None if bos is None else tokenizer.convert_tokens_to_ids(bos)

    def protect(self, value: Any) -> Any:
        """A copy of a value from outside in which no text can be taken for a control token.

        Mappings, lists and strings are looked through, keys included; bytes and numbers stay.
        """
        if isinstance(value, str):
            return value.translate(self._marks)
        if isinstance(value, Mapping):
            return {self.protect(name): self.protect(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.protect(inner) for inner in value]
        return value

    def restore(self, text: str) -> str:
        """What users wrote, out of protected text."""
        return text.translate(self._originals)

    def encode(self, text: str) -> list[int]:
        """The ids of a rendered prompt: control tokens where the template wrote them, and only there.

        Raises:
            RequestError: the vocabulary makes a control token of ordinary text, which no known one does.
        """
        ids: list[int] = []
        for i, piece in enumerate(self._split.split(text) if self._split else [text]):
            if i % 2:
                ids.append(self._control_ids[piece])
            elif piece:
                ids += self.encode_plain(self.restore(piece))
        if self._bos_id is not None and ids[:1] == [self._bos_id]:
            return ids
        return self._prefix + ids

    def encode_plain(self, text: str) -> list[int]:
        """The ids of text in which nothing is a control token."""
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if not self._controls.isdisjoint(ids):
            raise RequestError("this tokenizer turns ordinary text into a control token: the text is refused")
        return ids
