"""Compiles forms and writes outputs that they admit."""

import random

import torch

from step3.engine.sampling.structured_params import StructuredOutputsParams

VOCAB = 2048
EOS = 4


def compiled(compiler, **form):
    return compiler.compile(StructuredOutputsParams(**form)).result(timeout=60)


def allowed(constraint):
    bitmask = torch.empty(1, VOCAB // 32, dtype=torch.int32)
    constraint.fill(bitmask, 0)
    return (bitmask[0, :, None] >> torch.arange(32) & 1).flatten().nonzero()[:, 0].tolist()


def written(constraint, tokenizer, seed, longest=400):
    """An output made at random from what is allowed; it ends when nothing else may follow, or may as well."""
    rng, output = random.Random(seed), []
    for _ in range(longest):
        choices = allowed(constraint)
        if EOS in choices:
            return tokenizer.decode(output)
        output.append(rng.choice(choices))
        assert constraint.advance(output[-1])
    raise AssertionError(f"no end after {longest} tokens: {tokenizer.decode(output)!r}")


def admits(constraint, tokenizer, text):
    """Whether a text, as the tokenizer cuts it, is a whole output."""
    tokens = tokenizer.encode(text, add_special_tokens=False)
    return all(constraint.advance(token) for token in tokens) and EOS in allowed(constraint)
