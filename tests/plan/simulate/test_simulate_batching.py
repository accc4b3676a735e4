import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import AffineTimes, no_prefill

from step3.plan.simulate.batching import Batching, LaneBatch, Sequence
from step3.plan.simulate.cache import CacheRoom
from step3.plan.simulate.calls import CallTimes
from step3.plan.simulate.requests import Request
from step3.plan.workload import Contexts


def batching(
    cards: int = 1, lanes: int = 1, seats: int = 8, room: float = 1e9, chunk: int = 16, **more: float
) -> Batching:
    times = AffineTimes(attention_per_token=1e-6)
    calls = CallTimes(times, Contexts.fixed(100), no_prefill)
    return Batching(cards, lanes, seats, CacheRoom(room), calls, chunk, **more)  # type: ignore[arg-type]


def sequence(prompt: int = 10, output: int = 3, prefill: bool = False) -> Sequence:
    return Sequence(Request(0.0, prompt, output), must_prefill=prefill)


def step(instance: Batching, lane: LaneBatch) -> tuple[list[Sequence], list[Sequence], float]:
    """One step of a lane: (those that began, those that ended, tokens)."""
    if instance.next_load(lane) is None:
        return [], [], 0.0
    outcome = instance.end_step(lane)
    return outcome.started, outcome.finished, outcome.tokens


def test_a_sequence_makes_a_token_a_step_and_leaves_with_its_last() -> None:
    instance, one = batching(), sequence(output=3)
    instance.enqueue(one)
    lane = instance.lanes[0]
    assert step(instance, lane) == ([one], [], 1)
    assert step(instance, lane) == ([], [], 1)
    assert step(instance, lane) == ([], [one], 1)
    assert instance.next_load(lane) is None
    assert (instance.size, instance.cache_tokens) == (0, 0)


def test_prompts_are_computed_in_chunks_and_their_last_chunk_makes_the_first_token() -> None:
    instance, one = batching(chunk=16), sequence(prompt=40, output=2, prefill=True)
    instance.enqueue(one)
    lane = instance.lanes[0]
    load = instance.next_load(lane)
    assert load is not None
    assert load.sequences == 16
    instance.end_step(lane)
    assert step(instance, lane)[2] == 0
    started, finished, tokens = step(instance, lane)
    assert (started, finished, tokens) == ([one], [], 1)
    assert step(instance, lane) == ([], [one], 1)


def test_an_output_of_one_token_ends_with_its_prompt() -> None:
    instance, one = batching(), sequence(prompt=5, output=1, prefill=True)
    instance.enqueue(one)
    assert step(instance, instance.lanes[0]) == ([one], [one], 1)
    assert instance.size == 0


def test_prompts_get_what_decoding_leaves_of_a_steps_tokens() -> None:
    instance = batching(chunk=16, step_tokens=10)
    [lane] = instance.lanes
    for one in (*(sequence(output=50) for _ in range(4)), sequence(prompt=40, output=2, prefill=True)):
        instance.enqueue(one)
    load = instance.next_load(lane)
    assert load is not None
    assert load.total == 10
    assert [count for _, count in lane.chunks] == [6]


def test_chunks_go_beside_the_decoding_and_count_as_rows() -> None:
    instance = batching(chunk=16)
    instance.enqueue(sequence(output=100))
    lane = instance.lanes[0]
    step(instance, lane)
    instance.enqueue(sequence(prompt=100, prefill=True))
    load = instance.next_load(lane)
    assert load is not None
    assert load.sequences == load.total == 17


def test_lanes_share_what_comes() -> None:
    instance = batching(lanes=3)
    for _ in range(7):
        instance.enqueue(sequence(output=50))
    for lane in instance.lanes:
        instance.next_load(lane)
    assert [lane.size for lane in instance.lanes] == [3, 3, 1]


def test_cards_are_filled_evenly_and_the_fullest_sets_the_pace() -> None:
    instance = batching(cards=4)
    for _ in range(6):
        instance.enqueue(sequence(prompt=100, output=50))
    load = instance.next_load(instance.lanes[0])
    assert load is not None
    assert [instance.lanes[0].seats(card) for card in range(4)] == [2, 2, 1, 1]
    assert (load.sequences, load.total) == (2, 6)
    assert load.attention == [pytest.approx(1e-3 + 1e-6 * 200)]


def test_an_instance_that_stands_for_others_sends_their_sequences_too() -> None:
    instance = batching(copies=5)
    instance.enqueue(sequence())
    load = instance.next_load(instance.lanes[0])
    assert load is not None
    assert (load.sequences, load.total) == (1, 5)


def test_no_more_sequences_than_seats_are_taken() -> None:
    instance = batching(cards=2, seats=3)
    for _ in range(10):
        instance.enqueue(sequence(output=50))
    instance.next_load(instance.lanes[0])
    assert (instance.size, len(instance.waiting)) == (6, 4)
    assert instance.short_of_cache == 0


def test_a_sequence_waits_until_the_cache_has_room_for_all_its_tokens() -> None:
    instance = batching(room=100)
    for prompt in (60, 50):
        instance.enqueue(sequence(prompt=prompt, output=2))
    lane = instance.lanes[0]
    assert len(step(instance, lane)[0]) == 1
    assert (instance.size, len(instance.waiting)) == (1, 1)
    assert instance.short_of_cache > 0
    step(instance, lane)
    assert len(step(instance, lane)[0]) == 1


def test_headroom_stays_free_when_a_sequence_is_taken_unless_the_card_is_empty() -> None:
    instance = batching(room=100, headroom=0.2)
    for _ in range(2):
        instance.enqueue(sequence(prompt=45, output=2))
    instance.next_load(instance.lanes[0])
    assert instance.size == 1
    full = batching(room=100, headroom=0.2)
    full.enqueue(sequence(prompt=90, output=2))
    full.next_load(full.lanes[0])
    assert full.size == 1


def test_decoding_that_outgrows_the_cache_puts_out_who_came_last() -> None:
    instance = batching(room=100, chunk=1000)
    first, last = sequence(prompt=45, output=20), sequence(prompt=45, output=20)
    for one in (first, last):
        instance.enqueue(one)
    lane = instance.lanes[0]
    for _ in range(6):
        step(instance, lane)
    assert instance.next_load(lane) is not None
    assert instance.preempted == 1
    assert list(instance.waiting) == [last]
    assert (last.made, last.must_prefill) == (6, True)
    assert instance.cache_tokens == 51


def test_who_was_put_out_is_computed_anew_and_makes_all_its_tokens() -> None:
    instance = batching(room=100, chunk=1000)
    made, ended = 0.0, []
    for _ in range(2):
        instance.enqueue(sequence(prompt=45, output=20))
    for _ in range(60):
        _, finished, tokens = step(instance, instance.lanes[0])
        made += tokens
        ended += finished
    assert instance.preempted >= 1
    assert len(ended) == 2
    assert made == 40
    assert (instance.size, instance.cache_tokens, instance.waiting_bytes) == (0, 0, 0)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 30), st.booleans()), min_size=1, max_size=25),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(100, 300),
)
def test_every_token_of_every_sequence_is_made_once_and_everything_is_given_back(
    wanted: list[tuple[int, int, bool]], cards: int, lanes: int, seats: int, room: int
) -> None:
    instance = batching(cards, lanes, seats, room, chunk=7)
    for prompt, output, prefill in wanted:
        instance.enqueue(sequence(prompt, output, prefill))
    made, ended = 0.0, []
    for _ in range(20_000):
        for lane in instance.lanes:
            _, finished, tokens = step(instance, lane)
            made += tokens
            ended += finished
        if len(ended) == len(wanted):
            break
    assert len(set(ended)) == len(wanted)
    assert made == sum(output for _, output, _ in wanted)
    assert (instance.size, instance.cache_tokens, len(instance.waiting)) == (0, 0, 0)
    for lane in instance.lanes:
        assert (lane.decoding, lane.contexts) == ([0] * cards, [0] * cards)


def test_lost_sequences_keep_what_they_made_and_must_be_computed_anew() -> None:
    instance = batching(lanes=2)
    sequences = [sequence(prompt=10, output=9) for _ in range(4)]
    for one in sequences:
        instance.enqueue(one)
    for lane in instance.lanes:
        step(instance, lane)
        instance.next_load(lane)
    lost = instance.lose()
    assert set(lost) == set(sequences)
    assert all((one.made, one.tokens, one.must_prefill) == (1, 11, True) for one in lost)
    assert (instance.size, instance.cache_tokens) == (0, 0)


def test_drafts_shorten_a_request_by_the_tokens_of_a_step() -> None:
    instance = batching(tokens_per_step=2.5)
    one = sequence(output=10)
    instance.enqueue(one)
    tokens = 0.0
    for _ in range(4):
        _, finished, made = step(instance, instance.lanes[0])
        tokens += made
    assert finished == [one]
    assert tokens == 10


def test_a_request_longer_than_a_cards_cache_never_fits() -> None:
    assert batching(room=100).ever_fits(Request(0.0, 90, 10))
    assert not batching(room=100).ever_fits(Request(0.0, 90, 11))


def test_a_stopped_instance_computes_nothing() -> None:
    instance = batching()
    instance.enqueue(sequence())
    instance.stopped = True
    assert instance.next_load(instance.lanes[0]) is None


def test_the_load_is_of_cache_or_of_seats_whichever_is_fuller() -> None:
    by_seats, by_cache = batching(seats=4, room=1e9), batching(seats=100, room=100)
    for instance in (by_seats, by_cache):
        instance.enqueue(sequence(prompt=50))
    assert by_seats.load == pytest.approx(1 / 4)
    assert by_cache.load == pytest.approx(50 / 100)
