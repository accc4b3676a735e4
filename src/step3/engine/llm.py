"""The offline API, with vLLM's names: prompts in, finished answers out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch

from step3.engine.config import EngineConfig, EngineError
from step3.engine.engine import Engine
from step3.engine.loading import Loaded, load
from step3.engine.outputs import OutputMaker, RequestOutput
from step3.engine.progress_bar import ProgressBar
from step3.engine.prompts import Prompt
from step3.engine.request import Request, RequestError
from step3.engine.sampling.params import SamplingParams
from step3.engine.statistics import Statistics
from step3.errors import Step3Error

Messages = Sequence[Mapping[str, Any]]


class LLM:
    """A model, ready to answer.

        llm = LLM("step3-fp8", max_model_len=8192)
        [output] = llm.chat([{"role": "user", "content": "Why is the sky blue?"}])
        print(output.outputs[0].text)

    Everything runs in this process and on the calling thread; for many callers at once there is `AsyncLLM`.
    """

    def __init__(self, model: str | None = None, *, quiet: bool = False, **options: Any) -> None:
        """Loads a model.

        Args:
            model: a checkpoint's folder, or its name on the Hugging Face Hub; None for the model that comes
                with the package.
            quiet: do not print where the memory goes.
            **options: see `step3.engine.config.EngineConfig`.

        Raises:
            Step3Error: an option that does not exist or cannot be, a checkpoint that is not one, or a memory
                budget that cannot work.
        """
        self.config = EngineConfig.from_options({"model": model, **options})
        self._loaded: Loaded | None = load(self.config)
        if not quiet:
            print(self.engine.memory, file=sys.stderr)
            print(f"computing with {self.engine.kernels}", file=sys.stderr)

    @property
    def engine(self) -> Engine:
        """What computes; an LLM that was shut down has none.

        Raises:
            EngineError: it was shut down.
        """
        return self._model.engine

    @property
    def _model(self) -> Loaded:
        if self._loaded is None:
            raise EngineError("this LLM was shut down: make a new one")
        return self._loaded

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Continues prompts.

        Args:
            prompts: one or a list of: text; `{"prompt_token_ids": [...]}`; `{"prompt": text,
                "multi_modal_data": {"image": one picture or a list}}` with one `<im_patch>` in the text for
                each picture. Either form may have a "cache_salt".
            sampling_params: for all, or one for each prompt; `get_default_sampling_params()` if None.
            use_tqdm: show a progress bar; or what makes one, called as `tqdm` is.
            priority: for all, or one for each prompt; smaller goes first.

        Returns:
            Their outputs, in the order of the prompts.

        Raises:
            Step3Error: a prompt or its parameters cannot be served. Nothing has been computed then.
        """
        listed = _as_list(prompts)
        return self._answer(listed, sampling_params, use_tqdm, priority)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        *,
        priority: int | Sequence[int] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers conversations.

        Args:
            messages: one conversation, or a list of them. A message has a "role" and "content": text, or a
                list of `{"type": "text", "text": ...}` and `{"type": "image_url", "image_url": {"url": ...}}`
                (or `{"type": "image", "image": ...}` with a PIL image, a path, bytes or an array).
            sampling_params, use_tqdm, priority: as in `generate`.
            chat_template: Jinja text or a file with it, instead of the checkpoint's.
            add_generation_prompt: open the assistant's turn.
            continue_final_message: go on with the last message instead of answering it.
            tools: OpenAI tool objects or documented Python functions that the model may call.
            chat_template_kwargs: further variables of the template.

        Raises:
            Step3Error: as `generate`; also malformed messages, or a typed `<im_patch>`.
        """
        if continue_final_message and add_generation_prompt:
            raise RequestError("continue_final_message goes with add_generation_prompt=False")
        is_one = bool(messages) and isinstance(messages[0], Mapping)
        conversations: Any = [messages] if is_one else messages
        prompts: list[Prompt] = []
        for conversation in conversations:
            text, pictures = self._model.tokens.render_chat(
                conversation,
                tools,
                chat_template,
                add_generation_prompt,
                continue_final_message,
                **(chat_template_kwargs or {}),
            )
            prompts.append({"prompt": text, "multi_modal_data": {"image": pictures}})
        return self._answer(prompts, sampling_params, use_tqdm, priority)

    def get_tokenizer(self) -> Any:
        """Transformers' tokenizer of the model."""
        return self._model.tokens.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends."""
        return self._model.default_sampling_params()

    def get_statistics(self) -> Statistics:
        """How the engine is doing, and what it counted since its start."""
        return self.engine.statistics()

    def reset_prefix_cache(self) -> None:
        """Forgets the keys and values of finished requests."""
        self.engine.reset_prefix_cache()

    def shutdown(self) -> None:
        """Gives the memory back; the model cannot be used any more."""
        self._loaded = None

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def _answer(
        self,
        prompts: Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool | Callable[..., Any],
        priority: int | Sequence[int] | None,
    ) -> list[RequestOutput]:
        model = self._model
        asked = self._requests(model.intake.request, prompts, sampling_params, priority)
        requests = [request for request, _ in asked]
        with ProgressBar(len(requests), use_tqdm) as bar:
            self._run(requests, bar)
        return [OutputMaker(model.tokens.table).cumulative(request) for request in requests]

    def _requests(
        self,
        make: Callable[..., Request],
        prompts: Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: int | Sequence[int] | None,
    ) -> list[tuple[Request, SamplingParams]]:
        """A checked request of each prompt, with its parameters; an error names the prompt."""
        if sampling_params is None:
            sampling_params = self.get_default_sampling_params()
        params = _one_each(sampling_params, SamplingParams, len(prompts), "sampling_params")
        priorities = _one_each(0 if priority is None else priority, int, len(prompts), "priority")
        requests = []
        for number, (prompt, own, rank) in enumerate(zip(prompts, params, priorities, strict=True)):
            try:
                requests.append((make(prompt, own, priority=rank), own))
            except Step3Error as error:
                if len(prompts) == 1:
                    raise
                raise RequestError(f"prompt {number}: {error}") from error
        return requests

    @torch.inference_mode()
    def _run(self, requests: list[Request], bar: ProgressBar) -> None:
        """Steps until all are finished; whatever happens, none of them is left in the engine."""
        try:
            for request in requests:
                self.engine.add(request)
            while self.engine.has_requests:
                result = self.engine.step()
                if not result.advanced:
                    self.engine.wait_for_grammar()
                for request in dict.fromkeys(sequence.request for sequence in result.ended):
                    if request.is_finished:
                        written = sum(sequence.num_output_tokens for sequence in request.sequences)
                        bar.finished(len(request.prompt_token_ids), written)
        except BaseException:
            for request in requests:
                self.engine.abort(request.id)
            raise


def _as_list(prompts: Any) -> list[Any]:
    """One prompt, or several, as a list; a list of numbers is one prompt."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if prompts is not None and len(prompts) and all(isinstance(part, int) for part in prompts):
        return [prompts]
    return list(prompts)


def _one_each(given: Any, kind: type, count: int, name: str) -> list[Any]:
    """`given` for each of `count` prompts, or its elements if it is a sequence of as many."""
    values = [given] * count if isinstance(given, kind) else given
    if not isinstance(values, list | tuple) or not all(isinstance(value, kind) for value in values):
        raise RequestError(f"{name} must be {kind.__name__} or a list of them, found {given!r:.200}")
    if len(values) != count:
        raise RequestError(f"there are {count} prompts, but {len(values)} {name}: give one, or one for each")
    return list(values)
