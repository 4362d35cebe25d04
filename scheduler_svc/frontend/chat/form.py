"""Answer forms: what a chat's answers are made of, and so what their text is read as."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pagewire.scheduler_svc.frontend.text.chat_format import ChatFormat, ReasoningStart
from pagewire.scheduler_svc.frontend.text.parameter_types import ParameterTypes


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerForm:
    """What a chat's answers are made of."""

    format: ChatFormat = field(default_factory=ChatFormat)
    """Of calls: none where no tool may be called."""
    reasoning: ReasoningStart = ReasoningStart.NONE
    tools: Mapping[str, ParameterTypes] = field(default_factory=dict)
    """Those that may be called, by name, with what their parameters may be."""
    is_continued: bool = False
    """It goes on with a message, so what it begins with is not layout."""
    is_content_held: bool = False
    """Its content is of a language: every character of it counts, and a call stands in its place or not at all."""
    is_call_required: bool = False
    """Nothing but reasoning and calls may stand in it."""
