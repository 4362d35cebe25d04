"""`pagewire chat`: a conversation, at a terminal or line by line from a pipe.

Ctrl-C stops the answer, which stays in the conversation as far as it came, and not the program. Calls of tools that
have a command are answered by it, and the model goes on with what it said. Nothing of the conversation is kept after
the program ends but the lines that were typed, for the arrow keys.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from pagewire.client.cli import connection, interrupt, parameters, tools
from pagewire.client.cli.answer import AnswerPrinter
from pagewire.client.cli.connection import Connected
from pagewire.client.cli.logprobs import print_logprobs
from pagewire.client.cli.printing import complain, note, write
from pagewire.client.errors import InvalidRequest, PagewireError
from pagewire.client.prompts import Message, ToolCall
from pagewire.client.types import Delta, Result

_MARK = "> "
_HISTORY_LINES = 1000
_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command and its flags."""
    parser = commands.add_parser("chat", help="talk with a model", description=f"Talk with a model. {_HELP}.")
    parser.add_argument(
        "--tool",
        dest="commands",
        action="append",
        default=[],
        type=tools.tool_command,
        metavar="NAME=COMMAND",
        help="answer calls of this tool with what the command prints; it gets the arguments as JSON on its standard "
        "input; may be repeated; --tools may describe the tool",
    )
    parameters.add_flags(parser)
    tools.add_flags(parser)
    connection.add_model_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0, or 1 when an answer of a piped conversation failed."""
    with connection.connect(args) as connected:
        if not connected.model.capabilities.chat:
            raise InvalidRequest(
                f"the model {connected.model.name} has no chat template; use `pagewire generate --raw`"
            )
        interactive = sys.stdin.isatty()
        if interactive:
            note(f"{connected.model.name}. {_HELP}.")
        conversation = Conversation(connected, args)
        failed = 0
        for line in _typed_lines() if interactive else _piped_lines():
            match line.strip():
                case "":
                    pass
                case "/exit" | "/quit":
                    break
                case "/reset":
                    conversation.reset()
                    note("The conversation begins anew.")
                case "/help":
                    note(f"{_HELP}.")
                case text:
                    failed += not conversation.ask(text)
        return 1 if failed and not interactive else 0


_Exchange = tuple[Message, ...]
"""A question, the calls that were made for it with their answers, and the answer."""


class Conversation:
    """The exchanges so far: questions, each with the answer that it got. So the next question always follows an answer,
    and none of them is empty: templates refuse what they do not expect, and would refuse it for ever."""

    def __init__(self, connected: Connected, args: argparse.Namespace) -> None:
        """Raises InvalidRequest for flags that cannot be."""
        self._connected = connected
        self._args = args
        self._parameters = parameters.parameters(args, connected.model.name)
        self._commands = {command.name: command for command in args.commands}
        self._undescribed = tools.undescribed(args.commands, tools.read_tools(args.tools))
        self._system = [Message("system", args.system)] if args.system is not None else []
        self._exchanges: list[_Exchange] = []

    def reset(self) -> None:
        """Back to the system's message, where there is one."""
        self._exchanges = []

    def ask(self, text: str) -> bool:
        """Print the answer as it comes. False where it failed. A question that got no answer, or an empty one, is not
        part of the conversation.

        A conversation that the service does not take any more, as when the context is full, loses its older half until
        it is taken; one that is not taken even without its past stays as it is.
        """
        exchange, num_rounds = [Message("user", text)], 0
        kept = self._exchanges
        while True:
            printer = AnswerPrinter()
            try:
                result = self._answer(kept, exchange, num_rounds, printer)
            except PagewireError as error:
                if printer.content:
                    write("\n")
                elif kept and isinstance(error, InvalidRequest):
                    kept = kept[(len(kept) + 1) // 2 :]
                    continue
                complain(str(error))
                return False
            write("\n")
            if result is not None:
                print_logprobs(result)
                if answers := self._call(result):
                    exchange += [result.message, *answers]
                    num_rounds += 1
                    continue
            break
        forgotten = len(self._exchanges) - len(kept)
        if forgotten:
            complain(f"the conversation was too long for the service; its {forgotten} oldest questions are forgotten")
        said = "".join(printer.content)
        if said.strip():
            reasoning = result.message.reasoning_content if result is not None else None
            self._exchanges = [*kept, (*exchange, Message("assistant", said, reasoning_content=reasoning))]
        else:
            self._exchanges = kept
            note("[no answer; the question is not kept]")
        return True

    def _call(self, result: Result) -> list[Message]:
        """Answers to the calls of an answer; none where it made none, or one that no command answers."""
        calls = [call for call in result.message.tool_calls if isinstance(call, ToolCall)]
        if not all(call.name in self._commands for call in calls):
            return []
        answers = []
        ctrl_c = interrupt.EndsAnswer()
        with ctrl_c.hears():
            for call in calls:
                answer = self._commands[call.name].answer(call, self._args.timeout, ctrl_c.closes)
                if ctrl_c.pressed:
                    note("[stopped]")
                    return []
                if answer.startswith(tools.FAILED):
                    complain(f"{call.name}: {answer}")
                else:
                    note(answer)
                answers.append(Message("tool", answer, name=call.name, tool_call_id=call.id))
        return answers

    def _answer(
        self, past: list[_Exchange], exchange: list[Message], num_rounds: int, printer: AnswerPrinter
    ) -> Result | None:
        """Print it until the model or Ctrl-C ends it; the whole where the model did. Raises PagewireError."""
        messages = [*self._system, *chain.from_iterable(past), *exchange]
        prompt = tools.chat(messages, self._args, self._undescribed, num_rounds=num_rounds)
        ctrl_c = interrupt.EndsAnswer()
        with ctrl_c.hears():
            try:
                with self._connected.client.stream(prompt, timeout_s=self._args.timeout, **self._parameters) as stream:
                    ctrl_c.closes(stream)
                    for event in stream:
                        if isinstance(event, Delta):
                            printer.show(event)
                    if not ctrl_c.pressed:
                        return stream.result()
            except PagewireError:
                if not ctrl_c.pressed:
                    raise
        if ctrl_c.pressed:
            note(" [stopped]")
        return None


def _piped_lines() -> Iterator[str]:
    yield from sys.stdin


def _typed_lines() -> Iterator[str]:
    """Lines from the terminal, editable where readline is there, until Ctrl-D."""
    history = _load_history()
    try:
        while True:
            try:
                with interrupt.raises():
                    line = input(_MARK)
            except KeyboardInterrupt:
                print()
            except EOFError:
                print()
                return
            else:
                yield line
    finally:
        _save_history(history)


def _load_history() -> Path | None:
    """Where typed lines are kept between conversations; none without readline or a folder to write to."""
    try:
        import readline
    except ImportError:
        return None
    try:
        named = os.environ.get("XDG_STATE_HOME", "")
        state = Path(named) if os.path.isabs(named) else Path.home() / ".local" / "state"
        history = state / "pagewire" / "chat_history"
        history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if history.exists():
            readline.read_history_file(history)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    return history


def _save_history(history: Path | None) -> None:
    if history is None:
        return
    import readline

    try:
        readline.set_history_length(_HISTORY_LINES)
        readline.write_history_file(history)
        history.chmod(0o600)
    except OSError as error:
        complain(f"the typed lines could not be kept: {error}")
