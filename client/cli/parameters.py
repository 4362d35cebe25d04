"""Generation flags: the parameters of one generation, for `generate` and `chat`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from pagewire.client.json_text import NotJson, from_json
from pagewire.client.prompts import Parameters


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not token ids such as 1,2,3") from error


def _bias(text: str) -> dict[int, float]:
    found: dict[int, float] = {}
    for part in text.split(","):
        token, equals, value = part.partition("=")
        try:
            if not equals or int(token) in found:
                raise ValueError
            found[int(token)] = float(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not bias such as 5=1.5,7=-100, each id once") from error
    return found


@dataclass(frozen=True, slots=True)
class _Flag:
    """One parameter's flag."""

    kind: Callable[[str], object] | None
    """None for a switch."""
    metavar: str
    help: str
    repeats: bool = False
    flag: str = ""
    """Where it is not the parameter's name."""


_SAMPLING: Mapping[str, _Flag] = {
    "temperature": _Flag(float, "T", "0 is greedy"),
    "top_k": _Flag(int, "K", "keep the K likeliest tokens; 0 keeps all"),
    "top_p": _Flag(float, "P", "keep the likeliest tokens whose probabilities sum to P"),
    "min_p": _Flag(float, "P", "drop tokens less likely than P times the likeliest"),
    "presence_penalty": _Flag(float, "X", "taken from the logit of tokens already generated, -2 to 2"),
    "frequency_penalty": _Flag(float, "X", "the same for each time that they were, -2 to 2"),
    "repetition_penalty": _Flag(float, "X", "divides logits of tokens in prompt or answer; 1 is none"),
    "logit_bias": _Flag(_bias, "ID=X,…", "add X to the logits of these token ids"),
    "allowed_token_ids": _Flag(_ids, "ID,…", "generate no others"),
    "banned_token_ids": _Flag(_ids, "ID,…", "never generate these"),
    "bad_words": _Flag(str, "TEXT", "do not write it; may be repeated", repeats=True, flag="--bad-word"),
    "seed": _Flag(int, "N", "of the random draw (a random one)"),
}
_STOPPING: Mapping[str, _Flag] = {
    "max_tokens": _Flag(int, "N", "most tokens of the answer (the context's end)"),
    "min_tokens": _Flag(int, "N", "fewest tokens of the answer"),
    "stop": _Flag(str, "TEXT", "end the answer where it appears; may be repeated", repeats=True),
    "stop_token_ids": _Flag(_ids, "ID,…", "end the answer at these token ids"),
    "include_stop": _Flag(None, "", "keep the stop text that ended the answer"),
    "ignore_eos": _Flag(None, "", "go on past the end of sequence"),
}
_LOGPROBS: Mapping[str, _Flag] = {
    "logprobs": _Flag(None, "", "of every token of the answer"),
    "num_candidates": _Flag(int, "N", "and of the N likeliest at its place", flag="--candidates"),
    "logprob_token_ids": _Flag(_ids, "ID,…", "and of these token ids"),
    "processed_logprobs": _Flag(None, "", "after bias, penalties and bans instead of before"),
    "prompt_logprobs": _Flag(None, "", "of every token of the prompt"),
    "num_prompt_candidates": _Flag(int, "N", "and of the N likeliest at its place", flag="--prompt-candidates"),
}
_SCHEDULING: Mapping[str, _Flag] = {
    "priority": _Flag(int, "N", "-100 to 100, larger runs first"),
    "cache_salt": _Flag(str, "TEXT", "share cached prefixes only with requests of the same salt"),
}
_CONSTRAINTS: Mapping[str, _Flag] = {
    "json_schema": _Flag(str, "JSON", "the answer is JSON of this schema"),
    "json_object": _Flag(None, "", "the answer is a JSON object"),
    "regex": _Flag(str, "REGEX", "the answer matches it"),
    "grammar": _Flag(str, "TEXT", "the answer is what this grammar says, in Lark or EBNF"),
    "choice": _Flag(str, "TEXT", "the answer is one of these texts; repeat the flag for each", repeats=True),
}
_GROUPS: Mapping[str, Mapping[str, _Flag]] = {
    "sampling: which token comes next": _SAMPLING,
    "stopping: where an answer ends": _STOPPING,
    "log-probabilities": _LOGPROBS,
    "constraints: what an answer may be (one of them)": _CONSTRAINTS,
    "scheduling": _SCHEDULING,
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag left out leaves its field unset: the model's or the server's default holds."""
    for title, flags in _GROUPS.items():
        group = parser.add_argument_group(title)
        for name, flag in flags.items():
            option = flag.flag or f"--{name.replace('_', '-')}"
            if flag.kind is None:
                group.add_argument(option, dest=name, action="store_true", default=None, help=flag.help)
            else:
                action = "append" if flag.repeats else "store"
                group.add_argument(
                    option, dest=name, action=action, type=flag.kind, metavar=flag.metavar, help=flag.help
                )
    group = parser.add_argument_group("conversation and time")
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
    chosen = {name: given[name] for flags in _GROUPS.values() for name in flags}
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
