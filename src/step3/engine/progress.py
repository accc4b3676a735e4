"""What a new token does to a sequence: its text grows, and it may be the last."""

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
    """Shows the token's text; whether the token ends the sequence."""
    length = len(sequence.tokens)
    if token in sequence.stop_tokens and length >= sequence.shortest:
        if sequence.request.params.include_stop_str_in_output:
            show(sequence, token, is_armed=False)
        flush(sequence)
        sequence.finish_reason = "stop"
        sequence.stop_reason = None if token in sequence.request.eos_tokens else token
        return True
    if show(sequence, token, is_armed=length > sequence.shortest):
        return True
    if length >= sequence.longest:
        flush(sequence)
        sequence.finish_reason = "length"
        return True
    return False


def show(sequence: Sequence, token: int, is_armed: bool) -> bool:
    """Adds a token's text, as far as it may be shown.

    Args:
        is_armed: whether a stop string that the token completes ends the sequence.

    Returns:
        Whether it has ended.
    """
    if sequence.detokenizer is None:
        return False
    text = sequence.detokenizer.push(token)
    matched = None
    if sequence.watch is not None:
        piece = sequence.watch.feed(text, armed=is_armed)
        text, matched = piece.text, piece.matched
    if text:
        sequence.pieces.append(text)
    if matched is None:
        return False
    sequence.finish_reason, sequence.stop_reason = "stop", matched
    return True


def flush(sequence: Sequence) -> None:
    """Shows text that was held back because it might have been the beginning of a stop string."""
    if sequence.watch is not None and (text := sequence.watch.flush()):
        sequence.pieces.append(text)
