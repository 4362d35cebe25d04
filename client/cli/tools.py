"""Tools on a command line: what a model may call, from a file, and the commands that answer its calls.

A command gets the arguments as JSON on its standard input, and what it prints is the answer. It is run without a shell.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from pagewire.client.chat_formats import REASONING_FORMATS, TOOL_CALL_FORMATS
from pagewire.client.errors import InvalidRequest
from pagewire.client.json_text import NotJson, from_json
from pagewire.client.prompts import (
    Chat,
    ChatFormat,
    MessageLike,
    NamedTool,
    ReasoningFormat,
    Tool,
    ToolCall,
    ToolCallFormat,
    ToolChoiceLike,
    ToolLike,
)

_LIMIT_S = 120.0
_MAX_ANSWER_CHARACTERS = 100_000
CHAT_FLAGS = (
    "tools",
    "tool_choice",
    "single_tool_call",
    "max_reasoning_tokens",
    "reasoning_format",
    "tool_call_format",
)
"""Those of a chat alone, besides its system message and template arguments."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What bears on a chat's answer."""
    group = parser.add_argument_group("tools and reasoning")
    group.add_argument("--tools", metavar="FILE", help="JSON: the tools that may be called, in OpenAI's shape")
    group.add_argument("--tool-choice", metavar="CHOICE", help="auto, none, required, or the name of a tool (auto)")
    group.add_argument("--single-tool-call", action="store_true", default=None, help="at most one call in an answer")
    group.add_argument("--max-reasoning-tokens", type=int, metavar="N", help="end the reasoning behind so many tokens")
    group.add_argument("--reasoning-format", choices=REASONING_FORMATS, help="instead of the template's")
    group.add_argument("--tool-call-format", choices=TOOL_CALL_FORMATS, help="instead of the template's")


def chat(messages: Sequence[MessageLike], args: argparse.Namespace, more: Sequence[ToolLike] = ()) -> Chat:
    """A conversation with what the flags say of its answer, and further tools. Raises InvalidRequest."""
    choice = args.tool_choice
    chat_format = ChatFormat(
        cast(ReasoningFormat | None, args.reasoning_format), cast(ToolCallFormat | None, args.tool_call_format)
    )
    named = choice is not None and choice not in ("auto", "none", "required")
    return Chat(
        messages,
        tools=[*read_tools(args.tools), *more],
        template_arguments=args.template_arguments,
        tool_choice=NamedTool(choice) if named else cast(ToolChoiceLike | None, choice),
        parallel_tool_calls=False if args.single_tool_call else None,
        max_reasoning_tokens=args.max_reasoning_tokens,
        format=None if chat_format == ChatFormat() else chat_format,
    )


def read_tools(file: str | None) -> list[ToolLike]:
    """The tools in a file: a list of them, or one. Raises InvalidRequest."""
    if file is None:
        return []
    try:
        with open(file, encoding="utf-8-sig") as text:
            return tools_of(text.read())
    except (OSError, UnicodeDecodeError, NotJson) as error:
        raise InvalidRequest(f"--tools {file!r} cannot be read: {error}") from error


def tools_of(text: str) -> list[ToolLike]:
    """The same of a file's text. Raises NotJson."""
    value = from_json(text)
    return cast(list[ToolLike], value if isinstance(value, list) else [value])


@dataclass(frozen=True, slots=True)
class ToolCommand:
    """A command that answers the calls of one tool."""

    name: str
    words: tuple[str, ...]

    def answer(self, call: ToolCall) -> str:
        """What the command makes of the arguments; where it fails, how."""
        given = call.arguments if isinstance(call.arguments, str) else "{}"
        try:
            done = subprocess.run(
                self.words, input=given, capture_output=True, text=True, timeout=_LIMIT_S, errors="replace", check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"error: {error}"
        said = done.stdout if done.returncode == 0 else f"error: exit status {done.returncode}\n{done.stderr}"
        return said[:_MAX_ANSWER_CHARACTERS].strip()


def tool_command(text: str) -> ToolCommand:
    """From NAME=COMMAND, for argparse."""
    name, equals, command = text.partition("=")
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} has a command that cannot be read: {error}") from error
    if not (equals and name and words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a tool and its command, such as time=date")
    return ToolCommand(name, words)


def undescribed(commands: Sequence[ToolCommand], tools: Sequence[ToolLike]) -> list[Tool]:
    """Tools for the commands that no file describes: they take any arguments."""
    known = {_name_of(tool) for tool in tools}
    return [Tool(command.name, parameters={"type": "object"}) for command in commands if command.name not in known]


def _name_of(tool: ToolLike) -> object:
    if isinstance(tool, Tool):
        return tool.name
    function = tool.get("function") if isinstance(tool, Mapping) else None
    return function.get("name") if isinstance(function, Mapping) else None
