"""The same answers in every topology, and after anything that may happen to an FFN instance."""

import random
import time

import pytest
from engine_requests import golden_cases
from instances import Attention, Server, finish, running

from step3 import SamplingParams
from step3.engine.request import Request
from step3.engine.timeline import Stage
from step3.plan.topology import Topology, parse_topology

PATIENCE = 60.0
"""Seconds after which something that should happen did not."""

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=0)
TOPOLOGIES = ("1A1F", "2A1F", "1A2F:ep2", "1A2F:tp2", "2A2F", "3A2F", "2A4F:ep2xtp2", "1A4F:ep2xr2")


def ask(attentions: list[Attention]) -> list[tuple[dict, Request]]:
    """Every golden case, dealt out to the instances."""
    asked = []
    for number, case in enumerate(golden_cases("text")):
        one = attentions[number % len(attentions)]
        request = one.intake.request(case["prompt_token_ids"], GREEDY)
        one.engine.add(request)
        asked.append((case, request))
    return asked


def check(asked: list[tuple[dict, Request]]) -> None:
    for case, request in asked:
        [answer] = request.sequences
        assert answer.output_token_ids == case["token_ids"]
        told = [place.logprob for place in answer.logprobs]
        assert told == pytest.approx(case["logprobs"], abs=2e-3)


@pytest.mark.parametrize("notation", TOPOLOGIES)
@pytest.mark.parametrize("lanes", [1, 2, 3, 5])
def test_golden_answers_in_every_topology(notation: str, lanes: int) -> None:
    with running(parse_topology(notation), lanes) as (attentions, _):
        asked = ask(attentions)
        finish(attentions, random.Random(lanes))
        check(asked)
        for one in attentions:
            one.engine.assert_consistent()


def test_work_is_spread_evenly_over_lanes() -> None:
    with running(Topology(1, 1), 3) as ([one], _):
        for _ in range(6):
            one.engine.add(one.intake.request([5, 6, 8], GREEDY))
        one.driver.step()
        assert [len(lane.scheduler.running) for lane in one.engine.lanes] == [2, 2, 2]
        finish([one], random.Random(0))


def test_a_replica_answers_for_an_instance_that_dies() -> None:
    with running(parse_topology("1A4F:ep2xr2"), 3) as (attentions, servers):
        asked = ask(attentions)
        for _ in range(20):
            attentions[0].driver.step()
        servers[0].stop()
        finish(attentions, random.Random(0))
        check(asked)
        assert attentions[0].link.reachable == (1, 2, 3)


def test_calls_wait_for_an_instance_that_comes_back() -> None:
    topology = parse_topology("2A2F")
    with running(topology, 2) as (attentions, servers):
        asked = ask(attentions)
        for one in attentions * 10:
            one.driver.step()
        servers[1].stop()
        for one in attentions * 4:
            one.driver.step()
        assert any(not request.is_finished for _, request in asked)
        servers[1] = Server(1, topology, epoch=1)
        for one in attentions:
            one.link.use([server.member for server in servers])
        finish(attentions, random.Random(0))
        check(asked)


def test_an_instance_that_leaves_is_not_asked_any_more() -> None:
    with running(parse_topology("1A2F:ep1xr2"), 2) as ([one], servers):
        asked = ask([one])
        for _ in range(10):
            one.driver.step()
        one.link.use([servers[1].member])
        for _ in range(3):
            one.driver.step()
        before = servers[0].server.counts.calls
        finish([one], random.Random(0))
        check(asked)
        assert servers[0].server.counts.calls == before


def test_where_the_time_goes_is_known_for_each_lane() -> None:
    with running(parse_topology("1A2F"), 2) as ([one], servers):
        one.driver.timeline.record(60)
        asked = ask([one])
        finish([one], random.Random(0))
        check(asked)
        for times in one.driver.timeline.lanes:
            assert times.steps > 0
            assert times.calls == 4 * times.steps
            assert all(seconds > 0 for seconds in times.seconds)
        spans = one.driver.timeline.spans()
        assert {span.stage for span in spans} == set(Stage)
        assert all(span.end_ns > span.start_ns for span in spans)
        # Both clocks are this process's: what is measured of their difference is what the measuring errs by.
        for ahead, round_trip in one.link.offsets.values():
            assert abs(ahead) <= round_trip
        calls = sum(times.calls for times in one.driver.timeline.lanes)
        # An FFN instance counts a call after it has answered it.
        end = time.monotonic() + PATIENCE
        while any(server.server.counts.calls < calls for server in servers) and time.monotonic() < end:
            time.sleep(0.001)
        assert [server.server.counts.calls for server in servers] == [calls, calls]
