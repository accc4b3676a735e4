"""`step3 attention` and `step3 ffn`: instances that join a deployment from any host."""

from __future__ import annotations

import typer

from step3.errors import Step3Error

_JOIN = typer.Option(..., help="HOST:PORT that step3 serve --listen takes instances at.")
_SECRET = typer.Option(None, envvar="STEP3_CLUSTER_SECRET", help="The deployment's secret.")
_MODEL = typer.Argument(None, help="The same checkpoint as the server's; left out, the bundled model.")
_DEVICE = typer.Option(None, help="Where to compute; left out, as the server's --device says.")
_THREADS = typer.Option(None, min=1, help="Threads to compute with.")
_TLS_CERT = typer.Option(None, help="This host's certificate, in PEM: encrypts what goes to other hosts.")
_TLS_KEY = typer.Option(None, help="The certificate's private key.")
_TLS_CA = typer.Option(None, help="The authority whose certificates the deployment's hosts have.")
_CORES = typer.Option(None, help="Cores to be bound to, like 0-3,8.")


def attention(
    model: str | None = _MODEL,
    join: str = _JOIN,
    cluster_secret: str | None = _SECRET,
    device: str | None = _DEVICE,
    threads: int | None = _THREADS,
    cores: str | None = _CORES,
    cluster_tls_cert: str | None = _TLS_CERT,
    cluster_tls_key: str | None = _TLS_KEY,
    cluster_tls_ca: str | None = _TLS_CA,
) -> None:
    """Compute attention, KV cache and sampling for a deployment; Ctrl-C leaves, and requests go on elsewhere.

    \b
    STEP3_CLUSTER_SECRET=... step3 attention ./step3-fp8 --join 10.0.0.1:7000
    """
    tls = cluster_tls_cert, cluster_tls_key, cluster_tls_ca
    _run("attention", model, join, cluster_secret, device, threads, cores, None, tls)


def ffn(
    model: str | None = _MODEL,
    join: str = _JOIN,
    cluster_secret: str | None = _SECRET,
    device: str | None = _DEVICE,
    threads: int | None = _THREADS,
    cores: str | None = _CORES,
    cluster_tls_cert: str | None = _TLS_CERT,
    cluster_tls_key: str | None = _TLS_KEY,
    cluster_tls_ca: str | None = _TLS_CA,
    advertise: str | None = typer.Option(
        None, help="Host under which attention instances reach this one; found out if left out."
    ),
) -> None:
    """Compute FFNs for a deployment: the shard that has the fewest instances.

    \b
    STEP3_CLUSTER_SECRET=... step3 ffn ./step3-fp8 --join 10.0.0.1:7000
    """
    tls = cluster_tls_cert, cluster_tls_key, cluster_tls_ca
    _run("ffn", model, join, cluster_secret, device, threads, cores, advertise, tls)


def read_cores(text: str) -> tuple[int, ...]:
    """`0-3,8` as numbers.

    Raises:
        Step3Error: it is not of that form, or names cores that this process may not use.
    """
    from step3.cluster.processes import usable_cores

    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.strip().isdecimal() or not (last or first).strip().isdecimal():
            raise Step3Error(f"--cores must look like 0-3,8, found {text[:100]!r}")
        low, high = int(first), int(last or first)
        if high - low > 4096:
            raise Step3Error(f"--cores names more cores than any host has: {text[:100]!r}")
        found.update(range(low, high + 1))
    usable = usable_cores()
    missing = sorted(found - set(usable))
    if missing:
        raise Step3Error(f"--cores names core {missing[0]}, which cannot be used here: there are {usable}")
    return tuple(sorted(found))


def _run(
    role: str,
    model: str | None,
    join: str,
    secret: str | None,
    device: str | None,
    threads: int | None,
    cores: str | None,
    advertise: str | None,
    tls: tuple[str | None, str | None, str | None],
) -> None:
    import logging
    import os
    import signal
    import sys

    from step3.cluster import control
    from step3.cluster.instance import InstanceSettings, run_instance
    from step3.cluster.tls import TLSFiles

    control.split_address(join)
    if not secret:
        raise Step3Error("what is the deployment's secret? Set STEP3_CLUSTER_SECRET")
    control.check_secret(secret.encode())
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    settings = InstanceSettings(
        role="attention" if role == "attention" else "ffn",
        join=join,
        secret=secret.encode(),
        model=model,
        device=device,
        threads=threads,
        cores=None if cores is None else read_cores(cores),
        advertise=advertise,
        tls=TLSFiles.of(*tls),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = 0
    try:
        run_instance(settings)
    except KeyboardInterrupt:
        pass
    except Step3Error as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    sys.stderr.flush()
    # A thread that still computes must not hold the process.
    os._exit(status)
