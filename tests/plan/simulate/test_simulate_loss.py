from dataclasses import replace

import pytest
from simulated import scenario

from step3.plan.simulate import simulate
from step3.plan.simulate.faults import Failure, Faults
from step3.plan.simulate.loss import loss


def test_the_loss_is_what_the_same_run_without_failures_makes_more() -> None:
    faults = Faults(failures=(Failure("ffn", 0, 0.5),), detection=0.1, restart=0.3)
    disturbed = scenario("1A1F", faults=faults)
    undisturbed = replace(disturbed, faults=replace(faults, failures=()))
    cost = loss(simulate(disturbed), simulate(undisturbed))
    assert cost.seconds == pytest.approx(0.3, abs=0.03)
    assert cost.tokens == pytest.approx(0.3 * 12 / 15e-3, rel=0.1)
    assert 0.3 <= cost.longest_gap <= 0.35
    assert cost.longest_gap_before == pytest.approx(15e-3, rel=0.01)
    assert cost.recomputed_tokens == 0
