"""Tools on a command line: what a model may call, from a file, and the commands that answer its calls.

A command gets the arguments as JSON on its standard input, and what it prints is the answer. It is run without a shell.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, cast

from pagewire.client.chat_formats import REASONING_FORMATS, TOOL_CALL_FORMATS
from pagewire.client.cli.interrupt import Closable
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

FAILED = "error: "
"""What an answer begins with that is none."""
MAX_ROUNDS = 16
"""Of calls for one question."""
_LIMIT_S = 120.0
_MAX_ANSWER_BYTES = 100_000
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


def chat(
    messages: Sequence[MessageLike],
    args: argparse.Namespace,
    more: Sequence[ToolLike] = (),
    *,
    num_rounds: int = 0,
) -> Chat:
    """A conversation with what the flags say of its answer, and further tools. `num_rounds` of calls have been made and
    answered: behind the first none must be made, and behind `MAX_ROUNDS` none can. Raises InvalidRequest."""
    choice: str | None = args.tool_choice
    if num_rounds and choice != "none":
        choice = "none" if num_rounds >= MAX_ROUNDS else None
    chat_format = ChatFormat(
        cast(ReasoningFormat | None, args.reasoning_format), cast(ToolCallFormat | None, args.tool_call_format)
    )
    is_kind = choice in (None, "auto", "none", "required")
    return Chat(
        messages,
        tools=[*read_tools(args.tools), *more],
        template_arguments=args.template_arguments,
        tool_choice=cast(ToolChoiceLike | None, choice) if is_kind else NamedTool(str(choice)),
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

    def answer(
        self, call: ToolCall, limit_s: float | None = None, closes: Callable[[Closable], None] = lambda _: None
    ) -> str:
        """What the command makes of the arguments, the beginning of it where it is long; where it fails or takes longer
        than `limit_s`, how, behind `FAILED`. `closes` is given what ends it before."""
        limit_s = _LIMIT_S if limit_s is None else limit_s
        given = call.arguments if isinstance(call.arguments, str) else "{}"
        pipe = subprocess.PIPE
        try:
            # A group of its own, which ends with it: what it starts would hold its pipes open.
            process = subprocess.Popen(self.words, stdin=pipe, stdout=pipe, stderr=pipe, process_group=0)
        except OSError as error:
            return f"{FAILED}{error}"
        running = _Running(process)
        closes(running)
        ends = threading.Timer(limit_s, running.close)
        ends.start()
        with process, ThreadPoolExecutor(2) as readers:
            answer = readers.submit(_beginning, process.stdout)
            complaint = readers.submit(_beginning, process.stderr, goes_on=True)
            assert process.stdin is not None
            with suppress(OSError):  # it need not read them
                process.stdin.write(given.encode())
            with suppress(OSError):
                process.stdin.close()
            said, complained, status = answer.result(), complaint.result(), process.wait()
            running.is_over = True
        if not ends.is_alive():
            return f"{FAILED}it took more than {limit_s:g} s"
        ends.cancel()
        is_cut = len(said) == _MAX_ANSWER_BYTES  # which ends whoever goes on writing
        text = said if status == 0 or is_cut else f"{FAILED}exit status {status}\n".encode() + complained
        return text.decode(errors="replace").strip()


class _Running:
    """A command that runs, and what it has started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.is_over = False

    def close(self) -> None:
        """End them all."""
        if self.is_over:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _beginning(pipe: IO[bytes] | None, *, goes_on: bool = False) -> bytes:
    """As much as is kept; the pipe is closed then, or read on where its writer `goes_on`."""
    assert pipe is not None
    with pipe:
        kept = pipe.read(_MAX_ANSWER_BYTES)
        while goes_on and pipe.read(_MAX_ANSWER_BYTES):
            pass
        return kept


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
