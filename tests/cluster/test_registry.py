"""Members, their numbers, epochs and leases."""

import pytest

from step3.cluster.config import ClusterError
from step3.cluster.registry import Member, Registry, Role, State
from step3.plan.topology import parse_topology


def registry(topology: str = "2A4F:ep2xr2") -> Registry:
    return Registry(parse_topology(topology), lease=2.0, first_epoch=10)


def join(one: Registry, role: Role, now: float = 0.0, wanted: int | None = None) -> Member:
    return one.join(role, "host", 1, now, loading_lease=100.0, wanted=wanted)


def test_instances_are_numbered_as_the_topology_is_filled() -> None:
    one = registry()
    assert [join(one, "ffn").shard for _ in range(5)] == [0, 1, 0, 1, 0]
    assert [member.instance for member in one.members("ffn")] == [0, 1, 2, 3, 4]
    assert [join(one, "attention").instance for _ in range(3)] == [0, 1, 2]


def test_the_shard_that_has_the_fewest_instances_gets_the_next() -> None:
    one = registry()
    members = [join(one, "ffn") for _ in range(4)]
    one.remove(members[1])
    one.remove(members[3])
    assert (join(one, "ffn").instance, join(one, "ffn").instance) == (1, 3)


def test_every_incarnation_has_a_larger_epoch() -> None:
    one = registry()
    first = join(one, "attention")
    one.remove(first)
    second = join(one, "attention")
    assert second.instance == first.instance
    assert second.epoch > first.epoch
    assert one.holds(second)
    assert not one.holds(first)
    # What is removed late does not take its successor with it.
    one.remove(first)
    assert one.holds(second)


def test_a_number_that_is_taken_is_refused() -> None:
    one = registry()
    join(one, "ffn", wanted=2)
    with pytest.raises(ClusterError, match="FFN instance 2 is there already"):
        join(one, "ffn", wanted=2)
    with pytest.raises(ClusterError, match="has no FFN instances"):
        join(registry("2A0F"), "ffn")


def test_a_lease_ends_unless_it_is_renewed() -> None:
    one = registry()
    member = join(one, "ffn")
    one.make_ready(member, {}, now=10.0)
    assert one.expired(11.9) == []
    one.renew(member, 11.9)
    assert one.expired(13.8) == []
    assert one.expired(14.0) == [member]


def test_loading_may_take_longer_than_a_lease() -> None:
    one = registry()
    member = join(one, "ffn")
    one.renew(member, 1.0)
    assert one.expired(99.0) == []
    assert one.expired(101.0) == [member]


def test_shards_of_which_nobody_is_ready_are_missing() -> None:
    one = registry()
    members = [join(one, "ffn") for _ in range(3)]
    assert one.missing_shards() == [0, 1]
    one.make_ready(members[1], {}, 0)
    one.make_ready(members[2], {}, 0)
    assert one.missing_shards() == []
    members[2].state = State.DRAINING
    assert one.missing_shards() == [0]
    assert registry("2A0F").missing_shards() == []
