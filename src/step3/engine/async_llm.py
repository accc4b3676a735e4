"""The engine for many callers at once: requests stream, and may be given up, while others run.

One thread steps the engine and owns its state; callers, on any event loop, send it commands and get outputs
back. Nothing is locked: commands go through a queue, outputs through the callers' loops.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from step3.engine.config import EngineConfig, EngineError
from step3.engine.driver import LaneDriver
from step3.engine.loading import Loaded, load
from step3.engine.memory import MemoryPlan
from step3.engine.outputs import OutputMaker, RequestOutput
from step3.engine.prompts import Prompt
from step3.engine.request import Request
from step3.engine.request import Sequence as Answer
from step3.engine.sampling.params import RequestOutputKind, SamplingParams
from step3.engine.statistics import Statistics
from step3.errors import Step3Error

STATISTICS_SECONDS = 0.2
"""How old statistics may be while the engine runs."""


class OverloadedError(EngineError):
    """More requests wait than the engine was told to let wait; the caller may try again later."""


@dataclass(eq=False)
class _Stream:
    """Where the outputs of one request go."""

    request: Request
    outputs: OutputMaker
    loop: asyncio.AbstractEventLoop
    received: asyncio.Queue[RequestOutput | Step3Error] = field(default_factory=asyncio.Queue)


class AsyncLLM:
    """A model that answers many callers at once.

    llm = AsyncLLM("step3-fp8", max_model_len=8192)
    async for output in llm.generate("Once upon a time", SamplingParams(max_tokens=100)):
        print(output.outputs[0].text)
    """

    def __init__(self, model: str | None = None, *, max_waiting: int = 1024, **options: Any) -> None:
        """Loads a model and starts the engine's thread.

        Args:
            model: a checkpoint's folder, or its name on the Hugging Face Hub; None for the model that comes
                with the package.
            max_waiting: requests that may wait beside those that run; more are refused.
            **options: see `step3.engine.config.EngineConfig`.

        Raises:
            Step3Error: an option that does not exist or cannot be, a checkpoint that is not one, or a memory
                budget that cannot work.
        """
        config = EngineConfig.from_options({"model": model, **options})
        _check_waiting(max_waiting)
        self._start(config, load(config), None, max_waiting)

    @classmethod
    def with_config(cls, config: EngineConfig, max_waiting: int) -> AsyncLLM:
        """One whose options were checked already."""
        one = cls.__new__(cls)
        one._start(config, load(config), None, max_waiting)
        return one

    @classmethod
    def driven(cls, config: EngineConfig, model: Loaded, driver: LaneDriver, max_waiting: int) -> AsyncLLM:
        """One whose FFNs are elsewhere: `driver` steps the lanes of the model's engine."""
        one = cls.__new__(cls)
        one._start(config, model, driver, max_waiting)
        return one

    def _start(
        self, config: EngineConfig, model: Loaded, driver: LaneDriver | None, max_waiting: int
    ) -> None:
        self.config, self._model = config, model
        self._most = config.max_num_seqs + max_waiting
        self._accepted = 0
        # Tokenizers are not made for several threads at once, and arrivals are numbered in order.
        self._intake = ThreadPoolExecutor(1, thread_name_prefix="step3-intake")
        self._loop = _EngineLoop(self._model, driver)
        self._thread = threading.Thread(target=self._loop.run, name="step3-engine", daemon=True)
        self._thread.start()
        weakref.finalize(self, _end, self._loop, self._thread)

    @property
    def memory(self) -> MemoryPlan:
        """Where the memory went."""
        return self._model.engine.memory

    @property
    def is_running(self) -> bool:
        """Whether requests are taken."""
        return not self._loop.has_stopped

    def get_tokenizer(self) -> Any:
        """Transformers' tokenizer of the model."""
        return self._model.tokens.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends."""
        return self._model.default_sampling_params()

    def get_statistics(self) -> Statistics:
        """How the engine is doing, at most a step or 0.2 s old, and what it counted since its start."""
        return self._loop.statistics

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
        **options: Any,
    ) -> Prompt:
        """A conversation as a prompt for `generate`; options as in `LLM.chat`.

        Raises:
            Step3Error: malformed messages, a typed `<im_patch>`, or pictures for a model that cannot see.
        """
        render = partial(self._model.tokens.render_chat, messages, tools, **options)
        text, pictures = await self._in_intake(render)
        return {"prompt": text, "multi_modal_data": {"image": pictures}}

    async def count_tokens(self, prompt: Prompt) -> int:
        """The length of a prompt as the network would see it, with the places of its pictures.

        Raises:
            Step3Error: the prompt cannot be served.
        """
        prompts = self._model.intake.prompts
        prompt = await asyncio.to_thread(prompts.read_pictures, prompt)
        return len((await self._in_intake(partial(prompts.read, prompt, None))).ids)

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        output_token_ids: Sequence[int] | Sequence[Sequence[int]] = (),
    ) -> AsyncIterator[RequestOutput]:
        """Answers one prompt as a stream; who stops listening, or is cancelled, aborts the request.

        Args:
            prompt: as in `LLM.generate`.
            sampling_params: `output_kind` says what each output holds: all so far, what is new since the
                last one, or nothing but the last.
            request_id: for `abort` and the outputs; a number where left out.
            priority: smaller goes first.
            output_token_ids: tokens that were generated already, of the answer or of each, to go on from.

        Yields:
            Outputs, the last of them with `finished`.

        Raises:
            Step3Error: the prompt or the parameters cannot be served, a grammar cannot be compiled, or the
                engine has stopped.
            OverloadedError: too many requests wait.
        """
        self._check_running()
        if self._accepted >= self._most:
            raise OverloadedError(
                f"{self._accepted} requests are running or waiting, and no more may wait: try again later, "
                "or start the engine with a larger max_waiting"
            )
        self._accepted += 1
        stream = None
        try:
            params = self.get_default_sampling_params() if sampling_params is None else sampling_params
            intake = self._model.intake
            if isinstance(prompt, Mapping) and prompt.get("multi_modal_data"):
                prompt = await asyncio.to_thread(intake.prompts.read_pictures, prompt)
            make = partial(
                intake.request,
                prompt,
                params,
                request_id=request_id,
                priority=priority,
                output_token_ids=output_token_ids,
            )
            request: Request = await self._in_intake(make)
            stream = _Stream(request, OutputMaker(self._model.tokens.table), asyncio.get_running_loop())
            self._loop.send(partial(self._loop.add, stream))
            while True:
                output = await stream.received.get()
                if isinstance(output, Step3Error):
                    raise output
                yield output
                if output.finished:
                    return
        finally:
            self._accepted -= 1
            if stream is not None and not stream.request.is_finished:
                self._loop.send(partial(self._loop.forget, stream))

    def reset_prefix_cache(self) -> None:
        """Forgets the keys and values of finished requests, after the step that runs."""
        self._loop.send(self._model.engine.reset_prefix_cache)

    async def abort(self, request_id: str) -> None:
        """Ends a request with finish reason "abort"; its stream gets what there is so far."""
        self._loop.send(partial(self._loop.abort, request_id))

    def set_threads(self, count: int) -> None:
        """Has steps on a CPU computed by so many threads, instead of torch's choice."""
        self._loop.send(partial(torch.set_num_threads, count))

    async def check_health(self) -> None:
        """Raises EngineError if the engine has stopped."""
        self._check_running()

    def shutdown(self) -> None:
        """Stops the engine; streams that are open end with an EngineError."""
        self._loop.stop()
        self._thread.join()
        self._intake.shutdown(wait=False, cancel_futures=True)

    async def _in_intake(self, work: Callable[[], Any]) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._intake, work)
        except RuntimeError as error:
            self._check_running()
            raise error

    def _check_running(self) -> None:
        if self._loop.error is not None:
            raise EngineError(f"the engine has stopped: {self._loop.error}") from self._loop.error
        if self._loop.has_stopped:
            raise EngineError("this AsyncLLM was shut down: make a new one")


def _end(loop: _EngineLoop, thread: threading.Thread) -> None:
    """Stops an engine that nobody has any more, at the latest when the interpreter ends: a thread that is cut
    off inside a kernel takes the process down with it."""
    loop.stop()
    if thread is not threading.current_thread():
        thread.join(10)


def _check_waiting(count: Any) -> None:
    if type(count) is not int or count < 0:
        raise EngineError(f"max_waiting must be a whole number from 0, found {count!r}")


class _EngineLoop:
    """The one thread that touches the engine: takes commands, steps, hands outputs out.

    Attributes:
        statistics: the latest.
        has_stopped: whether it takes no more steps; true before any stream hears of it.
        error: what stopped it, if it did not stop because it was told to.
    """

    def __init__(self, model: Loaded, driver: LaneDriver | None) -> None:
        self._engine, self._driver = model.engine, driver
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams: dict[str, _Stream] = {}
        self._is_told_to_stop = False
        self._refreshed = 0.0
        self.statistics = self._engine.statistics()
        self.has_stopped = False
        self.error: BaseException | None = None

    def send(self, command: Callable[[], None]) -> None:
        """Has the engine's thread do something between two steps."""
        self._commands.put(command)
        if self._driver is not None:
            self._driver.wake()
        if self.has_stopped:
            self._drain()

    def stop(self) -> None:
        self.send(self._stop)

    @torch.inference_mode()
    def run(self) -> None:
        try:
            while not self._is_told_to_stop:
                self._take_commands()
                if self._engine.has_requests and not self._is_told_to_stop:
                    result = self._engine.step() if self._driver is None else self._driver.step()
                    self._hand_out(result.advanced)
                    if not result.advanced:
                        self._engine.wait_for_grammar(0.01)
                self._refresh_statistics()
        except BaseException as error:
            # Whoever waits must hear of it, whatever it is.
            self.error = error
        finally:
            # From here on whoever sends a command sees it through: nobody waits for an answer in vain.
            self.has_stopped = True
            self._drain()
            for stream in self._streams.values():
                _put(stream, self._stopped())
            if self._driver is not None:
                self._driver.close()

    def add(self, stream: _Stream) -> None:
        if self.has_stopped:
            _put(stream, self._stopped())
            return
        try:
            self._engine.add(stream.request)
        except Step3Error as error:
            _put(stream, error)
            return
        self._streams[stream.request.id] = stream

    def abort(self, request_id: str) -> None:
        stream = self._streams.get(request_id)
        if stream is not None and not self.has_stopped:
            self._engine.abort(request_id)
            _put(stream, self._last_output(stream))

    def forget(self, stream: _Stream) -> None:
        """Aborts a request whose caller does not listen any more."""
        if self._streams.get(stream.request.id) is stream and not self.has_stopped:
            del self._streams[stream.request.id]
            self._engine.abort(stream.request.id)

    def _stop(self) -> None:
        self._is_told_to_stop = True

    def _stopped(self) -> EngineError:
        return EngineError(f"the engine has stopped: {self.error or 'it was shut down'}")

    def _drain(self) -> None:
        while True:
            try:
                self._commands.get_nowait()()
            except queue.Empty:
                return

    def _take_commands(self) -> None:
        if not self._engine.has_requests:
            self._refresh_statistics(at_once=True)
            if self._driver is None:
                self._commands.get()()
            while self._driver is not None and self._commands.empty():
                self._driver.rest()
        self._drain()

    def _hand_out(self, advanced: list[Answer]) -> None:
        """Gives a step's outputs to their callers: all of one event loop at once, as waking it is dear."""
        outputs: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, RequestOutput | Step3Error]]] = {}
        for request in dict.fromkeys(answer.request for answer in advanced):
            stream = self._streams.get(request.id)
            if stream is None:
                continue
            output: RequestOutput | Step3Error
            if request.is_finished:
                output = self._last_output(stream)
            elif request.params.output_kind is RequestOutputKind.DELTA:
                output = stream.outputs.delta(request)
            elif request.params.output_kind is RequestOutputKind.CUMULATIVE:
                output = stream.outputs.cumulative(request)
            else:
                continue
            outputs.setdefault(stream.loop, []).append((stream, output))
        for loop, batch in outputs.items():
            # A loop that is closed has nobody who listens.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_receive, batch)

    def _last_output(self, stream: _Stream) -> RequestOutput | Step3Error:
        """What a request that has ended gives; forgets it."""
        request = stream.request
        del self._streams[request.id]
        if request.error is not None:
            return request.error
        if request.params.output_kind is RequestOutputKind.DELTA:
            return stream.outputs.delta(request)
        return stream.outputs.cumulative(request)

    def _refresh_statistics(self, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now - self._refreshed > STATISTICS_SECONDS:
            self.statistics, self._refreshed = self._engine.statistics(), now


def _put(stream: _Stream, output: RequestOutput | Step3Error) -> None:
    # A loop that is closed has nobody who listens.
    with suppress(RuntimeError):
        stream.loop.call_soon_threadsafe(stream.received.put_nowait, output)


def _receive(batch: list[tuple[_Stream, RequestOutput | Step3Error]]) -> None:
    for stream, output in batch:
        stream.received.put_nowait(output)
