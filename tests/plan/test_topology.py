import pytest
from hypothesis import given
from hypothesis import strategies as st

from step3.errors import Step3Error
from step3.plan.topology import (
    Placement,
    Topology,
    TopologyError,
    make_topology,
    parse_topology,
    serve_arguments,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2A2F", Topology(2, 2, 2)),
        ("1A0F", Topology(1, 0)),
        ("1a1f", Topology(1, 1)),
        ("3A2F:tp2", Topology(3, 2, 1, 2)),
        ("3A2F:ep", Topology(3, 2, 2)),
        ("4A4F:ep2xtp2", Topology(4, 4, 2, 2)),
        ("4A4F:tp2xep2", Topology(4, 4, 2, 2)),
        ("2A4F:ep2xr2", Topology(2, 4, 2, 1, 2)),
        ("2A8F:ep2xtp2xr2", Topology(2, 8, 2, 2, 2)),
        ("2A6F:r2", Topology(2, 6, 3, 1, 2)),
        ("2A6F:tpxr3", Topology(2, 6, 1, 2, 3)),
    ],
)
def test_reads_the_notation(text: str, expected: Topology) -> None:
    assert parse_topology(text) == expected


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    ep, tp, replicas = (draw(st.integers(1, 12)) for _ in range(3))
    monolith = draw(st.booleans())
    if monolith:
        return Topology(draw(st.integers(1, 500)), 0)
    return Topology(draw(st.integers(1, 500)), ep * tp * replicas, ep, tp, replicas)


@given(topologies())
def test_reading_what_was_written_gives_it_back(topology: Topology) -> None:
    assert parse_topology(str(topology)) == topology


@given(topologies())
def test_the_serve_flags_say_the_same(topology: Topology) -> None:
    flags = serve_arguments(topology)
    values = dict(zip(flags[::2], flags[1::2], strict=True))
    replicas = values.get("--ffn-replicas")
    again = make_topology(
        int(values["--attention-instances"]),
        int(values["--ffn-instances"]),
        values.get("--ffn-parallel"),
        int(replicas) if replicas else None,
    )
    assert again == topology


@given(topologies())
def test_every_ffn_instance_holds_its_own_place(topology: Topology) -> None:
    places = [topology.placement(i) for i in range(topology.ffn)]
    assert len(set(places)) == topology.ffn
    for place in places:
        assert place.expert < topology.expert_parallel
        assert place.tensor < topology.tensor_parallel
        assert place.replica < topology.replicas


def test_slices_of_one_range_of_experts_are_neighbours() -> None:
    topology = parse_topology("1A8F:ep2xtp2xr2")
    assert [topology.placement(i) for i in (0, 1, 2, 4)] == [
        Placement(0, 0, 0),
        Placement(0, 1, 0),
        Placement(1, 0, 0),
        Placement(0, 0, 1),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not a topology"),
        ("2A", "is not a topology"),
        ("2A2F:", "is not a topology"),
        ("2A2F:pp2", "how to cut"),
        ("2A2F:rxep", "how to cut"),
        ("0A2F", "attention must be from 1"),
        ("2A20000F", "ffn must be from 0"),
        ("2A2F:ep3", "multiply to 3"),
        ("2A0F:ep2", "multiply to 2"),
        ("2A2F:ep0", "expert_parallel must be from 1"),
        ("2A4F:ep2xep2", "ep twice"),
        ("2A4F:epxtp", "write the numbers"),
        ("2A5F:r2", "cannot be shared"),
        ("9" * 1000, "is not a topology"),
    ],
)
def test_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(TopologyError, match=says) as error:
        parse_topology(text)
    assert isinstance(error.value, Step3Error)
    assert len(str(error.value)) < 200


def test_flags_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(TopologyError, match="contradict"):
        make_topology(2, 4, "ep2xr2", 4)
    with pytest.raises(TopologyError, match="no FFN instance 2"):
        parse_topology("2A2F").placement(2)
