"""What the values of `step3 serve`'s options mean: of a deployment, of other servers' flags, and of lists."""

from __future__ import annotations

import json
import secrets
from typing import Any

from rich.console import Console

from step3.errors import Step3Error


def deployment_options(given: dict[str, Any]) -> dict[str, Any]:
    """Options of a deployment of several processes, checked; nothing for a single process.

    Raises:
        Step3Error: they cannot be, or say how to cut what is one process.
    """
    from step3.cluster.config import ClusterConfig, wants_cluster

    options = {name: value for name, value in given.items() if value is not None}
    if not wants_cluster(options):
        options.pop("attention_instances", None)
        options.pop("ffn_instances", None)
        # The environment may hold a secret that another command is to use.
        options.pop("secret", None)
        if options:
            flag = next(iter(options)).replace("_", "-").replace("tls-", "cluster-tls-")
            raise Step3Error(f"--{flag} is for several processes: give --ffn-instances, or leave it out")
        return {}
    if options.get("secret") is not None:
        options["secret"] = options["secret"].encode()
    elif options.get("listen") is not None:
        secret = secrets.token_hex(32)
        options["secret"] = secret.encode()
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"Instances join with\n  STEP3_CLUSTER_SECRET={secret} step3 attention --join HOST:PORT\n"
            f"  STEP3_CLUSTER_SECRET={secret} step3 ffn --join HOST:PORT"
        )
    ClusterConfig.from_options(options)
    return options


def refuse_parallelism(sizes: dict[str, int], node_rank: int, dist_init_addr: str | None) -> None:
    """Raises Step3Error where more than one process is asked for."""
    for flag, size in sizes.items():
        if size != 1:
            raise Step3Error(
                f"{flag} {size} cannot be honoured: processes are given by their parts here, with "
                "--attention-instances, --ffn-instances and --ffn-parallel"
            )
    if node_rank != 0 or dist_init_addr is not None:
        raise Step3Error(
            "--node-rank and --dist-init-addr cannot be honoured: instances of other machines join with "
            "step3 attention --join and step3 ffn --join; leave them out"
        )


def separate_names(given: list[str]) -> tuple[str, ...]:
    """Values that are given one by one, or several with commas between."""
    return tuple(name.strip() for one in given for name in one.split(",") if name.strip())


def drafts(text: str) -> dict[str, Any]:
    """The JSON object of --speculative-config.

    Raises:
        Step3Error: it is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Step3Error(f"--speculative-config must be a JSON object, found {text!r}")
    return value


def picture_limit(text: str) -> dict[str, int]:
    """`image=4` or `{"image": 4}`.

    Raises:
        Step3Error: it is neither.
    """
    try:
        if text.lstrip().startswith("{"):
            limits = {str(name): int(limit) for name, limit in json.loads(text).items()}
        else:
            limits = {
                name: int(limit) for name, _, limit in (part.partition("=") for part in text.split(","))
            }
    except (ValueError, TypeError, RecursionError):
        raise Step3Error(
            f'--limit-mm-per-prompt must look like image=4 or {{"image": 4}}, found {text!r}'
        ) from None
    return limits
