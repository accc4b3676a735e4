"""The offline API for any topology: `LLM(model, topology="3A2F")`."""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from step3.cluster.config import wants_cluster
from step3.cluster.outputs import failed_output
from step3.engine.config import EngineError
from step3.engine.engine import Engine
from step3.engine.llm import LLM as EngineLLM
from step3.engine.outputs import RequestOutput
from step3.engine.progress_bar import ProgressBar
from step3.engine.prompts import Prompt
from step3.engine.sampling.params import RequestOutputKind, SamplingParams
from step3.engine.statistics import Statistics
from step3.errors import Step3Error

if TYPE_CHECKING:
    from step3.cluster.front import Front


class LLM(EngineLLM):
    """A model, ready to answer, in this process or in as many as its topology has.

        llm = LLM("step3-fp8", max_model_len=8192)
        llm = LLM("step3-fp8", topology="3A2F", micro_batches=3)
        [output] = llm.chat([{"role": "user", "content": "Why is the sky blue?"}])
        print(output.outputs[0].text)

    For many callers at once there is `AsyncLLM`.
    """

    def __init__(self, model: str | None = None, *, quiet: bool = False, **options: Any) -> None:
        """Loads a model.

        Args:
            model: a checkpoint's folder, or its name on the Hugging Face Hub; None for the model that comes
                with the package.
            quiet: do not print where the memory goes.
            **options: see `step3.engine.config.EngineConfig`; for a topology beyond one process also
                `step3.cluster.config.ClusterConfig`.

        Raises:
            Step3Error: an option that does not exist or cannot be, a checkpoint that is not one, or a memory
                budget that cannot work.
        """
        self._front: Front | None = None
        if not wants_cluster(options):
            options.pop("topology", None)
            super().__init__(model, quiet=quiet, **options)
            return
        # Most have one process, and need none of what runs many: a start is quicker without.
        from step3.cluster.front import Front

        self._loaded = None
        self._front = Front({"model": model, **options})
        self.config = self._front.config
        if not quiet:
            print(self._front.memory, file=sys.stderr)

    @property
    def engine(self) -> Engine:
        """What computes; an LLM that was shut down has none, and neither has one of many processes.

        Raises:
            EngineError: there is none here.
        """
        if self._front is not None:
            raise EngineError("the engines of this LLM are in processes of their own")
        return super().engine

    @property
    def cluster(self) -> Front:
        """The deployment: `describe()`, `change(...)`, `trace(...)`.

        Raises:
            EngineError: this LLM is one process.
        """
        if self._front is None:
            raise EngineError("this LLM is one process: give it a topology, like topology='2A2F'")
        return self._front

    @property
    def _model(self) -> Any:
        return super()._model if self._front is None else self._front

    def get_statistics(self) -> Statistics:
        """How the engines are doing, and what they counted since their start."""
        return super().get_statistics() if self._front is None else self._front.statistics()

    def reset_prefix_cache(self) -> None:
        """Forgets the keys and values of finished requests."""
        if self._front is None:
            super().reset_prefix_cache()
        else:
            self._front.reset_prefix_cache()

    def shutdown(self) -> None:
        """Gives the memory back; the model cannot be used any more."""
        if self._front is not None:
            self._front.shutdown()
        self._loaded = None

    def _answer(
        self,
        prompts: Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool | Callable[..., Any],
        priority: int | Sequence[int] | None,
    ) -> list[RequestOutput]:
        front = self._front
        if front is None:
            return super()._answer(prompts, sampling_params, use_tqdm, priority)
        if not front.is_running:
            raise EngineError("this LLM was shut down: make a new one")
        asked = self._requests(front.request, prompts, sampling_params, priority)
        requests = [request for request, _ in asked]
        finished: queue.SimpleQueue[tuple[int, RequestOutput | Step3Error]] = queue.SimpleQueue()
        outputs: dict[int, RequestOutput] = {}
        with ProgressBar(len(requests), use_tqdm) as bar:
            try:
                for number, ((request, own), prompt) in enumerate(zip(asked, prompts, strict=True)):

                    def put(output: RequestOutput | Step3Error, number: int = number) -> None:
                        finished.put((number, output))

                    front.submit(request, prompt, _only_whole(own), put)
                while len(outputs) < len(requests):
                    number, output = finished.get()
                    if isinstance(output, Step3Error):
                        output = failed_output(requests[number], output)
                    outputs[number] = output
                    written = sum(len(one.token_ids) for one in output.outputs)
                    bar.finished(len(output.prompt_token_ids), written)
            except BaseException:
                for request in requests:
                    front.abort(request.number)
                raise
        return [outputs[number] for number in range(len(requests))]


def _only_whole(params: SamplingParams) -> SamplingParams:
    return replace(params, output_kind=RequestOutputKind.FINAL_ONLY)
