"""What many engines counted, as one."""

from dataclasses import asdict

from step3.cluster.totals import retired, total
from step3.engine.sampling.speculation import SpeculationCounts
from step3.engine.statistics import FIRST_TOKEN_BOUNDS, PER_TOKEN_BOUNDS, Histogram, Statistics


def counted(tokens: int) -> dict[str, object]:
    first = Histogram(FIRST_TOKEN_BOUNDS, (tokens, *[0] * len(FIRST_TOKEN_BOUNDS)), float(tokens))
    each = Histogram(PER_TOKEN_BOUNDS, (tokens, *[0] * len(PER_TOKEN_BOUNDS)), float(tokens))
    drafts = SpeculationCounts(tokens, tokens)
    one = Statistics(*(2, 3, 0.5, 9, 4, 90), 20, tokens, 7.0, drafts, 1, {"stop": tokens}, first, each, first)
    return asdict(one)


def test_those_that_ended_count_for_ever_and_do_nothing_any_more() -> None:
    ended: list = []
    for _ in range(100):
        ended = [retired([*ended, counted(5)])]
    whole = total([*ended, counted(1)])
    assert (whole.generation_tokens, whole.finished) == (501, {"stop": 501})
    assert whole.time_to_first_token.count == 501
    assert whole.speculation == SpeculationCounts(501, 501)
    assert (whole.waiting, whole.running, whole.generation_tokens_per_second) == (2, 3, 7.0)
    assert whole.kv_cache_usage == 0.5
