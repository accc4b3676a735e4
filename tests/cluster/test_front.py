"""What the front of a deployment knows before any instance is there."""

from step3.cluster.front import of_all
from step3.engine.config import EngineConfig


def test_instances_with_few_tokens_a_step_make_a_deployment_with_many() -> None:
    whole = of_all(EngineConfig(max_num_seqs=96, max_num_batched_tokens=128), 3)
    assert (whole.max_num_seqs, whole.max_num_batched_tokens) == (288, 384)
