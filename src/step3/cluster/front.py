"""What stands before the instances of a deployment: prompts in, outputs out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from step3.checkpoint import Checkpoint
from step3.cluster.config import ClusterConfig, ClusterError, split_options
from step3.cluster.coordinator import Coordinator
from step3.cluster.deployment import Deployment
from step3.cluster.description import describe
from step3.cluster.dispatch import Answered, Ongoing
from step3.cluster.instance import fingerprint
from step3.cluster.outputs import OutputCollector
from step3.cluster.packing import pack_params, pack_picture
from step3.cluster.registry import Role
from step3.cluster.router import block_names
from step3.cluster.spans import chrome_trace
from step3.cluster.totals import total
from step3.engine.config import EngineConfig, EngineError, find_model
from step3.engine.intake import Intake
from step3.engine.memory import MemoryPlan
from step3.engine.network import default_sampling, read_network
from step3.engine.outputs import RequestOutput
from step3.engine.prompts import Prompt
from step3.engine.request import Request, RequestError
from step3.engine.sampling.params import RequestOutputKind, SamplingParams
from step3.engine.statistics import Statistics
from step3.engine.tokens import Tokens
from step3.errors import Step3Error

_T = TypeVar("_T")


@dataclass(eq=False)
class _Stream:
    """Where the outputs of one request go."""

    collector: OutputCollector
    kind: RequestOutputKind
    put: Callable[[RequestOutput | Step3Error], None]

    def deliver(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "failed":
            self.put(RequestError(message["message"]))
            return
        output = self.collector.take(message, self.kind)
        if output is not None:
            self.put(output)


class Front:
    """Tokens in, tokens out: everything before and behind the instances, in the caller's process.

    Attributes:
        tokens: the checkpoint's tokenizer and processor.
        config: of all engines together: `max_num_seqs` and `max_num_batched_tokens` are the sums of theirs.
        memory: of one attention instance.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Starts a deployment and waits until it can answer.

        Args:
            options: of `ClusterConfig` and of `EngineConfig`.

        Raises:
            Step3Error: an option that does not exist or cannot be, or an instance that cannot load.
        """
        own, engine_options = split_options(options)
        self.cluster = ClusterConfig.from_options(own)
        config = EngineConfig.from_options(engine_options)
        folder = find_model(config)
        checkpoint = Checkpoint.open(folder)
        self._network = read_network(folder, checkpoint.config)
        self._sampling = default_sampling(folder)
        model = None if config.model is None else str(folder)
        self._coordinator = Coordinator(self.cluster, model, config.device)
        self._loop = asyncio.new_event_loop()
        self._has_stopped = False
        self._thread = threading.Thread(target=self._run, name="step3-cluster", daemon=True)
        self._thread.start()
        try:
            self.run(self._coordinator.warm_up()).result()
            self.tokens = Tokens.load(
                folder, self._network.vision is not None, config.tokenizer, config.chat_template
            )
            deployment = Deployment(
                topology=str(self.cluster.topology),
                micro_batches=self.cluster.micro_batches,
                activations=self.cluster.activations,
                partials=self.cluster.partials,
                lease=self.cluster.lease,
                spin=self.cluster.spin,
                engine=_shared_options(engine_options, config, self.cluster),
                model=fingerprint(folder),
            )
            self.run(self._coordinator.start(deployment)).result()
        except BaseException:
            self.shutdown()
            raise
        self.memory = MemoryPlan(**self.run(_as_coroutine(self._coordinator.memory)).result())
        self._intake = Intake(config, self._network, self.tokens, self.memory.max_model_len)
        self.config = of_all(config, self.cluster.topology.attention)

    @property
    def is_running(self) -> bool:
        return not self._has_stopped

    @property
    def address(self) -> str | None:
        """Where instances join; None if they cannot."""
        return self._coordinator.address

    def run(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Has the coordinator's thread do something."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def default_sampling_params(self) -> SamplingParams:
        """vLLM's defaults with the model's own recommendations."""
        return SamplingParams(**self._sampling)

    def request(
        self, prompt: Prompt, params: SamplingParams, request_id: str | None = None, priority: int = 0
    ) -> Request:
        """A checked request; on one thread at a time.

        Raises:
            Step3Error: as `Intake.request`.
        """
        # Its form is compiled where it is needed.
        return self._intake.request(
            prompt, replace(params, structured_outputs=None), request_id=request_id, priority=priority
        )

    def read_pictures(self, prompt: Prompt) -> Prompt:
        return self._intake.prompts.read_pictures(prompt)

    def count_tokens(self, prompt: Prompt) -> int:
        """The length of a prompt with the places of its pictures; on one thread at a time.

        Raises:
            Step3Error: the prompt cannot be served.
        """
        return len(self._intake.prompts.read(prompt, None).ids)

    def submit(
        self,
        request: Request,
        prompt: Prompt,
        params: SamplingParams,
        put: Callable[[RequestOutput | Step3Error], None],
    ) -> None:
        """Has a checked request answered; `put` takes its outputs on the coordinator's thread."""
        if self._has_stopped:
            put(stopped())
            return
        seed = request.sequences[0].sampling.seed
        sent = replace(params, seed=seed if seed >= 0 else seed + 2**64)
        ongoing = Ongoing(
            number=request.number,
            prompt=self._pack(request, prompt),
            params=pack_params(sent),
            priority=request.priority,
            names=block_names(request.prompt_token_ids, _salt(request)),
            num_tokens=len(request.prompt_token_ids),
            answers=[Answered() for _ in range(params.n)],
            deliver=_Stream(
                OutputCollector(request, params, self.tokens.table), params.output_kind, put
            ).deliver,
        )
        self._loop.call_soon_threadsafe(self._coordinator.requests.submit, ongoing)

    def abort(self, number: int) -> None:
        if not self._has_stopped:
            self._loop.call_soon_threadsafe(self._coordinator.requests.abort, number)

    def statistics(self) -> Statistics:
        """Of all instances together."""
        found, parked = self.run(self._read_statistics()).result()
        return total(found, parked)

    def reset_prefix_cache(self) -> None:
        self._loop.call_soon_threadsafe(self._coordinator.forget_prefixes)

    def describe(self) -> dict[str, Any]:
        """The instances, how each does, and what limits the pipeline."""
        return self.run(self._describe()).result()

    def change(self, action: str, role: Role, number: int) -> str:
        """Drains an instance, or adds one.

        Args:
            action: "drain", or "add".
            number: of the instance to be drained, or the shard to be added.

        Raises:
            ClusterError: it cannot be.
        """
        return self.run(self._change(action, role, number)).result()

    def trace(self, seconds: float) -> dict[str, Any]:
        """What all instances do for so long, in Chrome's trace format."""
        return chrome_trace(self.run(self._coordinator.record(seconds)).result())

    def shutdown(self) -> None:
        """Ends all instances that were started here."""
        if self._has_stopped:
            return
        self._has_stopped = True
        self.run(self._coordinator.stop()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            pending = asyncio.all_tasks(self._loop)
            for task in pending:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
            self._loop.close()

    def _pack(self, request: Request, prompt: Prompt) -> dict[str, Any]:
        salt = prompt.get("cache_salt") if isinstance(prompt, Mapping) else None
        if not request.pictures:
            return {"tokens": request.prompt_token_ids, "salt": salt}
        return {
            "tokens": _without_places(request, self._network.vision.image_token_id),  # type: ignore[union-attr]
            "salt": salt,
            "pictures": [pack_picture(one.image) for one in request.pictures],
        }

    async def _read_statistics(self) -> tuple[list[Mapping[str, Any]], int]:
        return self._coordinator.statistics(), self._coordinator.requests.num_parked

    async def _describe(self) -> dict[str, Any]:
        one = self._coordinator
        return describe(
            self.cluster.topology,
            one.members(),
            one.address,
            dict(one.restarts),
            one.requests.moved,
            one.requests.num_parked,
        )

    async def _change(self, action: str, role: Role, number: int) -> str:
        if action == "drain":
            self._coordinator.drain(role, number)
            return f"{role} {number} finishes what it has and leaves"
        if action == "add":
            return f"{self._coordinator.add(role, number)} is being started"
        raise ClusterError(f"a deployment can be told to add or to drain, not to {action[:40]!r}")


async def _as_coroutine(read: Callable[[], _T]) -> _T:
    return read()


def stopped() -> EngineError:
    """What is told to who asks after the end."""
    return EngineError("this deployment was shut down: start a new one")


def of_all(config: EngineConfig, instances: int) -> EngineConfig:
    """What so many attention instances of one config can do together."""
    seats, tokens = config.max_num_seqs * instances, config.max_num_batched_tokens * instances
    return replace(config, max_num_seqs=seats, max_num_batched_tokens=tokens)


def _salt(request: Request) -> bytes:
    return request.salt + b"".join(picture.digest for picture in request.pictures)


def _without_places(request: Request, image_token: int) -> list[int]:
    """The prompt with one token for each picture, as it was before their places were put in."""
    tokens, at = [], 0
    for picture in request.pictures:
        tokens += [*request.prompt_token_ids[at : picture.start], image_token]
        at = picture.end
    return tokens + request.prompt_token_ids[at:]


def _shared_options(given: Mapping[str, Any], config: EngineConfig, cluster: ClusterConfig) -> dict[str, Any]:
    """The engine options that instances get: all that were given, in a form that msgpack can carry."""
    left_out = {"model", "tokenizer", "chat_template", "device"}
    options = {name: getattr(config, name) for name in given if hasattr(config, name)}
    options = {name: value for name, value in options.items() if name not in left_out}
    if config.kv_cache_memory_bytes is None and config.device == "cpu":
        # Those of one host share its memory.
        share = (config.gpu_memory_utilization or 0.5) / max(1, cluster.launches[0])
        options["gpu_memory_utilization"] = share
    for name, value in options.items():
        if isinstance(value, Mapping):
            options[name] = dict(value)
    return options
