"""What limits the pipeline, in a line."""

from typing import Any

from step3.cluster.description import limit


def attention(computing: float, idle: float, wire: float = 0.0) -> dict[str, Any]:
    lane = {"attention": computing, "wire": wire, "waiting": 0.0, "ffn": 0.0, "steps": 100}
    return {"lanes": [lane], "idle_seconds": idle}


def ffn(instance: int, seconds: float, tokens: int = 1000) -> dict[str, Any]:
    return {"instance": instance, "seconds": seconds, "tokens": tokens, "products": 10}


def test_nothing_yet() -> None:
    assert limit([], []) == "nothing was computed yet"


def test_the_slower_side_is_named_and_what_the_other_waits() -> None:
    line = limit([attention(1.0, 3.0, wire=0.2)], [ffn(0, 3.5)])
    assert "FFN instances compute longer" in line
    assert "waits 75% of its time" in line
    assert "2.00 ms of a step are wire" in line
    assert "attention instances compute longer" in limit([attention(3.0, 0.1)], [ffn(0, 1.0)])


def test_an_instance_that_takes_far_longer_than_its_like_straggles() -> None:
    assert "straggles" not in limit([attention(1, 1)], [ffn(0, 1.0), ffn(1, 1.1)])
    assert "FFN instance 1 straggles" in limit([attention(1, 1)], [ffn(0, 1.0), ffn(1, 2.0), ffn(2, 1.1)])
    # Half as long for a tenth of the tokens is slow too.
    assert "FFN instance 1 straggles" in limit([attention(1, 1)], [ffn(0, 1.0), ffn(1, 0.5, tokens=100)])
