"""Words that an output must not hold, as token sequences: the last token is ruled out behind the others."""

from collections.abc import Callable, Sequence

from step3.engine.sampling.errors import ParamsError


def bad_word_ids(words: Sequence[str], encode: Callable[[str], list[int]]) -> list[tuple[int, ...]]:
    """The token sequences that write each word at the start of a text and behind a space.

    As in vLLM the form behind a space counts only where it has as many tokens and begins with another one:
    otherwise it would rule out the space.

    Args:
        encode: text to token ids, without special tokens.

    Raises:
        ParamsError: a word that no token writes.
    """
    sequences: list[tuple[int, ...]] = []
    for word in words:
        bare = tuple(encode(word.lstrip()))
        if not bare:
            raise ParamsError(f"bad_words holds {word!r}, which is no token: leave it out")
        sequences.append(bare)
        spaced = tuple(encode(" " + word.lstrip()))
        if len(spaced) == len(bare) and spaced[0] != bare[0]:
            sequences.append(spaced)
    return sequences


class BadWords:
    """Finds the tokens that would complete a bad word; the time does not grow with the number of words.

    Args:
        sequences: token ids of each word, not empty.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self._completions: dict[tuple[int, ...], list[int]] = {}
        for ids in sequences:
            self._completions.setdefault(tuple(ids[:-1]), []).append(ids[-1])
        self._lengths = sorted({len(prefix) for prefix in self._completions})
        self.reach = self._lengths[-1]
        """How many tokens back a word may have begun."""

    def completions(self, tail: Sequence[int]) -> list[int]:
        """The ids that must not follow an output that ends with `tail`, its last `reach` tokens."""
        banned: list[int] = []
        for length in self._lengths:
            if length <= len(tail):
                banned += self._completions.get(tuple(tail[len(tail) - length :]), ())
        return banned
