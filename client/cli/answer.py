"""Answers as they come: content as it is, reasoning dimmed for whoever watches, and calls of tools, each on a line."""

from __future__ import annotations

from pagewire.client.cli.printing import clean, complain, write, write_dim
from pagewire.client.prompts import Message
from pagewire.client.types import ContentPart, Delta, MalformedCall, Part, ReasoningPart, ToolCallPart


class AnswerPrinter:
    """Prints one answer. A pipe gets no reasoning: what it reads is the answer."""

    def __init__(self) -> None:
        self.content: list[str] = []
        """What was said so far."""
        self._is_at_line_start = True
        self._separates = False
        """Whether something else than what comes next was shown last."""

    def show(self, delta: Delta) -> None:
        """More of it."""
        for part in delta.parts:
            self._show(part)

    def show_text(self, delta: Delta) -> None:
        """The same of a prompt that is no chat."""
        if delta.text:
            self._say(delta.text)

    def _say(self, text: str) -> None:
        if self._separates:
            self._end_line()
            self._separates = False
        self.content.append(text)
        write(text)
        self._is_at_line_start = text.endswith("\n")

    def _show(self, part: Part) -> None:
        match part:
            case ContentPart():
                self._say(part.text)
            case ReasoningPart():
                if write_dim(part.text):
                    self._is_at_line_start = part.text.endswith("\n")
                    self._separates = True
            case ToolCallPart(name=str(name)):
                self._end_line()
                write(f"{name} {part.arguments}")
                self._is_at_line_start, self._separates = False, True
            case ToolCallPart():
                write(part.arguments)
            case MalformedCall():
                self._end_line()
                complain(clean(f"a call is malformed, {part.reason}: {part.text}"))

    def _end_line(self) -> None:
        if not self._is_at_line_start:
            write("\n")
            self._is_at_line_start = True


def as_text(message: Message) -> str:
    """A whole answer on lines: what is said, then its calls."""
    calls = [f"{call.name} {call.arguments}" for call in message.tool_calls]  # type: ignore[union-attr]
    return "\n".join([*([message.content] if message.content else []), *calls])
