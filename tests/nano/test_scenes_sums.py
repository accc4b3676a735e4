import re
from random import Random

from step3.nano.scenes.sample import Sample
from step3.nano.scenes.sums import ask_sum


def asked(count: int = 800) -> list[Sample]:
    rng = Random(4)
    return [ask_sum(rng, "train") for _ in range(count)]


def result_of(question: str) -> int:
    a, b = (int(n) for n in re.findall(r"\d+", question))
    if re.match("subtract", question, re.IGNORECASE):
        return b - a
    minus = any(word in question.lower() for word in ("-", "minus", "difference"))
    return a - b if minus else a + b


def test_answers_are_right_and_never_below_nought() -> None:
    for sample in asked():
        assert sample.expected == (str(result_of(sample.question)),), sample.question
        assert int(sample.expected[0]) >= 0
        assert sample.answer.endswith(f"= {sample.expected[0]}")


def test_each_step_of_the_reasoning_is_true_and_the_steps_spell_the_answer() -> None:
    for sample in asked():
        task, units, tens = re.split(r": |, ", sample.reasoning.rstrip("."))
        assert task == sample.answer.split(" = ")[0].replace(" ", "")
        said = []
        for step in (units, tens):
            left, right = step.split("=")
            first, *others = re.findall(r"[+-]?\d+", left)
            assert int(first) + sum(map(int, others)) == int(right), step
            said.append(int(right))
        assert said[0] % 10 + 10 * said[1] == int(sample.expected[0])


def test_all_numbers_up_to_99_and_both_operations_occur() -> None:
    numbers = {int(n) for sample in asked(2000) for n in re.findall(r"\d+", sample.question)}
    assert numbers == set(range(100))
    assert {sample.kind for sample in asked()} == {"plus", "minus"}
