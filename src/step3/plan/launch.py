"""The command that starts a deployment."""

import shlex

from step3.plan.evaluate import Outcome
from step3.plan.topology import serve_arguments


def launch_command(outcome: Outcome, checkpoint: str) -> str:
    """The `step3 serve` command of a deployment, `checkpoint` being a path or a name of the model."""
    words = ["step3", "serve", checkpoint]
    deployment = outcome.deployment
    if not deployment.is_monolith:
        words += [*serve_arguments(deployment.topology), "--micro-batches", str(outcome.lanes)]
    elif deployment.cards > 1:
        words += ["--data-parallel-size", str(deployment.cards)]
    return shlex.join(words)


def launch_notes(outcome: Outcome) -> list[str]:
    """Which cards each instance of the command is for."""
    deployment = outcome.deployment
    if deployment.is_monolith:
        return []
    return [
        f"Each attention instance has {deployment.attention_cards} {deployment.attention.name}, each FFN "
        f"instance {deployment.ffn_cards} {deployment.ffn.name}.",
        "On other hosts: step3 attention --join HOST:PORT, step3 ffn --join HOST:PORT.",
    ]
