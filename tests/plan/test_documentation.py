import doctest
from pathlib import Path

PLANNER = Path(__file__).parents[2] / "docs" / "planner.md"


def test_every_example_of_the_planners_page_gives_what_it_says() -> None:
    failures, tried = doctest.testfile(str(PLANNER), module_relative=False)
    assert tried >= 20
    assert failures == 0
