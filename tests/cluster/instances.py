"""A whole topology in one process: FFN servers on threads, attention engines here, the real wire between."""

from __future__ import annotations

import random
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from engine_requests import GOLDEN, shared_llm

from step3.checkpoint import Checkpoint
from step3.cluster.ffn_link import FFNMember, WireLink
from step3.cluster.ffn_server import FFNServer
from step3.engine.config import EngineConfig
from step3.engine.driver import LaneDriver
from step3.engine.engine import Engine
from step3.engine.intake import Intake
from step3.engine.network import read_network
from step3.engine.timeline import Timeline
from step3.ffn import FFNShard, split
from step3.plan.topology import Topology
from step3.wire import AttentionEndpoint, FFNEndpoint, Format, Shapes, Timing

# A loaded test machine may stop a thread for a while.
TIMING = Timing(silence=30.0, handshake=30.0)
SECRET = secrets.token_bytes(32)
CHECKPOINT = Checkpoint.open(GOLDEN / "text")


def shapes(slots: int = 64) -> Shapes:
    sizes = CHECKPOINT.config.text
    return Shapes(
        sizes.hidden_size, 2048, sizes.num_hidden_layers, sizes.moe_num_experts, sizes.moe_top_k, slots
    )


class Server:
    """An FFN instance on a thread."""

    def __init__(self, instance: int, topology: Topology, epoch: int = 0) -> None:
        pieces = split(8, topology.expert_parallel, topology.tensor_parallel)
        shard = instance % topology.shards
        self.endpoint = FFNEndpoint(instance, shapes(), SECRET, epoch=epoch, timing=TIMING)
        address = self.endpoint.listen(f"shm://step3-test-{secrets.token_hex(8)}")
        self.member = FFNMember(instance, shard, epoch, address)
        weights = FFNShard.load(CHECKPOINT, torch.float32, piece=pieces[shard])
        self.server = FFNServer(self.endpoint, weights, torch.float32)
        self._is_running = True
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.server.run(lambda: self._is_running)
        self.endpoint.close()

    def stop(self) -> None:
        if self._is_running:
            self._is_running = False
            self.endpoint.wake()
            self._thread.join()


class Attention:
    """An attention instance, driven by who made it."""

    def __init__(self, instance: int, topology: Topology, lanes: int, members: list[FFNMember]) -> None:
        config = EngineConfig(dtype="float32", max_model_len=1024, max_num_seqs=6)
        network = read_network(GOLDEN / "text", CHECKPOINT.config)
        self.engine = Engine(config, CHECKPOINT, network, num_lanes=lanes, holds_ffn=False)
        self.intake = Intake(config, network, shared_llm("text")._model.tokens, 1024)
        endpoint = AttentionEndpoint(
            instance,
            shapes(lanes + 2),
            SECRET,
            activations=Format.FLOAT32,
            partials=Format.FLOAT32,
            timing=TIMING,
        )
        timeline = Timeline(lanes)
        self.link = WireLink(endpoint, topology.shards, timeline)
        self.link.use(members)
        self.driver = LaneDriver(self.engine, self.link, timeline)


@contextmanager
def running(topology: Topology, lanes: int) -> Iterator[tuple[list[Attention], list[Server]]]:
    servers = [Server(instance, topology) for instance in range(topology.ffn)]
    members = [server.member for server in servers]
    attentions = [Attention(number, topology, lanes, members) for number in range(topology.attention)]
    try:
        yield attentions, servers
    finally:
        for attention in attentions:
            attention.driver.close()
        for server in servers:
            server.stop()


def finish(attentions: list[Attention], draw: random.Random) -> None:
    """Steps until nothing is left to do."""
    while busy := [one for one in attentions if one.engine.has_requests]:
        draw.choice(busy).driver.step()
