"""Many instances as one model, with the interface of `step3.engine.async_llm.AsyncLLM`."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from step3.cluster.front import Front, stopped
from step3.engine.async_llm import OverloadedError
from step3.engine.config import EngineError
from step3.engine.memory import MemoryPlan
from step3.engine.outputs import RequestOutput
from step3.engine.prompts import Prompt
from step3.engine.request import Request
from step3.engine.sampling.params import SamplingParams
from step3.engine.statistics import Statistics
from step3.errors import Step3Error


class ClusterLLM:
    """A model that answers many callers at once, computed by many instances.

    It has the methods of `AsyncLLM`; what an instance owes when it dies, others answer, and streams go on.
    """

    def __init__(self, model: str | None = None, *, max_waiting: int = 1024, **options: Any) -> None:
        """Starts the instances and waits until they can answer.

        Args:
            model, max_waiting: as in `AsyncLLM`.
            **options: see `step3.engine.config.EngineConfig` and `step3.cluster.config.ClusterConfig`.

        Raises:
            Step3Error: an option that does not exist or cannot be, or an instance that cannot load.
        """
        if type(max_waiting) is not int or max_waiting < 0:
            raise EngineError(f"max_waiting must be a whole number from 0, found {max_waiting!r}")
        self.front = Front({"model": model, **options})
        self.config = self.front.config
        self._most = self.config.max_num_seqs + max_waiting
        self._accepted = 0
        self._intake = ThreadPoolExecutor(1, thread_name_prefix="step3-intake")
        self._numbers: dict[str, int] = {}
        weakref.finalize(self, self.front.shutdown)

    @property
    def memory(self) -> MemoryPlan:
        """Where the memory of one attention instance went."""
        return self.front.memory

    @property
    def is_running(self) -> bool:
        """Whether requests are taken."""
        return self.front.is_running

    def get_tokenizer(self) -> Any:
        """Transformers' tokenizer of the model."""
        return self.front.tokens.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends."""
        return self.front.default_sampling_params()

    def get_statistics(self) -> Statistics:
        """How all instances are doing, and what they counted since their starts."""
        return self.front.statistics()

    def reset_prefix_cache(self) -> None:
        """Forgets the keys and values of finished requests."""
        self.front.reset_prefix_cache()

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
        **options: Any,
    ) -> Prompt:
        """As `AsyncLLM.render_chat`."""
        render = partial(self.front.tokens.render_chat, messages, tools, **options)
        text, pictures = await self._in_intake(render)
        return {"prompt": text, "multi_modal_data": {"image": pictures}}

    async def count_tokens(self, prompt: Prompt) -> int:
        """As `AsyncLLM.count_tokens`."""
        prompt = await asyncio.to_thread(self.front.read_pictures, prompt)
        return await self._in_intake(partial(self.front.count_tokens, prompt))

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
    ) -> AsyncIterator[RequestOutput]:
        """As `AsyncLLM.generate`; who stops listening, or is cancelled, aborts the request."""
        self._check_running()
        if self._accepted >= self._most:
            raise OverloadedError(
                f"{self._accepted} requests are running or waiting, and no more may wait: try again later, "
                "or start the engine with a larger max_waiting"
            )
        if request_id is not None and request_id in self._numbers:
            raise Step3Error(f"request {request_id!r} is being answered already: give each its own id")
        self._accepted += 1
        number, is_finished = None, False
        try:
            params = self.get_default_sampling_params() if sampling_params is None else sampling_params
            if isinstance(prompt, Mapping) and prompt.get("multi_modal_data"):
                prompt = await asyncio.to_thread(self.front.read_pictures, prompt)
            make = partial(self.front.request, prompt, params, request_id, priority)
            request: Request = await self._in_intake(make)
            number = self._numbers[request.id] = request.number
            loop = asyncio.get_running_loop()
            received: asyncio.Queue[RequestOutput | Step3Error] = asyncio.Queue()

            def put(output: RequestOutput | Step3Error) -> None:
                try:
                    loop.call_soon_threadsafe(received.put_nowait, output)
                except RuntimeError:
                    return  # the caller's loop is closed: nobody listens

            self.front.submit(request, prompt, params, put)
            while True:
                output = await received.get()
                if isinstance(output, Step3Error):
                    is_finished = True
                    raise output
                is_finished = output.finished
                yield output
                if output.finished:
                    return
        finally:
            self._accepted -= 1
            if number is not None:
                self._numbers.pop(request.id, None)
                if not is_finished:
                    self.front.abort(number)

    async def check_health(self) -> None:
        """Raises EngineError if it was shut down."""
        self._check_running()

    def shutdown(self) -> None:
        """Ends all instances that were started here."""
        self.front.shutdown()
        self._intake.shutdown(wait=False, cancel_futures=True)

    async def _in_intake(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._intake, work)

    def _check_running(self) -> None:
        if not self.front.is_running:
            raise stopped()
