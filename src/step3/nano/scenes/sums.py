"""Sums and differences of two numbers up to 99, worked out by column.

The reasoning first writes the task in one fixed form, then the units, then the tens with the carry
(always written, 0 or 1), so that each step looks at a few digits only: `47+38: 7+8=15, 4+3+1=8.`
"""

from __future__ import annotations

from random import Random

from step3.nano.scenes.questions import plain_variant
from step3.nano.scenes.sample import Sample
from step3.nano.scenes.split import Split, split_of

_PLUS = (
    "{a} + {b}",
    "{a}+{b}",
    "{a} + {b} = ?",
    "{a}+{b}=",
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "How much is {a} plus {b}?",
    "Add {a} and {b}.",
    "What is the sum of {a} and {b}?",
    "Calculate {a} + {b}.",
)
_MINUS = (
    "{a} - {b}",
    "{a}-{b}",
    "{a} - {b} = ?",
    "{a}-{b}=",
    "What is {a} - {b}?",
    "What is {a} minus {b}?",
    "How much is {a} minus {b}?",
    "Subtract {b} from {a}.",
    "What is the difference between {a} and {b}?",
    "Calculate {a} - {b}.",
)


def ask_sum(rng: Random, split: Split) -> Sample:
    """`a + b` or `a - b`, never below nought; the pair of numbers belongs to `split`."""
    while True:
        a, b = (rng.randint(0, 99 if rng.random() < 0.85 else 9) for _ in range(2))
        minus = rng.random() < 0.5
        if minus and a < b:
            a, b = b, a
        sign = "-" if minus else "+"
        pair = (a, b) if minus else (min(a, b), max(a, b))
        if split_of(f"{pair[0]}{sign}{pair[1]}") == split:
            break
    question = plain_variant(rng, rng.choice(_MINUS if minus else _PLUS).format(a=a, b=b))
    result = a - b if minus else a + b
    steps = _minus_steps(a, b) if minus else _plus_steps(a, b)
    return Sample(
        category="sum",
        kind="minus" if minus else "plus",
        question=question,
        reasoning=f"{a}{sign}{b}: {steps}.",
        answer=f"{a} {sign} {b} = {result}",
        expected=(str(result),),
    )


def _plus_steps(a: int, b: int) -> str:
    (a_tens, a_units), (b_tens, b_units) = divmod(a, 10), divmod(b, 10)
    units = a_units + b_units
    carry = units // 10
    return f"{a_units}+{b_units}={units}, {a_tens}+{b_tens}+{carry}={a_tens + b_tens + carry}"


def _minus_steps(a: int, b: int) -> str:
    (a_tens, a_units), (b_tens, b_units) = divmod(a, 10), divmod(b, 10)
    borrow = int(a_units < b_units)
    units = a_units + 10 * borrow
    return f"{units}-{b_units}={units - b_units}, {a_tens}-{b_tens}-{borrow}={a_tens - b_tens - borrow}"
