"""The requests of OpenAI's API as this server takes them.

Fields that OpenAI does not know either are refused, but for the sampling parameters that vLLM adds. Fields of
OpenAI that would change the answer and cannot be honoured are refused with the reason; those that change
nothing here (`user`, `store`, ...) are taken. In messages, which clients send back with whatever they were
given, unknown fields are passed over.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_STOPS = 256
MAX_TOOLS = 128
MAX_PROMPTS = 1024

EFFORTS = {"minimal": 256, "low": 1024, "medium": 8192, "high": None, "xhigh": None, "max": None}
"""Tokens of reasoning at most that an effort stands for; None is as many as the model likes."""

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Name = Annotated[str, Field(max_length=256)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Real = Annotated[float, Field(allow_inf_nan=False)]


class Strict(BaseModel):
    """JSON values of exactly the right type, and no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())


class Tolerant(BaseModel):
    """JSON values of exactly the right type; unknown fields are passed over."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class TextPart(Tolerant):
    type: Literal["text"]
    text: str


class ImageUrl(Tolerant):
    url: str
    detail: str | None = None


class ImagePart(Tolerant):
    type: Literal["image_url"]
    image_url: ImageUrl | str

    @property
    def url(self) -> str:
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class CalledFunction(Tolerant):
    name: Name
    arguments: str = "{}"


class MadeToolCall(Tolerant):
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Tolerant):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: Name | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[MadeToolCall] | None = None
    tool_call_id: Name | None = None

    @model_validator(mode="after")
    def _has_something(self) -> Message:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError(f"a {self.role} message needs content")
        return self


class Function(Tolerant):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: Name


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(Tolerant):
    name: Name | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('json_schema goes with type "json_schema", and only with it')
        return self

    @property
    def form(self) -> dict[str, Any] | None:
        """As `StructuredOutputsParams` has it; None for any text."""
        if self.json_schema is not None:
            return {"json": self.json_schema.schema_}
        return {"json_object": True} if self.type == "json_object" else None


class Sampling(Strict):
    """What chat and completions have in common; what is left out is the model's own recommendation.

    Bounds are checked where the parameters are used, which says what would do.
    """

    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    temperature: Real | None = None
    top_p: Real | None = None
    top_k: Whole | None = None
    min_p: Real | None = None
    presence_penalty: Real | None = None
    frequency_penalty: Real | None = None
    repetition_penalty: Real | None = None
    seed: Whole | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Whole | None = None
    bad_words: list[str] | None = None
    logit_bias: dict[str, Real] | None = None
    allowed_token_ids: list[int] | None = None
    truncate_prompt_tokens: Whole | None = None
    structured_outputs: dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    user: str | None = None

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, biases: dict[str, float] | None) -> dict[str, float] | None:
        for token in biases or ():
            if not (token.isascii() and token.isdecimal() and len(token) < 10):
                raise ValueError(f"logit_bias needs token ids as its keys, found {token[:40]!r}")
        return biases

    @model_validator(mode="after")
    def _fit_together(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true")
        if self.response_format is not None and self.response_format.form and self.structured_outputs:
            raise ValueError("response_format and structured_outputs both say what form the answer has")
        return self

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that tells the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def params(self) -> dict[str, Any]:
        """What was given, under the names of `SamplingParams`."""
        given = {name: getattr(self, name) for name in _SAMPLING_FIELDS}
        params = {name: value for name, value in given.items() if value is not None}
        if self.logit_bias is not None:
            params["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
        if self.response_format is not None and self.response_format.form is not None:
            params["structured_outputs"] = self.response_format.form
        return params


_SAMPLING_FIELDS = (
    *("n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "seed", "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos"),
    *("min_tokens", "bad_words", "allowed_token_ids", "truncate_prompt_tokens", "structured_outputs"),
)


class ChatRequest(Sampling):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[Literal["enable_thinking", "thinking"], bool] | None = None
    reasoning_effort: Effort | None = None
    thinking_token_budget: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    include_reasoning: bool = True
    skip_special_tokens: bool = False
    modalities: list[Literal["text"]] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _fit_in_chat(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs: true")
        forces = self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)
        if forces and not self.tools:
            raise ValueError("tool_choice asks for a call, but there are no tools")
        if forces and (self.structured_outputs or (self.response_format and self.response_format.form)):
            raise ValueError("a tool call and another form of the answer cannot both be asked for")
        return self

    @property
    def shown_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the model is told of."""
        if not self.tools or self.tool_choice == "none":
            return None
        return [tool.model_dump(exclude_none=True) for tool in self.tools]

    @property
    def forced_tool(self) -> str | None:
        """ "required", the name of the function that is to be called, or None."""
        if isinstance(self.tool_choice, NamedTool):
            return self.tool_choice.function.name
        return "required" if self.tool_choice == "required" else None

    @property
    def thinks(self) -> bool:
        """Whether the model is to think before it answers."""
        is_off = self.reasoning_effort == "none" or self.thinking_token_budget == 0
        return not is_off and False not in (self.chat_template_kwargs or {}).values()

    @property
    def thinking_budget(self) -> int | None:
        """Tokens of reasoning at most; None for as many as the model likes."""
        if self.thinking_token_budget is not None:
            return self.thinking_token_budget
        return EFFORTS.get(self.reasoning_effort or "high")

    @property
    def longest(self) -> int | None:
        """Tokens of an answer at most, as asked for."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class CompletionRequest(Sampling):
    """`POST /v1/completions`."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[
            list[Annotated[list[int], Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)
        ]
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: bool = False
    best_of: int | None = None
    suffix: str | None = None
    skip_special_tokens: bool = True

    @model_validator(mode="after")
    def _fit_in_completions(self) -> CompletionRequest:
        if self.echo:
            raise ValueError("echo is not supported: put the prompt before the answer yourself")
        if self.suffix:
            raise ValueError("suffix is not supported: the model only continues text")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not supported: ask for n answers with logprobs and choose")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several prompts."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class TokenizeRequest(Strict):
    """`POST /tokenize`: a prompt, or a conversation."""

    model: Name | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False
    chat_template_kwargs: dict[Literal["enable_thinking", "thinking"], bool] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Strict):
    """`POST /detokenize`."""

    model: Name | None = None
    tokens: list[int]
