"""The engine of one attention instance: takes requests, runs steps, tells what came of them."""

from __future__ import annotations

import secrets
from collections.abc import Generator
from concurrent import futures
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from step3.checkpoint import Checkpoint
from step3.engine.batch import BatchBuilder
from step3.engine.config import EngineConfig, EngineError
from step3.engine.decoder import Decoder, DecoderWeights
from step3.engine.decoding import StepDecoder
from step3.engine.drafter import Drafter
from step3.engine.kv_cache import KVCache
from step3.engine.kv_store import KVStore
from step3.engine.lane import NOTHING, Lane, StepResult
from step3.engine.memory import MemoryPlan, open_device, plan_memory
from step3.engine.network import Network
from step3.engine.packed_decoder import PackedDecoder, PackedDecoderWeights, attention_shape
from step3.engine.pictures import PictureEncoder
from step3.engine.prefix_cache import PrefixCache
from step3.engine.progress import flush
from step3.engine.request import Request, Sequence, Status
from step3.engine.sampling.speculation import Speculation, SpeculationCounts
from step3.engine.scheduler import Scheduler, WaitingQueue
from step3.engine.statistics import Statistics, StatisticsRecorder
from step3.engine.vision import VisionTower
from step3.errors import Step3Error
from step3.ffn import FFNCall, FFNShard
from step3.kernels.cpu import open_library, why_not, why_not_int8
from step3.kernels.cpu.attention import AttentionShape
from step3.kernels.cpu.weights import InPlace, Packing

if TYPE_CHECKING:
    from step3.model.image_processing_step3 import Step3ImageProcessor

FP8 = torch.float8_e4m3fn


class Engine:
    """An attention instance: its lanes, the KV cache and queue that they share, and what goes on in them.

    As a monolith it holds the FFNs too and has one lane, and `step` does everything. With FFNs elsewhere,
    whoever drives the lanes answers their calls, and tells `settle` what came of each lane's step.

    Attributes:
        network: what the checkpoint's config says.
        memory: where the memory went.
        kernels: what computes attention, for a person.
        lanes: its micro-batches.
        ffn: the FFNs, or None if they are elsewhere.
    """

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint,
        network: Network,
        image_processor: Step3ImageProcessor | None = None,
        *,
        num_lanes: int = 1,
        holds_ffn: bool = True,
    ) -> None:
        """Loads the weights and takes the KV cache's memory.

        Args:
            num_lanes: lanes, among which `max_num_seqs` and `max_num_batched_tokens` are divided.
            holds_ffn: whether FFNs are computed here.

        Raises:
            CheckpointError: a tensor is missing or misshapen.
            EngineError: there is no such device, or the memory budget cannot work.
        """
        self.network = network
        device = open_device(config.device)
        dtype = activation_dtype(config, checkpoint)
        kv_dtype = dtype if config.kv_cache_dtype == "auto" else _kv_dtype(config.kv_cache_dtype)
        shape = attention_shape(network, kv_dtype, config.block_size)
        obstacle = _obstacle_to_kernels(shape, dtype, device)
        library = open_library() if obstacle is None else None
        # Where another device holds the attention side, "mmap" and 8-bit activations are meant for the FFN
        # instances.
        is_for_this = holds_ffn or device.type == "cpu"
        in_place = config.load == "mmap" and is_for_this
        if in_place and library is None:
            raise EngineError(
                f"load = 'mmap' is for the CPU kernels, which cannot be used: {obstacle or why_not()}"
            )
        if config.int8_activations and is_for_this:
            reason = f"it is for the CPU kernels, which cannot be used: {obstacle}" if obstacle else None
            if reason := reason or why_not_int8(library, checkpoint.config.quantisation is not None):
                raise EngineError(f"int8_activations cannot be had: {reason}")
        self.kernels = (
            f"the CPU kernels for {library.level}" if library else f"torch: {obstacle or why_not()}"
        )
        if library is None:
            weights: DecoderWeights | PackedDecoderWeights = DecoderWeights.load(checkpoint, dtype, device)
        else:
            placement = (InPlace if in_place else Packing)(library, integers=config.integers)
            weights = PackedDecoderWeights.load(checkpoint, placement)
        self.ffn = None
        if holds_ffn:
            self.ffn = FFNShard.load(checkpoint, dtype, device, in_place=in_place, integers=config.integers)
        held = weights.nbytes + (self.ffn.nbytes if self.ffn else 0)
        pictures = None
        if network.vision is not None and image_processor is not None:
            # Pictures are rows enough for integers whatever is computed beside them.
            seen = None if library is None else (InPlace if in_place else Packing)(library, integers=16)
            tower = VisionTower.load(checkpoint, network.vision, dtype, device, seen)
            pictures = PictureEncoder(tower, image_processor, config.picture_cache_bytes)
            held += tower.nbytes
        self.memory: MemoryPlan = plan_memory(
            config, network.sizes, network.max_positions, held, kv_dtype, held if in_place else 0
        )
        blocks, block_size = self.memory.num_blocks, config.block_size
        store = KVStore(network.sizes, blocks, block_size, kv_dtype, device)
        decoder = (
            PackedDecoder(network, weights, store, shape, self.ffn.packed if self.ffn else None)
            if isinstance(weights, PackedDecoderWeights)
            else Decoder(network, weights, store)
        )
        prefixes = None
        if config.enable_prefix_caching:
            prefixes = PrefixCache(block_size, key=secrets.token_bytes(32))
        self._cache = KVCache(blocks, block_size, prefixes)
        self._waiting = WaitingQueue()
        self.lanes = tuple(
            self._make_lane(config, num_lanes, decoder, pictures, device) for _ in range(num_lanes)
        )
        self._requests: dict[str, Request] = {}
        self._compiling: list[Request] = []
        self._complete: list[Sequence] = []
        self._recorder = StatisticsRecorder()

    def _make_lane(
        self,
        config: EngineConfig,
        num_lanes: int,
        decoder: StepDecoder,
        pictures: PictureEncoder | None,
        device: torch.device,
    ) -> Lane:
        seats, longest = -(-config.max_num_seqs // num_lanes), self.memory.max_model_len
        tokens = max(seats, config.max_num_batched_tokens // num_lanes)
        drafter = None if config.drafts is None else Drafter(Speculation(*config.drafts))
        fill = None if drafter is None else drafter.fill
        share = self._share if num_lanes > 1 else None
        scheduler = Scheduler(self._cache, self._waiting, seats, tokens, longest, fill, share)
        builder = BatchBuilder(seats, self._cache.blocks_for(longest), pictures)
        return Lane(scheduler, self._cache, builder, decoder, device, drafter)

    @property
    def has_requests(self) -> bool:
        """Whether anything is unfinished."""
        return bool(self._requests)

    def add(self, request: Request) -> None:
        """Queues a checked request. Its answers come out of `step`.

        Raises:
            Step3Error: an unfinished request has the same id.
        """
        if request.id in self._requests:
            raise Step3Error(f"request {request.id!r} is being answered already: give each its own id")
        self._requests[request.id] = request
        for sequence in request.sequences:
            if sequence.finish_reason is None:
                self._waiting.add(sequence)
            else:
                # It was to go on from tokens with which it had ended already: nobody waits for its prompt.
                sequence.status = Status.FINISHED
                request.is_prompt_computed = True
                self._complete.append(sequence)
        if request.grammar is not None and not request.is_finished:
            self._compiling.append(request)

    def abort(self, request_id: str) -> Request | None:
        """Ends a request with "abort" and frees all that it holds; None if it is not there (any more)."""
        request = self._requests.get(request_id)
        if request is not None:
            self._end(request, "abort")
        return request

    def step(self) -> StepResult:
        """Computes a batch of each lane, one lane after the other; for an engine that holds the FFNs.

        Whoever steps does so within `torch.inference_mode()`, which takes long to enter for each step anew.
        """
        result = self.poll()
        with_news = [result] if result.advanced else []
        for lane in self.lanes:
            result = self.settle(self._drive(lane.step()))
            if result.advanced:
                with_news.append(result)
        return with_news[0] if len(with_news) == 1 else StepResult.merged(with_news)

    def poll(self) -> StepResult:
        """Starts what may start by now, and tells what has ended without a step: answers that were complete
        when they came, and those of requests whose form cannot be compiled."""
        if not self._complete and not self._compiling:
            return NOTHING
        ended, self._complete = self._complete, []
        for request in [one for one in self._compiling if one.grammar is not None and one.grammar.done()]:
            grammar: futures.Future[Any] = request.grammar  # type: ignore[assignment]
            try:
                compiled = grammar.result()
            except Step3Error as error:
                request.error = error
                self._end(request, "error")
                ended += request.sequences
                continue
            self._compiling.remove(request)
            request.grammar = None
            for sequence in request.sequences:
                sequence.sampling.constrain(compiled.start(request.grammar_after))
        return self.settle(StepResult(ended, [], ended, 0))

    def settle(self, result: StepResult) -> StepResult:
        """Notes what came of a lane's step, and gives it back."""
        self._recorder.record_step(result.num_tokens, result.begun)
        for sequence in result.ended:
            request = sequence.request
            # Several answers may end in one step; the request ends once.
            if request.is_finished and self._requests.pop(request.id, None) is not None:
                self._recorder.record_finished(request)
        return result

    def wait_for_grammar(self, seconds: float = 0.05) -> None:
        """Sleeps until a grammar is compiled, if nothing else can be done; at most `seconds`."""
        grammars = [request.grammar for request in self._compiling if request.grammar is not None]
        if grammars and not any(lane.scheduler.running for lane in self.lanes):
            futures.wait(grammars, timeout=seconds, return_when=futures.FIRST_COMPLETED)

    def statistics(self) -> Statistics:
        """How things stand now, and what was counted since the start."""
        prefixes = self._cache.prefixes
        counts = [lane.drafter.counts for lane in self.lanes if lane.drafter]
        return self._recorder.snapshot(
            waiting=len(self._waiting),
            running=sum(len(lane.scheduler.running) for lane in self.lanes),
            kv_cache_usage=self._cache.usage,
            prefix_queried=0 if prefixes is None else prefixes.queried,
            prefix_found=0 if prefixes is None else prefixes.found,
            preemptions=sum(lane.scheduler.num_preemptions for lane in self.lanes),
            computed_tokens=sum(lane.num_tokens for lane in self.lanes),
            speculation=SpeculationCounts(
                sum(one.drafted for one in counts), sum(one.accepted for one in counts)
            ),
        )

    def reset_prefix_cache(self) -> None:
        """Forgets all prefixes that are not in use by a running sequence."""
        if self._cache.prefixes is not None:
            self._cache.prefixes.clear()

    def assert_consistent(self) -> None:
        """Raises AssertionError unless every block is held by exactly the sequences that should hold it."""
        running = [sequence for lane in self.lanes for sequence in lane.scheduler.running]
        self._cache.assert_consistent(running)
        assert all(sequence.status is Status.RUNNING for sequence in running)
        assert all(sequence.status is Status.WAITING and not sequence.blocks for sequence in self._waiting)

    def _share(self) -> int:
        """Sequences that a lane should run, for all lanes to have as many."""
        running = sum(len(lane.scheduler.running) for lane in self.lanes)
        return -(-(running + len(self._waiting)) // len(self.lanes))

    def _drive(self, step: Generator[FFNCall, Tensor, StepResult]) -> StepResult:
        """Answers each FFN call at once."""
        assert self.ffn is not None, "the FFNs are elsewhere: whoever has them drives the lanes"
        try:
            call = next(step)
            while True:
                call = step.send(self.ffn.forward(call))
        except StopIteration as end:
            return end.value

    def _end(self, request: Request, reason: str) -> None:
        for sequence in request.sequences:
            if sequence.finish_reason is None:
                flush(sequence)
                sequence.finish_reason = reason
                self._lane_of(sequence).abort(sequence)
        if request in self._compiling:
            self._compiling.remove(request)
        del self._requests[request.id]
        self._recorder.record_finished(request)

    def _lane_of(self, sequence: Sequence) -> Lane:
        """Where a sequence runs; any, while it waits."""
        return next((lane for lane in self.lanes if sequence in lane.scheduler.running), self.lanes[0])


def activation_dtype(config: EngineConfig, checkpoint: Checkpoint) -> torch.dtype:
    """The dtype that activations are computed in."""
    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    stored = checkpoint.tensors["model.norm.weight"].dtype
    return {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[stored]


def _obstacle_to_kernels(shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the CPU kernels are not for this engine, or None if they are."""
    if device.type != "cpu":
        return f"the device is {device.type}"
    if dtype != torch.bfloat16:
        return f"the CPU kernels compute in bfloat16, and dtype is {str(dtype).removeprefix('torch.')}"
    return shape.problem()


def _kv_dtype(name: str) -> torch.dtype:
    return FP8 if name == "fp8" else getattr(torch, name)
