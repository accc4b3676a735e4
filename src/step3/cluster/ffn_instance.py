"""What an FFN instance does: loads its piece of every layer, and serves."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import Mapping
from typing import Any

from step3.checkpoint import Checkpoint
from step3.cluster.deployment import MAX_SLOTS
from step3.cluster.ffn_server import FFNServer
from step3.cluster.instance import InstanceSettings, Membership
from step3.cluster.spans import pack_spans
from step3.engine.config import find_model
from step3.engine.engine import activation_dtype
from step3.engine.memory import open_device
from step3.ffn import FFNShard, split
from step3.wire import FFNEndpoint


class FFNPart:
    """An FFN instance. Its weights stay when it joins again for the same shard."""

    def __init__(self, settings: InstanceSettings) -> None:
        self._settings = settings
        self._loaded: tuple[object, FFNShard] | None = None
        self._server: FFNServer | None = None
        self._endpoint: FFNEndpoint | None = None
        self._membership: Membership | None = None
        self._thread: threading.Thread | None = None
        self._is_serving = False
        self._has_failed = False

    @property
    def is_alive(self) -> bool:
        return not self._has_failed

    def prepare(self, membership: Membership) -> dict[str, Any]:
        deployment, self._membership = membership.deployment, membership
        config = deployment.engine_config(self._settings.model, self._settings.device)
        checkpoint = Checkpoint.open(find_model(config))
        dtype, device = activation_dtype(config, checkpoint), open_device(config.device)
        topology = deployment.shape
        pieces = split(
            checkpoint.config.text.moe_num_experts, topology.expert_parallel, topology.tensor_parallel
        )
        piece = pieces[membership.shard]
        key = (piece, dtype, device, config.load, config.integers)
        if self._loaded is None or self._loaded[0] != key:
            in_place = config.load == "mmap"
            self._loaded = (
                key,
                FFNShard.load(checkpoint, dtype, device, piece, in_place, config.integers),
            )
        shard = self._loaded[1]
        endpoint = FFNEndpoint(
            membership.instance,
            deployment.shapes(config, checkpoint, MAX_SLOTS),
            self._settings.secret,
            epoch=membership.epoch,
            timing=deployment.timing,
            tls=None if self._settings.tls is None else self._settings.tls.listening(),
            spin=deployment.spin,
        )
        addresses = {"shm": endpoint.listen(f"shm://step3-{os.getpid()}-{secrets.token_hex(8)}")}
        if not self._settings.is_child or self._settings.advertise is not None:
            addresses["tcp"] = self._listen_tcp(endpoint)
        self._endpoint, self._server = endpoint, FFNServer(endpoint, shard, dtype, device)
        self._is_serving = True
        self._thread = threading.Thread(target=self._serve, name="step3-ffn", daemon=True)
        self._thread.start()
        return {"addresses": addresses, "weights": shard.nbytes, "device": str(device)}

    def _listen_tcp(self, endpoint: FFNEndpoint) -> str:
        """Every network can reach it: who does not know the secret is dropped."""
        assert self._membership is not None
        host = self._settings.advertise or self._membership.channel.own_host
        found = endpoint.listen("tcp://[::]:0" if ":" in host else "tcp://0.0.0.0:0")
        port = found.rpartition(":")[2]
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

    def take(self, message: Mapping[str, Any]) -> None:
        assert self._server is not None
        assert self._membership is not None
        if message["type"] == "record":
            self._server.timeline.record(message["seconds"])
        elif message["type"] == "spans":
            spans = pack_spans(self._server.timeline.spans())
            self._membership.channel.send({"type": "spans", "spans": spans})

    def tell(self) -> dict[str, Any]:
        assert self._server is not None
        counts = self._server.counts
        return {
            "ffn": {
                "seconds": counts.seconds,
                "products": counts.products,
                "calls": counts.calls,
                "tokens": counts.tokens,
            }
        }

    async def leave(self) -> None:
        self._is_serving = False
        if self._endpoint is not None and self._thread is not None:
            self._endpoint.wake()
            await asyncio.to_thread(self._thread.join)
        self._endpoint = self._thread = self._server = None

    def _serve(self) -> None:
        assert self._server is not None
        assert self._endpoint is not None
        try:
            self._server.run(lambda: self._is_serving)
        except BaseException:
            self._has_failed = True
            raise
        finally:
            self._endpoint.close()
