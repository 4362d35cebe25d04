"""Chat formats: how a model writes its reasoning and its calls of tools, as its chat template shows.

No model's files name a format; the template writes an earlier answer's reasoning and calls as the model does, so its
text tells. What is not recognized stays content. It knows markers, and nothing of what stands between them.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class ReasoningFormat(StrEnum):
    """How reasoning is written."""

    NONE = "none"
    THINK = "think"
    MISTRAL = "mistral"


class ToolCallFormat(StrEnum):
    """How calls are written."""

    NONE = "none"
    QWEN3 = "qwen3"
    QWEN3_CODER = "qwen3_coder"
    LLAMA3 = "llama3"
    MISTRAL = "mistral"
    MISTRAL_ARGS = "mistral_args"


class Markers(NamedTuple):
    """What reasoning begins and ends with."""

    begin: str
    end: str


REASONING_MARKERS: dict[ReasoningFormat, Markers] = {
    ReasoningFormat.THINK: Markers("<think>", "</think>"),
    ReasoningFormat.MISTRAL: Markers("[THINK]", "[/THINK]"),
}
CALL_BEGINS: dict[ToolCallFormat, tuple[str, ...]] = {
    ToolCallFormat.NONE: (),
    ToolCallFormat.QWEN3: ("<tool_call>",),
    # Its models leave the outer marker out at times.
    ToolCallFormat.QWEN3_CODER: ("<tool_call>", "<function="),
    ToolCallFormat.LLAMA3: ("<|python_tag|>",),
    ToolCallFormat.MISTRAL: ("[TOOL_CALLS]",),
    ToolCallFormat.MISTRAL_ARGS: ("[TOOL_CALLS]",),
}
"""What a call begins with."""
CALL_END = "</tool_call>"
ARGUMENTS_MARKER, CALL_ID_MARKER = "[ARGS]", "[CALL_ID]"
_INNER_MARKERS = (CALL_END, ARGUMENTS_MARKER, CALL_ID_MARKER)


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """Both."""

    reasoning: ReasoningFormat = ReasoningFormat.NONE
    tool_calls: ToolCallFormat = ToolCallFormat.NONE

    @property
    def markers(self) -> frozenset[str]:
        """What must stay in the text even where it is a special token."""
        calls = CALL_BEGINS[self.tool_calls]
        return frozenset((*REASONING_MARKERS.get(self.reasoning, ()), *calls, *(_INNER_MARKERS if calls else ())))


class ReasoningStart(StrEnum):
    """Where an answer stands as its prompt leaves it."""

    NONE = "none"
    """No reasoning can come: the format has none, or the prompt has closed it."""
    MAY_BEGIN = "may_begin"
    OPEN = "open"
    """The prompt has begun it."""


def recognized_format(template: str) -> ChatFormat:
    """The format of the models that have this template."""
    reasoning = ReasoningFormat.NONE
    for each, markers in REASONING_MARKERS.items():
        if markers.end in template:
            reasoning = each
            break
    return ChatFormat(reasoning, _recognized_calls(template))


def _recognized_calls(template: str) -> ToolCallFormat:
    if "[TOOL_CALLS]" in template:
        return ToolCallFormat.MISTRAL_ARGS if ARGUMENTS_MARKER in template else ToolCallFormat.MISTRAL
    if "<tool_call>" in template:
        return ToolCallFormat.QWEN3_CODER if "<function=" in template else ToolCallFormat.QWEN3
    if "<|python_tag|>" in template or ("<|start_header_id|>" in template and '"parameters": ' in template):
        return ToolCallFormat.LLAMA3
    return ToolCallFormat.NONE


def reasoning_start(prompt: str, reasoning: ReasoningFormat) -> ReasoningStart:
    """As the rendered prompt leaves it."""
    markers = REASONING_MARKERS.get(reasoning)
    if markers is None:
        return ReasoningStart.NONE
    tail = prompt[-64:].rstrip()
    if tail.endswith(markers.begin):
        return ReasoningStart.OPEN
    return ReasoningStart.NONE if tail.endswith(markers.end) else ReasoningStart.MAY_BEGIN
