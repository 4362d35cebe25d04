"""Chat turns: what `pagewire.v1.Chat` says of its answer: how it is written, and which tools it may call.

It reads no JSON and compiles nothing. Invariant: a turn asks for nothing that the model's format and the device cannot
give.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from pagewire.scheduler_svc.frontend.chat.form import AnswerForm
from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.limits import (
    MAX_CONSTRAINT_BYTES,
    MAX_REASONING_TOKENS,
    ModelLimits,
    quote,
)
from pagewire.scheduler_svc.frontend.request.constraint import check_can_constrain, check_nesting
from pagewire.scheduler_svc.frontend.text.chat_format import (
    REASONING_MARKERS,
    ChatFormat,
    Markers,
    ReasoningFormat,
    ReasoningStart,
    ToolCallFormat,
    reasoning_start,
    recognized_format,
)
from pagewire.scheduler_svc.frontend.text.languages import (
    Answer,
    AnswerReasoning,
    CallableTool,
    Calls,
    Content,
    Language,
)
from pagewire.scheduler_svc.frontend.text.parameter_types import ParameterTypes
from pagewire.v1 import generation_pb2 as pb
from pagewire.wire.model import ModelSpec

_PATH = "generation.prompt.chat"
REASONING_FORMATS: Mapping[pb.ReasoningFormat, ReasoningFormat] = {
    pb.REASONING_FORMAT_NONE: ReasoningFormat.NONE,
    pb.REASONING_FORMAT_THINK: ReasoningFormat.THINK,
    pb.REASONING_FORMAT_MISTRAL: ReasoningFormat.MISTRAL,
}
TOOL_CALL_FORMATS: Mapping[pb.ToolCallFormat, ToolCallFormat] = {
    pb.TOOL_CALL_FORMAT_NONE: ToolCallFormat.NONE,
    pb.TOOL_CALL_FORMAT_QWEN3: ToolCallFormat.QWEN3,
    pb.TOOL_CALL_FORMAT_QWEN3_CODER: ToolCallFormat.QWEN3_CODER,
    pb.TOOL_CALL_FORMAT_LLAMA3: ToolCallFormat.LLAMA3,
    pb.TOOL_CALL_FORMAT_MISTRAL: ToolCallFormat.MISTRAL,
    pb.TOOL_CALL_FORMAT_MISTRAL_ARGS: ToolCallFormat.MISTRAL_ARGS,
}
_F = TypeVar("_F", ReasoningFormat, ToolCallFormat)
_N = TypeVar("_N", pb.ReasoningFormat, pb.ToolCallFormat)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatTurn:
    """One chat's answer, as far as the prompt's text does not decide."""

    format: ChatFormat
    """Of calls: none where none may be made."""
    tools: tuple[CallableTool, ...]
    """Those that may be called; with their schemas where calls are held to them."""
    is_call_required: bool
    is_single_call: bool
    max_reasoning_tokens: int | None
    asking_field: str
    """The field that asks for what the answer is constrained to, for errors."""
    continued: ReasoningStart | None
    """Where the message that it goes on from stands; none where it begins an answer."""

    def start(self, prompt: str) -> ReasoningStart:
        """Where the answer stands as the rendered prompt leaves it."""
        if self.continued is not None:
            return self.continued
        return reasoning_start(prompt, self.format.reasoning)

    def form(
        self, start: ReasoningStart, types: Mapping[str, ParameterTypes], content: Content | None = None
    ) -> AnswerForm:
        """What the answer is read as; `types` of the tools' parameters, by tool; `content` is what it is held to."""
        return AnswerForm(
            format=self.format,
            reasoning=start,
            tools={tool.name: types.get(tool.name, {}) for tool in self.tools},
            is_continued=self.continued is not None,
            is_content_held=content is not None,
            is_call_required=self.is_call_required,
        )

    def language(self, content: Content | None, start: ReasoningStart) -> Language | None:
        """What the answer is constrained to, with its content's language; none where it may be anything."""
        is_limited = self.max_reasoning_tokens is not None and start is not ReasoningStart.NONE
        if content is None and not (is_limited or self.is_call_required or (self.tools and self.is_single_call)):
            return None
        reasoning = None
        if start is not ReasoningStart.NONE:
            begin, end = REASONING_MARKERS[self.format.reasoning]
            is_open = start is ReasoningStart.OPEN
            reasoning = AnswerReasoning(begin, end, is_open, self.max_reasoning_tokens)
        calls = None
        if not self.tools and reasoning is None:
            return content
        if self.tools:
            is_held = self.is_call_required or self.is_single_call or content is not None
            calls = Calls(
                self.format.tool_calls, self.tools if is_held else (), self.is_call_required, self.is_single_call
            )
        return Answer(content, reasoning, calls)


def model_format(spec: ModelSpec) -> ChatFormat:
    """As the model's templates have it."""
    return recognized_format((spec.chat_template or "") + (spec.tool_use_template or ""))


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatChoices:
    """What a chat says of its answer, in whichever request it stands."""

    format: ChatFormat
    tools: tuple[CallableTool, ...]
    """Those that may be called, without their schemas."""
    is_call_required: bool
    is_single_call: bool
    max_reasoning_tokens: int | None

    @property
    def wants_parameter_types(self) -> bool:
        """Whether calls can be read only with what the tools' parameters may be."""
        return self.format.tool_calls is ToolCallFormat.QWEN3_CODER and bool(self.tools)


def chat_choices(chat: pb.Chat, spec: ModelSpec, path: str) -> ChatChoices:
    """Checked against the model's format; `path` is the chat's. Raises InvalidArgument."""
    chat_format = _format(chat, spec, path)
    tools, is_required, is_single = _tools(chat, chat_format, path)
    return ChatChoices(
        format=chat_format,
        tools=tools,
        is_call_required=is_required,
        is_single_call=is_single,
        max_reasoning_tokens=_max_reasoning_tokens(chat, chat_format, path),
    )


def chat_turn(
    generation: pb.Generation, choices: ChatChoices | None, spec: ModelSpec, limits: ModelLimits
) -> ChatTurn | None:
    """The turn of a chat whose parts are wanted; none of anything else. `choices` are the prompt's, none where it is no
    chat. Raises InvalidArgument."""
    output, chat = generation.output, generation.prompt.chat
    if choices is None:
        if output.parts:
            raise InvalidArgument("generation.output.parts", "is true; the prompt is no chat")
        return None
    asking = _asking_field(choices)
    if output.HasField("parts") and not output.parts:
        if chat.HasField("format"):
            asking = f"{_PATH}.format"
        if asking is not None:
            raise InvalidArgument(asking, "is set; it holds for parts, and output.parts is false")
        return None
    if asking is not None:
        check_can_constrain(generation, spec, limits, asking)
    if choices.is_call_required and generation.HasField("constraint"):
        raise InvalidArgument("generation.constraint", f"is set beside {_PATH}.tool_choice, which leaves no content")
    tools = choices.tools
    if choices.is_call_required or choices.is_single_call or generation.HasField("constraint"):
        tools = tuple(msgspec.structs.replace(tool, schema=_schema(chat.tools[tool.index])) for tool in tools)
        _check_schemas(tools)
    return ChatTurn(
        format=choices.format if tools else ChatFormat(choices.format.reasoning),
        tools=tools,
        is_call_required=choices.is_call_required,
        is_single_call=choices.is_single_call,
        max_reasoning_tokens=choices.max_reasoning_tokens,
        asking_field=asking or "generation.constraint",
        continued=_continued(chat, choices.format) if chat.continue_final_message else None,
    )


def _asking_field(choices: ChatChoices) -> str | None:
    """The field that asks for a constraint, the first of several."""
    if choices.is_call_required:
        return f"{_PATH}.tool_choice"
    if choices.is_single_call:
        return f"{_PATH}.parallel_tool_calls"
    return None if choices.max_reasoning_tokens is None else f"{_PATH}.max_reasoning_tokens"


def _format(chat: pb.Chat, spec: ModelSpec, path: str) -> ChatFormat:
    known, given, path = model_format(spec), chat.format, f"{path}.format"
    return ChatFormat(
        _chosen(given.reasoning, known.reasoning, REASONING_FORMATS, f"{path}.reasoning"),
        _chosen(given.tool_calls, known.tool_calls, TOOL_CALL_FORMATS, f"{path}.tool_calls"),
    )


def _chosen(given: _N, known: _F, formats: Mapping[_N, _F], path: str) -> _F:
    if not given:
        return known
    if given in formats:
        return formats[given]
    raise InvalidArgument(path, f"is {given}, which is no format")


def _tools(chat: pb.Chat, chat_format: ChatFormat, chat_path: str) -> tuple[tuple[CallableTool, ...], bool, bool]:
    """Those that may be called, whether one must be, and whether one call is the most."""
    tools = tuple(CallableTool(index, tool.name, None) for index, tool in enumerate(chat.tools))
    names: set[str] = set()
    for tool in tools:
        if tool.name in names:
            raise InvalidArgument(f"{chat_path}.tools[{tool.index}].name", f"is {quote(tool.name)}, as another tool's")
        if "\0" in tool.name:
            raise InvalidArgument(f"{chat_path}.tools[{tool.index}].name", f"is {quote(tool.name)}, which has a NUL")
        names.add(tool.name)
    is_single = chat.HasField("parallel_tool_calls") and not chat.parallel_tool_calls
    if is_single:
        _check_calls(tools, chat_format, f"{chat_path}.parallel_tool_calls", "is false")
    path = f"{chat_path}.tool_choice"
    choice = chat.tool_choice.WhichOneof("kind") if chat.HasField("tool_choice") else "auto"
    if choice is None:
        raise InvalidArgument(path, "says no choice; it needs one of auto, none, required and named")
    if choice in ("required", "named"):
        _check_calls(tools, chat_format, f"{path}.{choice}", "is set")
    if choice == "named":
        if chat.tool_choice.named not in names:
            raise InvalidArgument(f"{path}.named", f"is {quote(chat.tool_choice.named)}, and no tool has that name")
        tools = tuple(tool for tool in tools if tool.name == chat.tool_choice.named)
        is_single = True
    if choice == "none" or chat_format.tool_calls is ToolCallFormat.NONE:
        tools = ()
    return tools, choice in ("required", "named"), is_single and bool(tools)


def _check_calls(tools: tuple[CallableTool, ...], chat_format: ChatFormat, path: str, what: str) -> None:
    if not tools:
        raise InvalidArgument(path, f"{what}, and the chat has no tools")
    if chat_format.tool_calls is ToolCallFormat.NONE:
        raise InvalidArgument(
            path, f"{what}, and how the model writes calls is not known from its template; format.tool_calls says it"
        )


def _schema(tool: pb.Tool) -> str | None:
    return tool.parameters if tool.HasField("parameters") else None


def _check_schemas(tools: tuple[CallableTool, ...]) -> None:
    size = sum(len(tool.schema.encode()) for tool in tools if tool.schema is not None)
    if size > MAX_CONSTRAINT_BYTES:
        raise InvalidArgument(
            f"{_PATH}.tools",
            f"has {size} bytes of parameters; at most {MAX_CONSTRAINT_BYTES} may be where calls are constrained",
        )
    for tool in tools:
        if tool.schema is not None:
            check_nesting(tool.schema, f"{_PATH}.tools[{tool.index}].parameters")


def _max_reasoning_tokens(chat: pb.Chat, chat_format: ChatFormat, path: str) -> int | None:
    if not chat.HasField("max_reasoning_tokens"):
        return None
    path = f"{path}.max_reasoning_tokens"
    if chat.max_reasoning_tokens > MAX_REASONING_TOKENS:
        raise InvalidArgument(path, f"is {chat.max_reasoning_tokens}; its range is 0 to {MAX_REASONING_TOKENS}")
    if chat_format.reasoning is ReasoningFormat.NONE:
        raise InvalidArgument(
            path, "is set, and how the model writes reasoning is not known from its template; format.reasoning says it"
        )
    return chat.max_reasoning_tokens


def _continued(chat: pb.Chat, chat_format: ChatFormat) -> ReasoningStart:
    markers: Markers | None = REASONING_MARKERS.get(chat_format.reasoning)
    if markers is None:
        return ReasoningStart.NONE
    last = chat.messages[-1]
    is_open = not last.content or last.content.rfind(markers.begin) > last.content.rfind(markers.end)
    return ReasoningStart.OPEN if is_open else ReasoningStart.NONE


def describe_format(chat_format: ChatFormat) -> pb.ChatFormat:
    """As ModelService shows it."""
    described = pb.ChatFormat()
    described.reasoning = next(number for number, each in REASONING_FORMATS.items() if each is chat_format.reasoning)
    described.tool_calls = next(number for number, each in TOOL_CALL_FORMATS.items() if each is chat_format.tool_calls)
    return described
