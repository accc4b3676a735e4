import pytest

from step3.plan.simulate.errors import SimulationError
from step3.plan.simulate.faults import (
    Failure,
    Faults,
    ReplicaHealth,
    Straggler,
    parse_failures,
    parse_stragglers,
)
from step3.plan.topology import parse_topology


def test_stragglers_and_failures_are_read() -> None:
    assert parse_stragglers(["ffn=1.3", "Attention:2=1.5", "wire:0=2"]) == (
        Straggler("ffn", 0, 1.3),
        Straggler("attention", 2, 1.5),
        Straggler("wire", 0, 2.0),
    )
    assert parse_failures(["ffn@10", "attention:1@12.5s"]) == (
        Failure("ffn", 0, 10.0),
        Failure("attention", 1, 12.5),
    )


@pytest.mark.parametrize("text", ["ffn", "ffn=0.5", "ffn=nan", "head=2", "ffn:x=2", "ffn=2000", "ffn:1"])
def test_what_is_no_straggler_is_refused(text: str) -> None:
    with pytest.raises(SimulationError, match=r"--straggler .* write attention:0=1.2"):
        parse_stragglers([text])


@pytest.mark.parametrize("text", ["ffn", "ffn@", "wire@3", "ffn@-1", "ffn@nan", "ffn:a@3"])
def test_what_is_no_failure_is_refused(text: str) -> None:
    with pytest.raises(SimulationError, match=r"--fail .* write ffn:0@10"):
        parse_failures([text])


def test_an_instance_that_does_not_exist_cannot_fail() -> None:
    with pytest.raises(SimulationError, match="2A2F has no ffn instance 2: they count from 0 to 1"):
        Faults(failures=(Failure("ffn", 2, 1.0),)).check(parse_topology("2A2F"), 2)
    with pytest.raises(SimulationError, match="1A0F has no ffn instance 0: ffn has none"):
        Faults(failures=(Failure("ffn", 0, 1.0),)).check(parse_topology("1A0F"), 1)


def test_nothing_is_known_to_be_back_before_it_is_known_to_be_dead() -> None:
    with pytest.raises(SimulationError, match=r"--detect .* at most --restart"):
        Faults(detection=2.0, restart=1.0)


def test_the_ffn_is_as_slow_as_its_slowest_instance() -> None:
    faults = Faults((Straggler("ffn", 0, 1.5), Straggler("ffn", 1, 1.2), Straggler("ffn", 1, 1.5)))
    assert faults.ffn_slowness() == pytest.approx(1.8)
    assert Faults().ffn_slowness() == 1.0
    assert faults.slowness("attention", 0) == 1.0


def test_a_shard_lives_as_long_as_one_of_its_replicas() -> None:
    health = ReplicaHealth(parse_topology("1A6F:ep2xr3"))
    assert health.replica_load == 1.0
    health.died(0)
    assert health.replica_load is None
    health.detecting -= 1
    assert health.replica_load == 1.5
    # Another shard's replica does not make it worse; another one of the same shard does.
    health.died(1)
    health.detecting -= 1
    assert health.replica_load == 1.5
    health.died(2)
    health.detecting -= 1
    assert health.replica_load == 3.0
    health.died(4)
    health.detecting -= 1
    assert health.replica_load is None
    health.returned(2)
    assert health.replica_load == 3.0
