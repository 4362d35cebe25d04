"""Prompt inputs of `generate`: arguments, a file, standard input, or token ids."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from pagewire.client import requests
from pagewire.client.cli import tools
from pagewire.client.errors import InvalidRequest, brief
from pagewire.client.json_text import NotJson, from_json
from pagewire.client.prompts import Chat, Json, Message, MessageLike, Prompt, ToolChoiceLike, ToolLike
from pagewire.client.types import Capabilities

_KINDS = ("prompt", "messages", "token_ids")
_CHAT_KEYS = frozenset(
    {
        "messages",
        "tools",
        "template_arguments",
        "add_generation_prompt",
        "tool_choice",
        "parallel_tool_calls",
        "max_reasoning_tokens",
        "continue_final_message",
    }
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The prompts and how they are taken."""
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what to answer; - is all of standard input")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--file",
        metavar="FILE",
        help="one prompt per line; in a .jsonl file one object with prompt, token_ids or messages per line; beside "
        "messages may stand tools, tool_choice, parallel_tool_calls, max_reasoning_tokens, template_arguments, "
        "add_generation_prompt and continue_final_message",
    )
    source.add_argument("--ids", type=_ids, metavar="1,2,3", help="a prompt of token ids")
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")


def gather(args: argparse.Namespace) -> list[str | Prompt]:
    """The prompts: text as str, the rest ready to send. Without any, one per line of standard input.

    Raises InvalidRequest naming the line that is wrong.
    """
    if args.prompts and (args.file or args.ids):
        raise InvalidRequest("prompts come from arguments, --file or --ids, not from two of them")
    if args.ids:
        return [args.ids]
    if args.file and args.file != "-":
        try:
            with open(args.file, encoding="utf-8-sig") as lines:  # editors write a byte-order mark
                found = _from_lines(lines, args.file)
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"--file {args.file!r} cannot be read: {error}") from error
    elif args.prompts:
        found = [sys.stdin.read() if prompt == "-" else prompt for prompt in args.prompts]
    else:
        found = _from_lines(sys.stdin, "standard input")
    if not found:
        raise InvalidRequest("there is no prompt")
    return found


def dress(prompt: str | Prompt, args: argparse.Namespace, can: Capabilities) -> Prompt:
    """Text as one user's message where the model has a chat template, unless --raw.

    Raises InvalidRequest for a flag that would have to be ignored.
    """
    if isinstance(prompt, Chat):
        _refuse_flag(args, "system", "a conversation has its own system message")
        for name in tools.CHAT_FLAGS:
            _refuse_flag(args, name, "a conversation says it itself")
        if args.template_arguments is None:
            return prompt
        if prompt.template_arguments is not None:
            _refuse_flag(args, "template_arguments", "a conversation has template_arguments of its own")
        return replace(prompt, template_arguments=args.template_arguments)
    if not isinstance(prompt, str) or args.raw or not can.chat:
        for name in ("system", "template_arguments", *tools.CHAT_FLAGS):
            _refuse_flag(args, name, "it needs text, a model with a chat template, and no --raw")
        return prompt
    system = [Message("system", args.system)] if args.system is not None else []
    return tools.chat([*system, Message("user", prompt)], args)


def _refuse_flag(args: argparse.Namespace, name: str, why: str) -> None:
    if getattr(args, name) is not None:
        raise InvalidRequest(f"--{name.replace('_', '-')} cannot be used: {why}")


def _from_lines(lines: Iterable[str], name: str) -> list[str | Prompt]:
    texts = [(number, line.rstrip("\r\n")) for number, line in enumerate(lines, 1)]
    filled = [(number, text) for number, text in texts if text.strip()]
    if not name.lower().endswith(".jsonl"):
        return [text for _, text in filled]
    return [_from_json(text, f"{name}, line {number}") for number, text in filled]


def _from_json(text: str, where: str) -> str | Prompt:
    try:
        entry = from_json(text)
    except NotJson as error:
        raise InvalidRequest(f"{where}: not JSON: {error}") from error
    match entry:
        case {"prompt": str(prompt), **rest} if not rest:
            return prompt
        case {"token_ids": [_, *_] as ids, **rest} if not rest and all(type(token) is int for token in ids):
            return cast(list[int], ids)
        case {"messages": [_, *_], **rest} if rest.keys() <= _CHAT_KEYS:
            return _chat(cast(Mapping[str, object], entry), where)
        case _:
            raise InvalidRequest(f"{where}: {_fault(entry)}")


def _fault(entry: object) -> str:
    """What is wrong with a line that is none of the kinds of prompt."""
    expected = f"expected an object with just one of {', '.join(_KINDS)}"
    if not isinstance(entry, Mapping):
        return expected
    kinds = [kind for kind in _KINDS if kind in entry]
    if len(kinds) != 1:
        return f"{expected}; it has {' and '.join(kinds) or 'none of them'}"
    (kind,) = kinds
    known = {kind} | (_CHAT_KEYS if kind == "messages" else frozenset())
    if others := sorted(map(repr, entry.keys() - known)):
        return f"{expected}; beside {kind} it has {', '.join(others)}, which are flags here or not known"
    wanted = {"prompt": "text", "token_ids": "a list of integers of at least one", "messages": "a list of at least one"}
    return f"{kind} is {brief(entry[kind])}; it must be {wanted[kind]}"


def _chat(entry: Mapping[str, object], where: str) -> Chat:
    """The conversation, checked now: a line that is wrong must be named before any prompt is under way."""
    chat = Chat(
        cast(Sequence[MessageLike], entry["messages"]),
        cast(Sequence[ToolLike], entry.get("tools", ())),
        cast(Json | None, entry.get("template_arguments")),
        cast(bool | None, entry.get("add_generation_prompt")),
        cast(ToolChoiceLike | None, entry.get("tool_choice")),
        cast(bool | None, entry.get("parallel_tool_calls")),
        cast(int | None, entry.get("max_reasoning_tokens")),
        cast(bool | None, entry.get("continue_final_message")),
    )
    try:
        requests.prompt_message(chat, "prompt")
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {str(error).removeprefix('prompt.chat.')}", field=error.field) from error
    return chat


def _ids(text: str) -> Sequence[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()] or _no_ids(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of token ids") from error


def _no_ids(text: str) -> Sequence[int]:
    raise argparse.ArgumentTypeError(f"{text!r} is not a list of token ids")
