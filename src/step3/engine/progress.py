"""What a new token does to a sequence: it may be the last, and its text can be shown."""

from __future__ import annotations

from collections.abc import Iterable

from step3.engine.request import RequestError, Sequence
from step3.engine.sampling.logprobs import TokenLogprobs
from step3.engine.sampling.sampler import NO_TOKEN


def advance(sequence: Sequence, tokens: list[int], logprobs: list[TokenLogprobs] | None, now: float) -> bool:
    """Appends what was sampled, up to the token that ends the sequence.

    Args:
        now: the time, on the clock of `time.monotonic`.

    Returns:
        Whether it has ended; `finish_reason` and `stop_reason` say why. A sequence that was given up during
        the step stays as it is.
    """
    if sequence.finish_reason is not None:
        return False
    sequence.last_token_time = now
    if sequence.first_token_time is None:
        sequence.first_token_time = now
    for i, token in enumerate(tokens):
        if token == NO_TOKEN:
            sequence.finish_reason = "error"
            sequence.request.error = RequestError(
                sequence.sampling.failure
                or "no token could be chosen: the logits are NaN, or the parameters allow none"
            )
            return True
        sequence.tokens.append(token)
        sequence.sampling.append(token)
        if logprobs is not None:
            sequence.logprobs.append(logprobs[i])
            sequence.cumulative_logprob += logprobs[i].logprob
        if _ends(sequence, token):
            return True
    return False


def replay(sequence: Sequence, tokens: Iterable[int]) -> None:
    """Appends what was generated before, somewhere else; the sequence may have ended with it."""
    for token in tokens:
        sequence.tokens.append(token)
        sequence.sampling.append(token)
        if _ends(sequence, token):
            return


def _ends(sequence: Sequence, token: int) -> bool:
    """Whether the token, the last one, ends the sequence."""
    length = len(sequence.tokens)
    if token in sequence.stop_tokens and length >= sequence.shortest:
        if not sequence.request.params.include_stop_str_in_output:
            sequence.text_end = length - 1
        elif sequence.watch is not None:
            _watch(sequence, is_armed=False)
        flush(sequence)
        sequence.finish_reason = "stop"
        sequence.stop_reason = None if token in sequence.request.eos_tokens else token
        return True
    if sequence.watch is not None and _watch(sequence, is_armed=length > sequence.shortest):
        return True
    if length >= sequence.longest:
        flush(sequence)
        sequence.finish_reason = "length"
        return True
    return False


def reveal(sequence: Sequence) -> list[str]:
    """The pieces of text that may be shown so far.

    Without stop strings nothing in the engine reads the text: it is made here, of many tokens at once.
    """
    end = len(sequence.tokens) if sequence.text_end is None else sequence.text_end
    if sequence.num_shown < end and sequence.detokenizer is not None:
        text = sequence.detokenizer.push(sequence.tokens[sequence.num_shown : end])
        sequence.num_shown = end
        if text:
            sequence.pieces.append(text)
    return sequence.pieces


def _watch(sequence: Sequence, is_armed: bool) -> bool:
    """Adds the last token's text, as far as it may be shown.

    Args:
        is_armed: whether a stop string that the token completes ends the sequence.

    Returns:
        Whether it has ended.
    """
    if sequence.detokenizer is None or sequence.watch is None:
        return False
    piece = sequence.watch.feed(sequence.detokenizer.push(sequence.tokens[-1:]), armed=is_armed)
    sequence.num_shown = len(sequence.tokens)
    if piece.text:
        sequence.pieces.append(piece.text)
    if piece.matched is None:
        return False
    sequence.finish_reason, sequence.stop_reason = "stop", piece.matched
    return True


def flush(sequence: Sequence) -> None:
    """Shows text that was held back because it might have been the beginning of a stop string."""
    if sequence.watch is not None and (text := sequence.watch.flush()):
        sequence.pieces.append(text)
