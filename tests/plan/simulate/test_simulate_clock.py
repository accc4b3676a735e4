from step3.plan.simulate.clock import Clock, Order


def test_events_happen_by_time_then_by_order_then_as_they_were_named() -> None:
    clock, seen = Clock(), []
    clock.at(2.0, Order.READY, seen.append, "later")
    clock.at(1.0, Order.SERVE, seen.append, "served")
    clock.at(1.0, Order.ARRIVAL, seen.append, "came first")
    clock.at(1.0, Order.ARRIVAL, seen.append, "came second")
    assert not clock.run(5.0)
    assert seen == ["came first", "came second", "served", "later"]
    assert clock.events == 4


def test_run_stops_at_its_end_and_goes_on_from_there() -> None:
    clock, seen = Clock(), []
    for seconds in (1.0, 2.0, 3.0):
        clock.at(seconds, Order.READY, seen.append, seconds)
    assert clock.run(2.5)
    assert (seen, clock.now) == ([1.0, 2.0], 2.5)
    assert not clock.run(3.0)
    assert seen[-1] == 3.0


def test_simultaneous_takes_only_what_happens_now_in_that_order() -> None:
    clock, taken = Clock(), []

    def first(_: None) -> None:
        while (other := clock.simultaneous(Order.SEND)) is not None:
            taken.append(other)

    clock.at(1.0, Order.SEND, first, None)
    clock.at(1.0, Order.SEND, taken.append, "now")
    clock.at(1.0, Order.REACH, lambda _: None, "another order")
    clock.at(2.0, Order.SEND, lambda _: None, "later")
    clock.run(1.0)
    assert taken == ["now"]


def test_dropped_events_never_happen() -> None:
    clock, seen = Clock(), []
    for name in ("kept", "dropped"):
        clock.at(1.0, Order.READY, seen.append, name)
    clock.drop(lambda _, argument: argument == "dropped")
    clock.run(1.0)
    assert seen == ["kept"]
