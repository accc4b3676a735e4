"""The requests of OpenAI's Responses API as this server takes them.

Nothing is kept here: a conversation comes whole with every request, as with `store: false`. What would need a
kept response, a tool that runs at the server, or an answer without the client is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from step3.server.protocol import (
    EFFORTS,
    MAX_TOOLS,
    CalledFunction,
    Effort,
    MadeToolCall,
    Message,
    Name,
    Real,
    Strict,
    Tolerant,
)


class InputText(Tolerant):
    type: Literal["input_text", "output_text"]
    text: str


class InputImage(Tolerant):
    type: Literal["input_image"]
    image_url: str
    detail: str | None = None


class Refusal(Tolerant):
    type: Literal["refusal"]
    refusal: str


Content = str | list[Annotated[InputText | InputImage | Refusal, Field(discriminator="type")]]


class MessageItem(Tolerant):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class FunctionCallItem(Tolerant):
    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: str


class FunctionCallOutputItem(Tolerant):
    type: Literal["function_call_output"]
    call_id: Name
    output: Content


class ReasoningText(Tolerant):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Tolerant):
    type: Literal["reasoning"]
    summary: list[ReasoningText] = Field(default_factory=list)
    content: list[ReasoningText] | None = None


def _kind(item: Any) -> str | None:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return kind if isinstance(kind, str) else None


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]


class FunctionTool(Strict):
    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def function(self) -> dict[str, Any]:
        """The tool in the shape of chat completions."""
        return {"type": "function", "function": self.model_dump(exclude_none=True, exclude={"type"})}


class NamedFunctionTool(Strict):
    type: Literal["function"]
    name: Name


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> TextFormat:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError('a schema goes with type "json_schema", and only with it')
        return self

    @property
    def form(self) -> dict[str, Any] | None:
        """As `StructuredOutputsParams` has it; None for any text."""
        if self.schema_ is not None:
            return {"json": self.schema_}
        return {"json_object": True} if self.type == "json_object" else None


class TextOptions(Strict):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Strict):
    effort: Effort | None = None
    summary: Literal["auto"] | None = None


class ResponseStreamOptions(Strict):
    include_obfuscation: bool = False


class ResponsesRequest(Strict):
    """`POST /v1/responses`."""

    model: Name | None = None
    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Real | None = None
    top_p: Real | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedFunctionTool | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    # Reasoning is given as it is, so that there is nothing to encrypt.
    include: list[Literal["reasoning.encrypted_content"]] | None = None
    truncation: Literal["disabled", "auto"] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _can_be_honoured(self) -> ResponsesRequest:
        if self.store:
            raise ValueError("store: true is not supported: this server keeps no responses; leave it out")
        for name in ("previous_response_id", "conversation", "prompt"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is not supported: this server keeps nothing between requests; send the whole "
                    "conversation as input"
                )
        if self.background:
            raise ValueError("background is not supported: wait for the answer, or stream it")
        if self.truncation == "auto":
            raise ValueError('truncation "auto" is not supported: shorten the input yourself')
        if self.top_logprobs:
            raise ValueError("top_logprobs is not supported here: /v1/chat/completions has it")
        if self.forced_tool is not None and not self.tools:
            raise ValueError("tool_choice asks for a call, but there are no tools")
        if self.forced_tool is not None and self.form is not None:
            raise ValueError("a tool call and another form of the answer cannot both be asked for")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true")
        return self

    @property
    def turns(self) -> list[Message]:
        """The conversation in the shape of chat completions."""
        turns = [] if self.instructions is None else [Message(role="system", content=self.instructions)]
        if isinstance(self.input, str):
            return [*turns, Message(role="user", content=self.input)]
        assistant: Message | None = None
        for item in self.input:
            if isinstance(item, FunctionCallOutputItem):
                turn = Message(role="tool", tool_call_id=item.call_id, content=_content(item.output))
            elif isinstance(item, MessageItem) and item.role != "assistant":
                turn = Message(role=item.role, content=_content(item.content))
            else:
                assistant = _join(assistant, item, turns)
                continue
            turns.append(turn)
            assistant = None
        return turns

    @property
    def form(self) -> dict[str, Any] | None:
        """What form the text must have, as `StructuredOutputsParams` has it."""
        return None if self.text is None or self.text.format is None else self.text.format.form

    @property
    def params(self) -> dict[str, Any]:
        """What was given, under the names of `SamplingParams`."""
        given = {"temperature": self.temperature, "top_p": self.top_p, "structured_outputs": self.form}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def shown_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the model is told of."""
        if not self.tools or self.tool_choice == "none":
            return None
        return [tool.function() for tool in self.tools]

    @property
    def forced_tool(self) -> str | None:
        """ "required", the name of the function that is to be called, or None."""
        if isinstance(self.tool_choice, NamedFunctionTool):
            return self.tool_choice.name
        return "required" if self.tool_choice == "required" else None

    @property
    def effort(self) -> str | None:
        return None if self.reasoning is None else self.reasoning.effort

    @property
    def thinking_budget(self) -> int | None:
        """Tokens of reasoning at most; None for as many as the model likes."""
        return EFFORTS.get(self.effort or "high")


def _content(content: Content) -> Any:
    if isinstance(content, str):
        return content
    parts: list[dict[str, Any]] = []
    for part in content:
        if isinstance(part, InputImage):
            parts.append({"type": "image_url", "image_url": part.image_url})
        else:
            text = part.refusal if isinstance(part, Refusal) else part.text
            parts.append({"type": "text", "text": text})
    return parts


def _join(assistant: Message | None, item: Any, turns: list[Message]) -> Message:
    """Puts an item that the assistant made into its turn, or begins a turn with it; returns the turn."""
    text = _content(item.content) if isinstance(item, MessageItem) else None
    if assistant is None or (text is not None and (assistant.content or assistant.tool_calls)):
        assistant = Message(role="assistant", content="")
        turns.append(assistant)
    if text is not None:
        assistant.content = Message(role="assistant", content=text).content
    elif isinstance(item, ReasoningItem):
        thought = "\n".join(part.text for part in item.content or item.summary)
        assistant.reasoning_content = "\n".join(filter(None, [assistant.reasoning_content, thought]))
    else:
        function = CalledFunction(name=item.name, arguments=item.arguments)
        calls = assistant.tool_calls or []
        assistant.tool_calls = [*calls, MadeToolCall(id=item.call_id, function=function)]
    return assistant
