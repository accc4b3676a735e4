"""How long a dead process is not replaced."""

from step3.cluster.processes import (
    FIRST_BACK_OFF,
    LONGEST_BACK_OFF,
    OLD_AGE,
    STAND_IN_BACK_OFF,
    BackOff,
)


def test_who_dies_young_again_and_again_waits_longer_each_time_up_to_a_bound() -> None:
    back_off = BackOff()
    waits = [back_off.next(lived=0.1) for _ in range(12)]
    assert waits[:3] == [FIRST_BACK_OFF, 2 * FIRST_BACK_OFF, 4 * FIRST_BACK_OFF]
    assert waits[-1] == LONGEST_BACK_OFF


def test_who_lived_long_is_replaced_soon() -> None:
    back_off = BackOff()
    for _ in range(12):
        back_off.next(lived=0.1)
    assert back_off.next(lived=OLD_AGE + 1) == FIRST_BACK_OFF


def test_a_stand_in_has_the_cores_to_itself_while_it_takes_over() -> None:
    assert BackOff().next(lived=60.0, has_stand_in=True) == STAND_IN_BACK_OFF
    back_off = BackOff(seconds=4.0)
    assert back_off.next(lived=0.1, has_stand_in=True) == 4.0
