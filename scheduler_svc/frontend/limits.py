"""Limits of the public contract that do not depend on the model or the settings, and the checks of single fields.

`proto/pagewire/v1/generation.proto` promises each of them in the comment of its field; the rooms `request` and `text`
hold them. A check's message gives path, value and limit, and quotes no more than fits.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.duration_pb2 import Duration

from pagewire.scheduler_svc.frontend.errors import InvalidArgument, NotFound
from pagewire.wire.model import ModelSpec

MIN_PRIORITY: Final = -100
MAX_PRIORITY: Final = 100
MAX_CACHE_SALT_BYTES: Final = 256
MAX_QUEUE_TIME_S: Final = 24 * 3600.0
MAX_REQUEST_ID_CHARACTERS: Final = 128
MAX_CHAT_MESSAGES: Final = 4096
MAX_CHAT_PARTS: Final = 16384
MAX_JSON_BYTES: Final = 1024 * 1024
MAX_JSON_DEPTH: Final = 100
MAX_JSON_INTEGER_DIGITS: Final = 4300
"""As many as Python reads and prints; the work on a longer one would grow with its square."""
MAX_REASONING_TOKENS: Final = 131072
MAX_DETOKENIZED_IDS: Final = 131072
MAX_STOP_STRINGS: Final = 16
MAX_STOP_STRING_BYTES: Final = 256
MAX_STOP_TOKEN_IDS: Final = 64
MAX_BAD_WORDS: Final = 128
MAX_CONSTRAINT_BYTES: Final = 131072
MAX_CONSTRAINT_NESTING: Final = 500
MAX_CHOICES: Final = 4096
MAX_STRUCTURAL_TAGS: Final = 256
MIN_WATCH_INTERVAL_S: Final = 0.1
MIN_BLOCKS_INTERVAL_S: Final = 0.5
MAX_WATCH_INTERVAL_S: Final = 3600.0
MAX_DRAIN_GRACE_S: Final = 3600.0
MAX_FIELDS: Final = 131072
"""Of one request's message, at all depths: more than MAX_CHAT_MESSAGES and MAX_CHAT_PARTS can need."""
MAX_CALLS: Final = 16384
"""Of one listener, at once."""


@dataclass(frozen=True, kw_only=True)
class ModelLimits:
    """The limits that do depend on them."""

    vocab_size: int
    """Number of logits: a token id is less than this."""
    max_model_len: int
    """Most tokens of prompt and output together."""
    max_kv_tokens: int
    """What the KV memory can hold of one sequence; 0 while the engine has not said."""
    max_n: int
    no_logits: str | None = None
    """Why a sequence's logits cannot be changed or reported on this device; none where they can."""

    @property
    def max_tokens(self) -> int:
        """Most tokens that a sequence can come to."""
        return min(self.max_model_len, self.max_kv_tokens) if self.max_kv_tokens else self.max_model_len


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
        text = f"{value:g}"
        if math.isfinite(value) and holds(float(text)):  # 1.0000001 is not "1"
            text = f"{value:.9g}"
        raise InvalidArgument(path, f"is {text}; its range is {limit}")
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
