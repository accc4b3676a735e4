from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import AffineTimes, lengths, scenario

from step3.plan.pipeline import steady_step
from step3.plan.simulate import Cards, Result, simulate
from step3.plan.simulate.cache import CacheRoom
from step3.plan.simulate.faults import Failure, Faults, Straggler
from step3.plan.simulate.pipeline import Merge
from step3.plan.simulate.requests import ClosedLoop, Lengths, OpenLoop, Trace
from step3.plan.simulate.simulation import Simulation
from step3.plan.stages import stage_times
from step3.plan.workload import Contexts, parse_contexts

MIXED = Lengths(parse_contexts("uniform(20,300)"), parse_contexts("lognormal(12,0.8)"))
TO_THE_END = {"warmup": 0.0, "duration": None}


def accounts_for_all(result: Result) -> bool:
    parts = result.finished + result.rejected + result.left_running + result.left_waiting
    return result.arrived == parts


ANYTHING = st.fixed_dictionaries(
    {
        "topology": st.sampled_from(["1A1F", "2A1F", "3A2F:tp2", "2A4F:ep2xr2", "1A0F", "2A0F"]),
        "lanes": st.integers(1, 4),
        "seats": st.integers(1, 6),
        "jitter": st.sampled_from([0.0, 0.3]),
        "prefills": st.booleans(),
        "chunk": st.sampled_from([16, 512]),
        "merge": st.sampled_from(list(Merge)),
        "room": st.sampled_from([CacheRoom(), CacheRoom(1200.0), CacheRoom(250.0)]),
        "seed": st.integers(0, 99),
        "lengths": st.sampled_from([lengths(), MIXED]),
    }
)


@settings(max_examples=25)
@given(ANYTHING, st.floats(5, 3000), st.booleans())
def test_every_request_that_comes_is_finished_or_rejected_with_all_its_tokens(
    values: dict, rate: float, random: bool
) -> None:
    run = Simulation(scenario(arrivals=OpenLoop(rate, random), requests=60, **TO_THE_END, **values))
    run.run()
    requests = run.tally.requests
    assert requests.arrived == 60
    assert requests.under_way == run.running == run.waiting == 0
    assert run.tally.whole.count == requests.finished
    if values["lengths"] is not MIXED:
        assert run.tally.tokens == 20 * requests.finished


@settings(max_examples=30)
@given(ANYTHING, st.integers(1, 80), st.booleans())
def test_a_closed_loop_keeps_its_number_of_requests_under_way(
    values: dict, concurrency: int, steady: bool
) -> None:
    values = {**values, "room": CacheRoom()}
    result = simulate(
        scenario(arrivals=ClosedLoop(concurrency), steady=steady, warmup=0.1, duration=0.3, **values)
    )
    assert accounts_for_all(result)
    assert result.left_running + result.left_waiting == concurrency
    assert result.in_system == pytest.approx(concurrency)


@settings(max_examples=20)
@given(ANYTHING, st.floats(20, 500))
def test_littles_law(values: dict, rate: float) -> None:
    run = Simulation(scenario(arrivals=OpenLoop(rate), requests=80, **TO_THE_END, **values))
    run.run()
    # Requests under way, integrated over time, are the times that all of them were there.
    assert run.tally.in_system == pytest.approx(run.tally.whole.total, rel=1e-6, abs=1e-9)


@settings(max_examples=20)
@given(ANYTHING)
def test_the_same_seed_gives_the_same_run(values: dict) -> None:
    chosen = scenario(arrivals=OpenLoop(300.0), warmup=0.0, duration=0.4, **values)
    assert simulate(chosen) == simulate(chosen)


def test_another_seed_gives_another_run() -> None:
    chosen = scenario(arrivals=OpenLoop(300.0), jitter=0.1, duration=0.3)
    assert simulate(chosen) != simulate(replace(chosen, seed=1))


@settings(max_examples=15)
@given(
    st.sampled_from(["1A1F", "2A1F", "3A2F"]),
    st.integers(1, 4),
    st.tuples(*[st.sampled_from([0.3, 0.5, 1.0, 2.0])] * 4),
)
def test_a_loop_with_all_seats_taken_has_the_tpot_of_the_closed_form(
    topology: str, lanes: int, stages: tuple[float, ...]
) -> None:
    times = AffineTimes(*(each * 1e-3 for each in stages), layers=3)
    chosen = scenario(
        topology, times, lanes=lanes, merge=Merge.LANE, lengths=lengths(50, 40), warmup=0.5, duration=2.0
    )
    result = simulate(chosen)
    everyone = chosen.seats * chosen.topology.attention
    expected = steady_step(stage_times(times, chosen.seats, everyone, Contexts.fixed(70)), lanes).seconds
    assert result.token.mean == pytest.approx(expected, rel=0.02)
    assert result.tgs * result.cards == pytest.approx(everyone * lanes / expected, rel=0.03)


@settings(max_examples=20)
@given(
    st.sampled_from(["attention_s", "out_s", "ffn_s", "back_s", "head_s"]),
    st.floats(0.05e-3, 3e-3),
    st.integers(1, 4),
)
def test_a_slower_stage_never_lowers_tpot(stage: str, more: float, lanes: int) -> None:
    times = AffineTimes()
    slower = replace(times, **{stage: getattr(times, stage) + more})

    def tpot(chosen: AffineTimes) -> float:
        run = scenario("1A1F", chosen, lanes=lanes, merge=Merge.LANE, lengths=lengths(50, 500))
        return simulate(run).token.mean or 0.0

    assert tpot(slower) >= tpot(times) * (1 - 1e-3)


def test_where_a_tokens_time_goes_adds_up_to_tpot() -> None:
    result = simulate(scenario("2A1F", jitter=0.2, arrivals=OpenLoop(200.0)))
    spent = result.per_token
    parts = spent.attention + spent.out + spent.ffn + spent.back + spent.wait_attention + spent.wait_ffn
    assert parts == pytest.approx(result.token.mean, rel=1e-9)


def test_no_resource_is_busier_than_all_the_time() -> None:
    busy = simulate(scenario("2A1F", AffineTimes(ffn_s=4e-3), jitter=0.3)).busy
    assert busy.ffn is not None
    assert 0.97 < busy.ffn <= 1
    assert min(busy.attention, busy.out, busy.back) > 0
    assert max(busy.attention, busy.out, busy.back) < 1


def test_ttft_counts_the_wait_for_a_seat() -> None:
    alone = simulate(scenario(lanes=1, seats=1, arrivals=OpenLoop(1.0, False), requests=3, **TO_THE_END))
    crowd = simulate(scenario(lanes=1, seats=1, arrivals=OpenLoop(1e5, False), requests=3, **TO_THE_END))
    step = 5 * 3e-3
    assert alone.first_token.greatest == pytest.approx(step)
    # The third waits until two others have made twenty tokens each.
    assert crowd.first_token.greatest == pytest.approx(2 * 20 * step + step, rel=0.02)
    assert crowd.request_mean.mean == pytest.approx(step)


def test_computing_prompts_here_makes_ttft_and_tpot_longer() -> None:
    times = AffineTimes(ffn_per_sequence=1e-5)
    chosen = scenario(times=times, arrivals=OpenLoop(30.0), requests=40, chunk=32, **TO_THE_END)
    elsewhere, here = simulate(chosen), simulate(replace(chosen, prefills=True))
    assert (here.first_token.p50 or 0) > 2 * (elsewhere.first_token.p50 or 0)
    assert (here.token.mean or 0) > (elsewhere.token.mean or 0)
    assert here.tokens == elsewhere.tokens


def test_cache_grows_while_requests_decode_and_is_given_back() -> None:
    chosen = scenario(
        room=CacheRoom(1000.0), lengths=lengths(100, 60), arrivals=OpenLoop(1e5), requests=4, **TO_THE_END
    )
    shares = [share for _, share in simulate(chosen).cache_share]
    assert max(shares) == pytest.approx(4 * 160 / 1000, rel=0.1)
    assert shares == sorted(shares) or shares[-1] < max(shares)


def test_a_small_cache_limits_the_batch_and_the_limit_says_so() -> None:
    result = simulate(scenario(room=CacheRoom(500.0)))
    assert result.running <= 4 + 1e-9
    assert result.left_waiting >= 8
    assert "the KV cache, not the seats, ends the batch" in result.limit.words


def test_requests_too_long_for_any_card_are_rejected_and_a_loop_goes_on() -> None:
    long_ones = Lengths(parse_contexts("50:0.5,5000:0.5"), Contexts.fixed(10))
    result = simulate(scenario(room=CacheRoom(800.0), lengths=long_ones))
    assert result.rejected > 0
    assert result.finished > 0
    assert result.left_running + result.left_waiting == 12


def test_pods_share_the_load_and_add_up() -> None:
    one = simulate(scenario("1A1F", arrivals=ClosedLoop(12)))
    ten = simulate(scenario("1A1F", arrivals=ClosedLoop(120), pods=10))
    assert ten.cards == 10 * one.cards
    assert ten.tokens == 10 * one.tokens
    assert ten.tgs == pytest.approx(one.tgs)
    assert ten.token == one.token


def test_an_instance_that_stands_for_equals_gives_the_same_as_all_of_them() -> None:
    chosen = scenario("4A1F", AffineTimes(ffn_per_sequence=1e-5), lengths=lengths(100, 4000))
    every, one = simulate(chosen), simulate(replace(chosen, simulate_instances=1))
    assert one.simulated_instances == 1
    assert one.tgs == pytest.approx(every.tgs, rel=1e-9)
    assert one.token.mean == pytest.approx(every.token.mean or 0, rel=1e-9)
    assert one.events < every.events / 2


def test_a_straggling_card_slows_what_waits_for_it() -> None:
    def tpot(*stragglers: Straggler) -> float:
        return simulate(scenario("2A2F", faults=Faults(stragglers))).token.mean or 0.0

    undisturbed = tpot()
    assert tpot(Straggler("ffn", 1, 3.0)) > 1.5 * undisturbed
    assert tpot(Straggler("attention", 0, 4.0)) > 1.2 * undisturbed
    assert tpot(Straggler("wire", 0, 8.0)) > 1.2 * undisturbed


def test_jitter_costs_throughput_where_a_stage_was_always_busy() -> None:
    chosen = scenario("1A1F", AffineTimes(ffn_s=1e-3), lanes=3, duration=3.0)
    assert simulate(replace(chosen, jitter=0.5)).tgs < 0.97 * simulate(chosen).tgs


def test_a_trace_is_replayed_at_its_times(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"arrival": 0.0, "prompt_tokens": 30, "output_tokens": 5}\n'
        '{"arrival": 0.7, "prompt_tokens": 30, "output_tokens": 2}\n'
    )
    result = simulate(scenario(arrivals=Trace(path), **TO_THE_END))
    assert (result.arrived, result.finished, result.tokens) == (2, 2, 7)
    assert result.seconds == pytest.approx(0.7 + 2 * 15e-3)


def death(role: str, seconds: float, instance: int = 0, **more: float) -> Faults:
    values = {"detection": 0.1, "restart": 0.4, **more}
    return Faults(failures=(Failure(role, instance, seconds),), **values)


def test_a_dead_ffn_without_a_replica_stops_everything_until_it_is_back() -> None:
    chosen = scenario("1A2F", faults=death("ffn", 0.5), warmup=0.0)
    result = simulate(chosen)
    assert 0.4 <= (result.token.greatest or 0) <= 0.4 + 2 * 15e-3
    assert result.tokens == pytest.approx(0.6 * simulate(scenario("1A2F", warmup=0.0)).tokens, rel=0.1)


def test_a_dead_ffn_with_a_replica_costs_its_detection_and_then_speed() -> None:
    times = AffineTimes(ffn_s=0.0, ffn_per_sequence=1e-3)
    chosen = scenario("1A2F:tp1xr2", times, faults=death("ffn", 0.5, restart=10.0), warmup=0.0)
    result = simulate(chosen)
    assert 0.1 <= (result.token.greatest or 0) <= 0.1 + 3 * 5 * 9e-3
    rates = dict(result.output_rate)
    early = [rate for at, rate in rates.items() if 0.2 < at < 0.45]
    late = [rate for at, rate in rates.items() if 0.75 < at < 0.95]
    assert sum(late) / len(late) == pytest.approx(sum(early) / len(early) / 2, rel=0.15)


def test_requests_of_a_dead_attention_instance_go_on_elsewhere_and_lose_no_token() -> None:
    chosen = scenario(
        "2A1F", lengths=lengths(100, 30), arrivals=OpenLoop(2000.0), requests=20, chunk=64, **TO_THE_END
    )
    before = simulate(chosen)
    after = simulate(replace(chosen, faults=death("attention", 0.2)))
    assert (after.finished, after.tokens) == (before.finished, before.tokens) == (20, 600)
    assert after.recomputed_tokens > 0
    assert before.recomputed_tokens == 0
    assert (after.token.greatest or 0) > 0.1 > (before.token.greatest or 0)
    assert (after.whole.mean or 0) > (before.whole.mean or 0)


def test_requests_of_the_only_attention_instance_wait_for_its_return() -> None:
    chosen = scenario(
        "1A1F", arrivals=OpenLoop(50.0), requests=30, faults=death("attention", 0.2), **TO_THE_END
    )
    result = simulate(chosen)
    assert (result.finished, result.tokens) == (30, 600)
    assert (result.token.greatest or 0) >= 0.4


def test_an_instance_that_returns_takes_part_of_what_waits() -> None:
    chosen = scenario("2A1F", faults=death("attention", 0.3), warmup=0.0, duration=3.0, chunk=512)
    run = Simulation(chosen)
    run.run()
    assert [each.size for each in run._batching] == [12, 12]


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.sampled_from(["attention", "ffn"]), st.integers(0, 1), st.floats(0, 0.6)), max_size=5
    ),
    st.sampled_from(["2A2F", "2A2F:tp1xr2"]),
    st.sampled_from([0.0, 0.05]),
    st.booleans(),
)
def test_whatever_dies_every_request_finishes_with_all_its_tokens(
    deaths: list[tuple[str, int, float]], topology: str, detection: float, prefills: bool
) -> None:
    failures = tuple(Failure(role, instance, seconds) for role, instance, seconds in deaths)
    chosen = scenario(
        topology,
        arrivals=OpenLoop(150.0),
        requests=50,
        prefills=prefills,
        faults=Faults(failures=failures, detection=detection, restart=0.2),
        **TO_THE_END,
    )
    run = Simulation(chosen)
    run.run()
    assert run.tally.requests.finished == 50
    assert run.tally.tokens == 50 * 20


def test_progress_is_told_up_to_the_end() -> None:
    told: list[float] = []
    simulate(scenario(), told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_what_is_kept_does_not_grow_with_simulated_time() -> None:
    def kept(seconds: float) -> int:
        run = Simulation(scenario(cards=Cards(2, 1), jitter=0.2, lengths=MIXED, duration=seconds))
        run.run()
        tally = run.tally
        histograms = (tally.token, tally.first_token, tally.request_mean, tally.whole, tally.step)
        timelines = (tally.output, tally.cache, tally.waiting)
        return sum(len(each._bins) for each in histograms) + sum(len(each._sums) for each in timelines)

    assert kept(8.0) < 1.5 * kept(2.0) < 8_000
