"""How a deployment is set up: every option checked once, where it enters."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from step3.cluster.control import check_secret, split_address
from step3.cluster.tls import TLSFiles
from step3.errors import Step3Error
from step3.plan.topology import Topology, make_topology, parse_topology

ACTIVATIONS = ("auto", "float32", "bfloat16", "fp8")
PARTIALS = ("auto", "float32", "bfloat16")
MAX_MICRO_BATCHES = 64


class ClusterError(Step3Error):
    """A deployment that cannot be, or cannot start."""


@dataclass(frozen=True)
class ClusterConfig:
    """Options of a deployment.

    Attributes:
        topology: instances by role, and how FFNs are cut.
        micro_batches: lanes of each attention instance.
        activations: format of activations on the wire; "auto" is that in which they are computed.
        partials: format of partial sums on the wire.
        threads: of each process; None to share the cores.
        bind_cores: give each process cores of its own.
        spin: seconds for which an instance looks again and again before it sleeps: it saves the time to wake
            up, and lets others have the core in between.
        listen: `HOST:PORT` at which instances may join; None for this host's own alone.
        advertise: host under which this host's FFN instances are reached from others; None for that of
            `listen`.
        local_attention, local_ffn: instances that are started here; None for all of the topology, or, with
            `listen`, for none.
        tls_cert, tls_key, tls_ca: see `step3.cluster.tls.TLSFiles`; None for no TLS between hosts.
        secret: what instances prove that they know.
        lease: seconds for which an instance counts as alive after it was heard.
        start_seconds: how long this host's instances may take to load.
    """

    topology: Topology
    micro_batches: int = 3
    activations: str = "auto"
    partials: str = "auto"
    threads: int | None = None
    bind_cores: bool = False
    spin: float = 1e-4
    listen: str | None = None
    advertise: str | None = None
    local_attention: int | None = None
    local_ffn: int | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    lease: float = 1.5
    start_seconds: float = 900.0

    def __post_init__(self) -> None:
        if self.topology.is_monolith and self.topology.attention == 1 and self.listen is None:
            raise ClusterError("1A0F is one process: leave the topology out, or give it FFN instances")
        for name, least, most in (
            ("micro_batches", 1, MAX_MICRO_BATCHES),
            ("threads", 1, 1024),
            ("local_attention", 0, self.topology.attention),
            ("local_ffn", 0, self.topology.ffn),
        ):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not least <= value <= most):
                raise ClusterError(f"{name} must be a whole number from {least} to {most}, found {value!r}")
        for name, allowed in (("activations", ACTIVATIONS), ("partials", PARTIALS)):
            if getattr(self, name) not in allowed:
                raise ClusterError(
                    f"{name} must be one of {', '.join(allowed)}, found {getattr(self, name)!r}"
                )
        for name, longest in (("spin", 1.0), ("lease", 3600.0), ("start_seconds", 86400.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= longest:
                raise ClusterError(f"{name} must be a number of seconds up to {longest:g}, found {value!r}")
        if self.lease < 0.2:
            raise ClusterError(f"a lease of {self.lease} s ends by itself: give it at least 0.2 s")
        if self.listen is not None:
            split_address(self.listen)
        check_secret(self.secret)
        if self.tls is not None and self.listen is None:
            raise ClusterError("TLS is between hosts, and without listen no other host can join: give both")

    @property
    def tls(self) -> TLSFiles | None:
        """What connections between hosts are encrypted with."""
        return TLSFiles.of(self.tls_cert, self.tls_key, self.tls_ca)

    @property
    def launches(self) -> tuple[int, int]:
        """Attention and FFN instances that are started here."""
        is_alone = self.listen is None
        attention = self.topology.attention if is_alone else 0
        ffn = self.topology.ffn if is_alone else 0
        return (
            attention if self.local_attention is None else self.local_attention,
            ffn if self.local_ffn is None else self.local_ffn,
        )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> ClusterConfig:
        """The config that keyword arguments ask for.

        Args:
            options: those of the class, with the topology as text like `3A2F:tp2`, or in parts:
                attention_instances, ffn_instances, ffn_parallel, ffn_replicas.

        Raises:
            Step3Error: an option that does not exist, or a value that cannot be.
        """
        given = dict(options)
        parts = {name: given.pop(name) for name in TOPOLOGY_PARTS if name in given}
        topology = given.pop("topology", None)
        if isinstance(topology, str):
            topology = parse_topology(topology)
        if topology is None:
            topology = make_topology(
                parts.get("attention_instances") or 1,
                parts.get("ffn_instances") or 0,
                parts.get("ffn_parallel"),
                parts.get("ffn_replicas"),
            )
        elif any(value is not None for value in parts.values()):
            raise ClusterError("the topology is given twice, whole and in parts: give it once")
        known = {one.name for one in fields(cls)}
        for name in given:
            if name not in known:
                raise ClusterError(
                    f"a deployment has no option {name!r}: there are {', '.join(sorted(known))}"
                )
        return cls(topology=topology, **given)


TOPOLOGY_PARTS = ("attention_instances", "ffn_instances", "ffn_parallel", "ffn_replicas")
OPTIONS = frozenset(one.name for one in fields(ClusterConfig)) | frozenset(TOPOLOGY_PARTS)


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the deployment, and those of the engines; None counts as not given."""
    given = {name: value for name, value in options.items() if name in OPTIONS and value is not None}
    return given, {name: value for name, value in options.items() if name not in OPTIONS}


def wants_cluster(options: Mapping[str, Any]) -> bool:
    """Whether options ask for more than one process."""
    given, _ = split_options(options)
    if "topology" in given or "listen" in given:
        return given.get("topology") != "1A0F"
    return (given.get("attention_instances") or 1) > 1 or (given.get("ffn_instances") or 0) > 0


def host_key() -> str:
    """Names what shared memory and abstract sockets are shared within: one boot of one host, and one network
    namespace."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return f"{boot}/{os.readlink('/proc/self/ns/net')}"
