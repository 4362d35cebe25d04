"""Generation flags: the parameters of one generation, for `generate` and `chat`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import cast

from pagewire.client.json_text import NotJson, from_json
from pagewire.client.prompts import Parameters

_FLAGS: Mapping[str, tuple[type, str, str]] = {
    "max_tokens": (int, "N", "most tokens of the answer (the context's end)"),
    "min_tokens": (int, "N", "fewest tokens of the answer"),
    "temperature": (float, "T", "0 is greedy"),
    "top_k": (int, "K", "keep the K likeliest tokens; 0 keeps all"),
    "top_p": (float, "P", "keep the likeliest tokens whose probabilities sum to P"),
    "min_p": (float, "P", "drop tokens less likely than P times the likeliest"),
    "presence_penalty": (float, "X", "-2 to 2"),
    "frequency_penalty": (float, "X", "-2 to 2"),
    "repetition_penalty": (float, "X", "1 is none"),
    "seed": (int, "N", "of the random draw (a random one)"),
    "priority": (int, "N", "-100 to 100, larger runs first"),
    "cache_salt": (str, "TEXT", "share cached prefixes only with requests of the same salt"),
    "regex": (str, "REGEX", "the answer must match it"),
    "json_schema": (str, "JSON", "the answer must be JSON of this schema"),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag left out leaves its field unset: the model's or the server's default holds."""
    group = parser.add_argument_group("generation")
    for name, (kind, metavar, help_text) in _FLAGS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=help_text)
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end the answer where it appears; may be repeated"
    )
    group.add_argument("--ignore-eos", action="store_true", default=None, help="go on past the end of sequence")
    group.add_argument("--system", metavar="TEXT", help="instructions to the model, before the conversation")
    group.add_argument(
        "--template-arguments",
        type=_json_object,
        metavar="JSON",
        help='variables for the chat template, such as {"enable_thinking": false}',
    )
    group.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="give up on an answer after this long")


def parameters(args: argparse.Namespace, model: str) -> Parameters:
    """The client's keyword arguments."""
    given = vars(args)
    chosen = {name: given[name] for name in (*_FLAGS, "stop", "ignore_eos")}
    return cast(Parameters, {**chosen, "model": model})


def _json_object(text: str) -> str:
    """The text itself, so that the server reads what was typed."""
    try:
        value = from_json(text)
    except NotJson as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from error
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be more than 0")
    return seconds
