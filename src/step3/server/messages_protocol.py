"""The requests of Anthropic's Messages API as this server takes them.

Unknown fields of a request are refused by name. Within blocks, which clients send back with whatever they
were given (`cache_control`, `citations`, ...), they are passed over.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from step3.server.protocol import (
    EFFORTS,
    MAX_STOPS,
    MAX_TOOLS,
    CalledFunction,
    ImagePart,
    MadeToolCall,
    Message,
    Name,
    Real,
    Strict,
    TextPart,
    Tolerant,
)

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]


class TextBlock(Tolerant):
    type: Literal["text"]
    text: str


class Base64Source(Tolerant):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class UrlSource(Tolerant):
    type: Literal["url"]
    url: str


class ImageBlock(Tolerant):
    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]

    @property
    def url(self) -> str:
        if isinstance(self.source, UrlSource):
            return self.source.url
        return f"data:{self.source.media_type};base64,{self.source.data}"


class ToolUseBlock(Tolerant):
    type: Literal["tool_use"]
    id: Name
    name: Name
    input: dict[str, Any]


class ToolResultBlock(Tolerant):
    type: Literal["tool_result"]
    tool_use_id: Name
    content: str | list[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]] | None = None
    is_error: bool = False


class ThinkingBlock(Tolerant):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Tolerant):
    type: Literal["redacted_thinking"]
    data: str


UserBlock = Annotated[TextBlock | ImageBlock | ToolResultBlock, Field(discriminator="type")]
AssistantBlock = Annotated[
    TextBlock | ToolUseBlock | ThinkingBlock | RedactedThinkingBlock, Field(discriminator="type")
]


class UserMessage(Tolerant):
    role: Literal["user"]
    content: str | list[UserBlock]

    def turns(self) -> list[Message]:
        """The results of tools, each a turn of its own, then what the user says."""
        if isinstance(self.content, str):
            return [Message(role="user", content=self.content)]
        results = [block for block in self.content if isinstance(block, ToolResultBlock)]
        turns = [_result_turn(block) for block in results]
        said = [_part(block) for block in self.content if not isinstance(block, ToolResultBlock)]
        if said or not turns:
            turns.append(Message(role="user", content=said))
        return turns


class AssistantMessage(Tolerant):
    role: Literal["assistant"]
    content: str | list[AssistantBlock]

    def turns(self) -> list[Message]:
        if isinstance(self.content, str):
            return [Message(role="assistant", content=self.content)]
        thoughts = [block.thinking for block in self.content if isinstance(block, ThinkingBlock)]
        calls = [block for block in self.content if isinstance(block, ToolUseBlock)]
        return [
            Message(
                role="assistant",
                content="".join(block.text for block in self.content if isinstance(block, TextBlock)),
                reasoning_content="\n".join(thoughts) or None,
                tool_calls=[_call(block) for block in calls] or None,
            )
        ]


class ClientTool(Tolerant):
    name: ToolName
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    description: str | None = None

    def function(self) -> dict[str, Any]:
        """The tool in OpenAI's shape."""
        function: dict[str, Any] = {"name": self.name, "parameters": self.input_schema}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": function}


class AutoChoice(Strict):
    type: Literal["auto", "any"]
    disable_parallel_tool_use: bool = False


class ToolChoice(Strict):
    type: Literal["tool"]
    name: Name
    disable_parallel_tool_use: bool = False


class NoChoice(Strict):
    type: Literal["none"]


class ThinkingOn(Strict):
    type: Literal["enabled"]
    budget_tokens: Annotated[int, Field(ge=1, lt=2**31)]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingAdaptive(Strict):
    type: Literal["adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingOff(Strict):
    type: Literal["disabled"]


class OutputFormat(Strict):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(Tolerant):
    user_id: str | None = None


class CountTokensRequest(Strict):
    """`POST /v1/messages/count_tokens`: what the prompt is made of."""

    model: Name
    messages: Annotated[
        list[Annotated[UserMessage | AssistantMessage, Field(discriminator="role")]], Field(min_length=1)
    ]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[ClientTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[AutoChoice | ToolChoice | NoChoice, Field(discriminator="type")] | None = None
    thinking: Annotated[ThinkingOn | ThinkingAdaptive | ThinkingOff, Field(discriminator="type")] | None = (
        None
    )
    output_config: OutputConfig | None = None

    @model_validator(mode="after")
    def _fit_in_a_prompt(self) -> CountTokensRequest:
        forces = self.tool_choice is not None and self.tool_choice.type in ("any", "tool")
        if forces and not self.tools:
            raise ValueError("tool_choice asks for a call, but there are no tools")
        if forces and self.output_config is not None and self.output_config.format is not None:
            raise ValueError("a tool call and another form of the answer cannot both be asked for")
        if self.is_continued:
            self._check_continued()
        return self

    def _check_continued(self) -> None:
        if self.thinks:
            raise ValueError("the last message may be the assistant's only where thinking is disabled")
        [turn] = self.messages[-1].turns()
        text = turn.content
        if turn.tool_calls or turn.reasoning_content or not isinstance(text, str) or not text.strip():
            raise ValueError("the last message, if it is the assistant's, must be text that goes on")
        if text != text.rstrip() or "</think>" in text:
            raise ValueError("the text that goes on may not end with white space, nor hold </think>")

    @property
    def turns(self) -> list[Message]:
        """The conversation in OpenAI's shape."""
        turns = []
        if self.system is not None:
            system = self.system
            text = system if isinstance(system, str) else "\n".join(block.text for block in system)
            turns.append(Message(role="system", content=text))
        return turns + [turn for message in self.messages for turn in message.turns()]

    @property
    def is_continued(self) -> bool:
        """Whether the answer goes on where the last message stops."""
        return self.messages[-1].role == "assistant"

    @property
    def template(self) -> dict[str, bool]:
        """Options of rendering the prompt."""
        if not self.is_continued:
            return {}
        return {"add_generation_prompt": False, "continue_final_message": True}

    @property
    def shown_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the model is told of, in OpenAI's shape."""
        if not self.tools or isinstance(self.tool_choice, NoChoice):
            return None
        return [tool.function() for tool in self.tools]

    @property
    def forced_tool(self) -> str | None:
        """ "required", the name of the function that is to be called, or None."""
        if isinstance(self.tool_choice, ToolChoice):
            return self.tool_choice.name
        return "required" if self.tool_choice is not None and self.tool_choice.type == "any" else None

    @property
    def is_parallel(self) -> bool:
        """Whether several tools may be called at once."""
        return not getattr(self.tool_choice, "disable_parallel_tool_use", False)

    @property
    def thinks(self) -> bool:
        """Whether the model is to think: as everywhere in this API, only where it is asked to."""
        return isinstance(self.thinking, ThinkingOn | ThinkingAdaptive)

    @property
    def thinking_budget(self) -> int | None:
        """Tokens of reasoning at most."""
        if isinstance(self.thinking, ThinkingOn):
            return self.thinking.budget_tokens
        effort = None if self.output_config is None else self.output_config.effort
        return EFFORTS.get(effort or "high")

    @property
    def shows_thinking(self) -> bool:
        """Whether thoughts are told."""
        return self.thinks and getattr(self.thinking, "display", None) != "omitted"


class MessagesRequest(CountTokensRequest):
    """`POST /v1/messages`."""

    max_tokens: Annotated[int, Field(ge=1, lt=2**31)]
    stop_sequences: Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    temperature: Real | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    top_p: Real | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    @property
    def params(self) -> dict[str, Any]:
        """What was given, under the names of `SamplingParams`."""
        given = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "stop": self.stop_sequences or None,
        }
        params: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.output_config is not None and self.output_config.format is not None:
            params["structured_outputs"] = {"json": self.output_config.format.schema_}
        return params


def _part(block: TextBlock | ImageBlock) -> TextPart | ImagePart:
    if isinstance(block, TextBlock):
        return TextPart(type="text", text=block.text)
    return ImagePart(type="image_url", image_url=block.url)


def _result_turn(block: ToolResultBlock) -> Message:
    content: str | list[TextPart | ImagePart] = ""
    if isinstance(block.content, str):
        content = block.content
    elif block.content is not None:
        content = [_part(inner) for inner in block.content]
    return Message(role="tool", tool_call_id=block.tool_use_id, content=content)


def _call(block: ToolUseBlock) -> MadeToolCall:
    arguments = json.dumps(block.input, ensure_ascii=False)
    return MadeToolCall(id=block.id, function=CalledFunction(name=block.name, arguments=arguments))
