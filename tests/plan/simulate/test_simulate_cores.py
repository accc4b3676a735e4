import pytest
from hypothesis import given
from hypothesis import strategies as st

from step3.plan.simulate.clock import Clock
from step3.plan.simulate.cores import Cores, Host, Thread
from step3.plan.simulate.errors import SimulationError


class Run:
    """Threads that are given work at the beginning, and when each piece of it was done."""

    def __init__(self, count: int, *work: tuple[Thread, list[float]]) -> None:
        self.clock = Clock()
        self.cores = Cores(self.clock, count)
        self.spans: list[list[tuple[float, float]]] = [[] for _ in work]
        for number, (thread, pieces) in enumerate(work):
            for seconds in pieces:
                self.submit(number, thread, seconds)
        self.clock.run(1e9)

    def submit(self, number: int, thread: Thread, seconds: float) -> None:
        def done(began: float) -> None:
            self.spans[number].append((began, self.clock.now))

        self.cores.submit(thread, lambda: seconds, done)


def near(*spans: tuple[float, float]) -> list[object]:
    return [pytest.approx(span) for span in spans]


def test_a_thread_computes_one_piece_after_the_other() -> None:
    thread = Thread(core=0)
    assert Run(1, (thread, [1.0, 2.0, 0.0])).spans == [near((0, 1), (1, 3), (3, 3))]
    assert thread.busy == pytest.approx(3)
    assert thread.began is None


def test_threads_of_a_core_share_it_evenly() -> None:
    # Until the first is done after 2 both are half as fast; the other has 2 left, and then the core.
    found = Run(1, (Thread(core=0), [1.0]), (Thread(core=0), [3.0])).spans
    assert found == [near((0, 2)), near((0, 4))]


def test_threads_of_different_cores_do_not_disturb_each_other() -> None:
    found = Run(2, (Thread(core=0), [1.0]), (Thread(core=1), [3.0])).spans
    assert found == [near((0, 1)), near((0, 3))]


def test_cores_tell_how_long_they_worked() -> None:
    run = Run(2, (Thread(core=0), [1.0]), (Thread(core=0), [1.0]), (Thread(), [3.0]))
    # What wanders is on the other core for two seconds, then on both as much.
    assert run.cores.busy == pytest.approx([2.5, 2.5])


def test_contention_slows_while_the_other_core_works() -> None:
    # The first takes 1.5 times as long as long as the second works, which is 3.
    found = Run(2, (Thread(core=0, contention=0.5), [4.0]), (Thread(core=1), [3.0])).spans
    assert found == [near((0, 3 + 2)), near((0, 3))]


def test_contention_grows_with_the_cores_at_work() -> None:
    # Two of the three other cores work.
    others = [(Thread(core=core), [9.0]) for core in (1, 2)]
    assert Run(4, (Thread(core=0, contention=0.3), [1.0]), *others).spans[0] == near((0, 1.2))


def test_what_wanders_goes_where_there_is_least_to_do() -> None:
    bound = Thread(core=0), [1.0]
    assert Run(2, bound, (Thread(), [1.0])).spans == [near((0, 1)), near((0, 1))]
    # Three on two cores: each is there two thirds of the time.
    assert Run(2, *((Thread(), [1.0]) for _ in range(3))).spans == [near((0, 1.5))] * 3


def test_one_that_sleeps_takes_time_to_wake_and_then_none() -> None:
    assert Run(1, (Thread(core=0, wake=0.25), [1.0, 1.0])).spans == [near((0.25, 1.25), (1.25, 2.25))]


def test_what_is_given_while_it_works_finds_it_awake() -> None:
    clock = Clock()
    cores, thread, ends = Cores(clock, 1), Thread(core=0, wake=0.5), list[float]()

    def again(_: float) -> None:
        ends.append(clock.now)
        if len(ends) < 3:
            cores.submit(thread, lambda: 1.0, again)

    cores.submit(thread, lambda: 1.0, again)
    clock.run(1e9)
    assert ends == pytest.approx([1.5, 2.5, 3.5])


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 3) | st.none(), st.lists(st.floats(0.01, 2), max_size=4)), max_size=5),
)
def test_all_work_is_done_and_cores_never_compute_more_than_they_can(
    count: int, drawn: list[tuple[int | None, list[float]]]
) -> None:
    work = [(Thread(core=None if core is None else core % count), pieces) for core, pieces in drawn]
    run = Run(count, *work)
    assert [len(spans) for spans in run.spans] == [len(pieces) for _, pieces in work]
    total = sum(sum(pieces) for _, pieces in work)
    ends = [end for spans in run.spans for _, end in spans]
    longest = max((sum(pieces) for _, pieces in work), default=0.0)
    assert max(ends, default=0.0) >= max(total / count, longest) - 1e-9
    if all(thread.core == 0 for thread, _ in work):
        assert max(ends, default=0.0) == pytest.approx(total)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"cores": 0}, "cores"),
        ({"cores": 5000}, "4,096"),
        ({"cores": 2, "ffn_contention": -0.1}, "ffn contention"),
        ({"cores": 2, "wake": float("nan")}, "wake"),
    ],
)
def test_a_host_that_cannot_be_is_refused(values: dict[str, float], named: str) -> None:
    with pytest.raises(SimulationError, match=named):
        Host(**values)  # type: ignore[arg-type]
