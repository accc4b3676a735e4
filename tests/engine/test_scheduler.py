"""Who computes what in a step."""

from engine_requests import make_cache, make_request, make_sequence

from step3 import SamplingParams
from step3.engine.kv_cache import KVCache
from step3.engine.request import Sequence, Status
from step3.engine.scheduler import Scheduled, Scheduler, WaitingQueue


class Bench:
    """A scheduler whose network answers every sampled position with token 100."""

    def __init__(self, num_blocks: int = 100, seats: int = 8, tokens: int = 16, longest: int = 400) -> None:
        self.cache: KVCache = make_cache(num_blocks)
        self.waiting = WaitingQueue()
        self.scheduler = Scheduler(self.cache, self.waiting, seats, tokens, longest)

    def add(self, *sequences: Sequence) -> None:
        for sequence in sequences:
            self.waiting.add(sequence)

    def step(self) -> list[Scheduled]:
        step = self.scheduler.schedule()
        for scheduled in step:
            sequence = scheduled.sequence
            sequence.num_computed += scheduled.num_tokens
            if scheduled.is_last:
                sequence.tokens.append(100)
                sequence.request.is_prompt_computed = True
            self.cache.commit(sequence)
        self.cache.assert_consistent(self.scheduler.running)
        return step


def told(step: list[Scheduled]) -> list[tuple[int, int, int]]:
    """Of each sequence its request's number, where it starts and how many tokens it computes."""
    return [(one.sequence.request.number, one.start, one.num_tokens) for one in step]


def test_computes_short_prompts_together() -> None:
    bench = Bench()
    bench.add(make_sequence(range(5), 0), make_sequence(range(3), 1))
    assert told(bench.step()) == [(0, 0, 5), (1, 0, 3)]


def test_cuts_a_long_prompt_into_chunks() -> None:
    bench = Bench(tokens=16)
    bench.add(make_sequence(range(40)))
    assert [told(bench.step()) for _ in range(4)] == [
        [(0, 0, 16)],
        [(0, 16, 16)],
        [(0, 32, 8)],
        [(0, 40, 1)],
    ]


def test_samples_only_behind_the_last_token() -> None:
    bench = Bench(tokens=16)
    bench.add(make_sequence(range(20)))
    assert [bench.step()[0].is_last for _ in range(3)] == [False, True, True]


def test_decodes_go_before_prefills() -> None:
    bench = Bench(tokens=16)
    bench.add(make_sequence(range(4), 0))
    bench.step()
    bench.add(make_sequence(range(100, 140), 1))
    assert told(bench.step()) == [(0, 4, 1), (1, 0, 15)]
    assert told(bench.step()) == [(0, 5, 1), (1, 15, 15)]


def test_a_prefill_that_came_first_does_not_hold_up_decodes() -> None:
    bench = Bench(tokens=16)
    bench.add(make_sequence(range(4), 5))
    bench.step()
    bench.add(make_sequence(range(100, 140), 0))
    assert told(bench.step())[0] == (5, 4, 1)


def test_no_more_sequences_run_than_there_are_seats() -> None:
    bench = Bench(seats=2)
    bench.add(*(make_sequence([number], number) for number in range(3)))
    assert len(bench.step()) == 2
    bench.scheduler.finish(bench.scheduler.running[0])
    assert told(bench.step()) == [(1, 1, 1), (2, 0, 1)]


def test_first_in_first_out_even_if_a_later_one_would_fit() -> None:
    bench = Bench(num_blocks=5, tokens=32)
    bench.add(make_sequence(range(8), 0), make_sequence(range(16), 1), make_sequence(range(4), 2))
    assert told(bench.step()) == [(0, 0, 8)]


def test_smaller_priority_goes_first() -> None:
    bench = Bench(seats=1)
    bench.add(make_sequence([1], 0, priority=5), make_sequence([2], 1, priority=-1))
    assert told(bench.step()) == [(1, 0, 1)]


def test_the_last_gives_up_its_blocks_when_there_are_none_left() -> None:
    bench = Bench(num_blocks=4, tokens=32)
    first, second = make_sequence(range(8), 0), make_sequence(range(100, 108), 1)
    bench.add(first, second)
    bench.step()
    assert told(bench.step()) == [(0, 8, 1)]
    assert second.status is Status.WAITING
    assert second.blocks == []
    assert (second.num_preemptions, bench.scheduler.num_preemptions) == (1, 1)


def test_who_was_thrown_out_comes_back_with_all_its_tokens() -> None:
    bench = Bench(num_blocks=4, tokens=32)
    first, second = make_sequence(range(8), 0), make_sequence(range(100, 108), 1)
    bench.add(first, second)
    bench.step()
    bench.step()
    bench.scheduler.finish(first)
    # Its first block was still in the prefix cache.
    assert told(bench.step()) == [(1, 4, 5)]
    assert second.tokens[8:] == [100, 100]


def test_a_sequence_that_is_itself_the_last_waits() -> None:
    bench = Bench(num_blocks=4, tokens=32)
    first, second = make_sequence(range(9), 0), make_sequence(range(100, 104), 1)
    bench.add(first, second)
    bench.step()
    # The first has room in its last block; the second has none.
    assert told(bench.step()) == [(0, 9, 1)]
    assert second.status is Status.WAITING


def test_a_higher_priority_takes_the_place_of_a_lower_one() -> None:
    bench = Bench(num_blocks=3, tokens=32)
    low, high = make_sequence(range(9), 0, priority=1), make_sequence(range(100, 109), 1, priority=0)
    bench.add(low)
    bench.step()
    bench.add(high)
    assert told(bench.step()) == [(1, 0, 9)]
    assert low.status is Status.WAITING


def test_an_equal_priority_waits() -> None:
    bench = Bench(num_blocks=3, tokens=32)
    bench.add(make_sequence(range(9), 0))
    bench.step()
    bench.add(make_sequence(range(100, 109), 1))
    assert told(bench.step()) == [(0, 9, 1)]


def test_finishing_frees_everything_at_once() -> None:
    bench = Bench(num_blocks=4, seats=1)
    running, waiting = make_sequence(range(9), 0), make_sequence(range(9), 1)
    bench.add(running, waiting)
    bench.step()
    bench.scheduler.finish(running)
    bench.scheduler.finish(waiting)
    assert bench.cache.num_free_blocks == 4
    assert bench.scheduler.running == []
    assert len(bench.waiting) == 0
    assert bench.step() == []


def test_finishing_twice_is_finishing_once() -> None:
    bench = Bench(seats=1)
    sequence = make_sequence(range(9))
    bench.add(sequence)
    bench.step()
    bench.scheduler.finish(sequence)
    bench.scheduler.finish(sequence)
    bench.add(make_sequence(range(3), 1))
    assert told(bench.step()) == [(1, 0, 3)]


def test_further_answers_wait_until_the_prompt_is_computed() -> None:
    bench = Bench(tokens=16)
    request = make_request(range(20), params=SamplingParams(n=3))
    bench.add(*request.sequences)
    assert [len(bench.step()) for _ in range(3)] == [1, 1, 3]
    assert [sequence.num_cached_tokens for sequence in request.sequences] == [0, 16, 16]


def test_others_do_not_wait_for_answers_that_are_not_ready() -> None:
    bench = Bench(tokens=32)
    bench.add(*make_request(range(20), 0, params=SamplingParams(n=2)).sequences)
    bench.add(make_sequence(range(5), 1))
    assert told(bench.step()) == [(0, 0, 20), (1, 0, 5)]


def drafting(drafts: list[int], num_blocks: int = 100, tokens: int = 16, longest: int = 400) -> Bench:
    bench = Bench(num_blocks, tokens=tokens)

    def draft(sequences: list[Sequence]) -> None:
        for sequence in sequences:
            sequence.drafts = list(drafts)

    bench.scheduler = Scheduler(bench.cache, bench.waiting, 8, tokens, longest, draft)
    bench.add(make_sequence(range(8)))
    step = bench.scheduler.schedule()
    step[0].sequence.num_computed = 8
    step[0].sequence.tokens.append(100)
    return bench


def test_drafts_are_computed_behind_the_last_token() -> None:
    [scheduled] = drafting([5, 6, 7]).scheduler.schedule()
    assert (scheduled.start, scheduled.num_tokens, scheduled.is_last) == (8, 4, True)
    assert len(scheduled.sequence.blocks) == 3


def test_drafts_are_dropped_where_they_would_cost_others_their_blocks() -> None:
    [scheduled] = drafting([5, 6, 7, 8], num_blocks=3).scheduler.schedule()
    assert scheduled.num_tokens == 1
    assert scheduled.sequence.drafts == []


def test_drafts_are_cut_to_the_tokens_of_a_step() -> None:
    [scheduled] = drafting(list(range(40)), tokens=10).scheduler.schedule()
    assert scheduled.num_tokens == 10


def test_drafts_are_cut_to_the_longest_length() -> None:
    [scheduled] = drafting(list(range(10)), tokens=32, longest=12).scheduler.schedule()
    assert scheduled.start + scheduled.num_tokens == 12
