"""What an attention instance does: the engine without FFNs, whose requests come from the coordinator."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from step3.checkpoint import Checkpoint
from step3.cluster.config import host_key
from step3.cluster.ffn_link import FFNMember, WireLink
from step3.cluster.instance import InstanceSettings, Membership
from step3.cluster.packing import pack_answer, pack_logprobs, unpack_params, unpack_prompt
from step3.cluster.spans import pack_spans
from step3.engine.async_llm import AsyncLLM
from step3.engine.config import EngineError, find_model
from step3.engine.driver import LaneDriver
from step3.engine.loading import load
from step3.engine.outputs import RequestOutput
from step3.engine.timeline import Timeline
from step3.errors import Step3Error
from step3.wire import AttentionEndpoint

log = logging.getLogger("step3.cluster")

UNLIMITED = 1 << 30
"""Requests that may wait: the coordinator decides."""


class AttentionPart:
    """An attention instance."""

    def __init__(self, settings: InstanceSettings) -> None:
        self._settings = settings
        self._llm: AsyncLLM | None = None
        self._link: WireLink | None = None
        self._timeline: Timeline | None = None
        self._membership: Membership | None = None
        self._answering: dict[int, asyncio.Task[None]] = {}
        self._ffns: list[FFNMember] = []

    @property
    def is_alive(self) -> bool:
        return self._llm is None or self._llm.is_running

    def prepare(self, membership: Membership) -> dict[str, Any]:
        deployment, self._membership = membership.deployment, membership
        config = deployment.engine_config(self._settings.model, self._settings.device)
        checkpoint = Checkpoint.open(find_model(config))
        topology, lanes = deployment.shape, deployment.micro_batches
        if topology.is_monolith:
            self._llm = AsyncLLM.with_config(config, UNLIMITED)
        else:
            model = load(config, num_lanes=lanes, holds_ffn=False)
            out, back = deployment.formats(config, checkpoint)
            endpoint = AttentionEndpoint(
                membership.instance,
                # One call of each lane is outstanding, and as many again may be that are no longer wanted.
                deployment.shapes(config, checkpoint, 2 * lanes + 2),
                self._settings.secret,
                activations=out,
                partials=back,
                epoch=membership.epoch,
                timing=deployment.timing,
                tls=None if self._settings.tls is None else self._settings.tls.connecting(),
                spin=deployment.spin,
            )
            self._timeline = Timeline(lanes)
            self._link = WireLink(endpoint, topology.shards, self._timeline)
            self._link.use(self._ffns)
            driver = LaneDriver(model.engine, self._link, self._timeline)
            self._llm = AsyncLLM.driven(config, model, driver, UNLIMITED)
        memory = asdict(self._llm.memory)
        return {"memory": memory, "device": config.device, "addresses": {}}

    def take(self, message: Mapping[str, Any]) -> None:
        assert self._membership is not None or message["type"] == "members"
        match message["type"]:
            case "members":
                self._use(message["members"])
            case "generate":
                number = message["number"]
                task = asyncio.create_task(self._answer(message))
                self._answering[number] = task
                task.add_done_callback(lambda _: self._answering.pop(number, None))
            case "abort":
                task_or_none = self._answering.get(message["number"])
                if task_or_none is not None:
                    task_or_none.cancel()
            case "forget_prefixes":
                assert self._llm is not None
                self._llm.reset_prefix_cache()
            case "record":
                if self._timeline is not None:
                    self._timeline.record(message["seconds"])
            case "spans":
                spans = [] if self._timeline is None else pack_spans(self._timeline.spans())
                self._send({"type": "spans", "spans": spans})

    def tell(self) -> dict[str, Any]:
        assert self._llm is not None
        told: dict[str, Any] = {"statistics": asdict(self._llm.get_statistics())}
        if self._timeline is not None and self._link is not None:
            told["lanes"] = [[one.seconds, one.steps, one.calls, one.tokens] for one in self._timeline.lanes]
            told["idle_seconds"] = self._timeline.idle_seconds
            told["link"] = asdict(self._link.counts)
            told["reachable"] = list(self._link.reachable)
        return told

    async def leave(self) -> None:
        for task in list(self._answering.values()):
            task.cancel()
        await asyncio.gather(*self._answering.values(), return_exceptions=True)
        if self._llm is not None:
            await asyncio.to_thread(self._llm.shutdown)
        self._llm = self._link = self._timeline = None

    def _use(self, members: list[list[Any]]) -> None:
        """FFN instances, each with its addresses: shared memory where it is this host's."""
        host, found = host_key(), []
        for instance, shard, epoch, ffn_host, addresses in members:
            is_here = ffn_host == host and "shm" in addresses
            address = addresses["shm"] if is_here else addresses.get("tcp")
            if address is not None:
                found.append(FFNMember(instance, shard, epoch, address))
        self._ffns = found
        if self._link is not None:
            self._link.use(found)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._membership is not None
        self._membership.channel.send(message)

    async def _answer(self, message: Mapping[str, Any]) -> None:
        number, attempt = message["number"], message["attempt"]
        tell = partial(self._send_output, number, attempt)
        try:
            assert self._llm is not None
            params = unpack_params(message["params"])
            stream = self._llm.generate(
                unpack_prompt(message["prompt"]),
                params,
                str(number),
                priority=message["priority"],
                output_token_ids=message["tokens"],
            )
            # What the other side has already comes once more, with the first outputs.
            known = [len(tokens) for tokens in message["tokens"]] or [0] * params.n
            told = list(message["characters"]) or [0] * params.n
            is_first = True
            try:
                async for output in stream:
                    answers = []
                    for one in output.outputs:
                        answers.append(pack_answer(one, known[one.index], told[one.index]))
                        known[one.index] = max(0, known[one.index] - len(one.token_ids))
                        told[one.index] = max(0, told[one.index] - len(one.text))
                    tell(answers, output if is_first or output.finished else None)
                    is_first = False
            finally:
                await stream.aclose()  # type: ignore[attr-defined]
        except EngineError as error:
            # The engine has stopped: this process ends, and its requests go on elsewhere.
            log.error("request %d cannot go on here: %s", number, error, exc_info=error.__cause__)
        except Step3Error as error:
            self._send({"type": "failed", "number": number, "attempt": attempt, "message": str(error)})
        except Exception:
            traceback.print_exc()
            message_text = "the engine failed to answer this request"
            self._send({"type": "failed", "number": number, "attempt": attempt, "message": message_text})

    def _send_output(
        self, number: int, attempt: int, answers: list[list[Any]], whole: RequestOutput | None
    ) -> None:
        message: dict[str, Any] = {
            "type": "output",
            "number": number,
            "attempt": attempt,
            "answers": answers,
        }
        if whole is not None:
            message["cached"] = whole.num_cached_tokens
            message["finished"] = whole.finished
            message["preemptions"] = whole.metrics.num_preemptions if whole.metrics else 0
            if whole.prompt_logprobs is not None:
                message["prompt_logprobs"] = [
                    None if one is None else pack_logprobs(one) for one in whole.prompt_logprobs
                ]
        self._send(message)
