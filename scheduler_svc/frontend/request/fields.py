"""Checks of single fields, for every service. Messages give path, value and limit, and quote no more than fits."""

import math
from collections.abc import Callable, Sequence

from google.protobuf.duration_pb2 import Duration

from pagewire.scheduler_svc.frontend.errors import InvalidArgument, NotFound
from pagewire.wire.model import ModelSpec


def check_model(name: str, spec: ModelSpec) -> None:
    """Raise NotFound unless `name` is empty or the served model's."""
    if name not in ("", spec.name):
        raise NotFound(f"model {quote(name)} is not served here; {spec.name} is")


def check_token_ids(ids: Sequence[int], path: str, vocab_size: int) -> None:
    """Raise InvalidArgument unless every id has a logit. A tokenizer may know more ids than that."""
    if ids and max(ids) >= vocab_size:
        index = next(i for i, token in enumerate(ids) if token >= vocab_size)
        raise InvalidArgument(
            f"{path}[{index}]", f"is {ids[index]}; token ids of this model are less than {vocab_size}"
        )


def within(path: str, value: float, holds: Callable[[float], bool], limit: str) -> float:
    """A finite number. Raises InvalidArgument unless `holds`; `limit` says what that means."""
    if not math.isfinite(value) or not holds(value):
        raise InvalidArgument(path, f"is {value:g}; its range is {limit}")
    return value


def duration_s(duration: Duration, path: str, holds: Callable[[float], bool], limit: str) -> float:
    """A duration in seconds. Raises InvalidArgument unless `holds`."""
    seconds = float(duration.seconds + duration.nanos / 1e9)
    if not holds(seconds):
        raise InvalidArgument(path, f"is {seconds:g} s; its range is {limit}")
    return seconds


def quote(text: str) -> str:
    """What a client sent, fit for a message."""
    return ascii(text) if len(text) <= 80 else f"{text[:80]!a}… ({len(text)} characters)"
