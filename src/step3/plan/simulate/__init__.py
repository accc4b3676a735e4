"""A deployment serving requests, simulated event by event.

`Scenario` says what, `simulate` runs it, `Result` is what came of it.
"""

from step3.plan.simulate.result import Result, simulate
from step3.plan.simulate.scenario import Cards, Scenario

__all__ = ["Cards", "Result", "Scenario", "simulate"]
