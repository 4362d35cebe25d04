"""Errors of this client, as OpenAI's endpoints say them: an HTTP status, and an object that names the key

Fields of the contract have the names that a body has for them, so that an error speaks of what was sent.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from pagewire.client.errors import (
    BatchError,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    PagewireError,
    PermissionDenied,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

_FIELD = re.compile(r"\b(?:generation|format)\.[A-Za-z_](?:[\w.\[\]]*[\w\]])?")
_CANDIDATES = "generation.output.num_candidates"
_NAMES = (
    ("generation.sampling.", ""),
    ("generation.stopping.stop_strings", "stop"),
    ("generation.stopping.include_stop", "include_stop_str_in_output"),
    ("generation.stopping.", ""),
    ("generation.output.", ""),
    ("generation.prompt.chat.template_arguments", "chat_template_kwargs"),
    ("generation.prompt.chat.format", "chat_format"),
    ("generation.prompt.chat.", ""),
    ("generation.prompt.chat", "messages"),
    ("generation.prompt.token_ids.ids", "prompt"),
    ("generation.prompt.token_ids", "prompt"),
    ("generation.prompt.text", "prompt"),
    ("generation.prompt", "prompt"),
    ("generation.constraint.json_schema", "response_format.json_schema.schema"),
    ("generation.constraint.json_object", "response_format"),
    ("generation.constraint", "response_format"),
    ("generation.", ""),
    ("format.", "chat_format."),
)
"""The beginnings of fields' paths, and what stands for them in a body; the first that fits."""
_IN_FUNCTION = re.compile(r"(tool_calls\[\d+\]|tools\[\d+\])\.(name|description|parameters|arguments)\b")

_STATUSES: dict[type[PagewireError], tuple[int, str, str | None]] = {
    InvalidRequest: (400, "invalid_request_error", None),
    TooLarge: (413, "invalid_request_error", None),
    Unauthenticated: (401, "authentication_error", "invalid_api_key"),
    PermissionDenied: (403, "permission_error", None),
    NotFound: (404, "not_found_error", "model_not_found"),
    Overloaded: (429, "rate_limit_error", "rate_limit_exceeded"),
    Cancelled: (499, "cancelled", None),
    Unavailable: (503, "service_unavailable", None),
    DeadlineExceeded: (504, "timeout", None),
}
_OTHERS = (500, "server_error", None)


class Said(NamedTuple):
    """An error, ready to send."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


def said(error: PagewireError, *, is_chat: bool = False) -> Said:
    """As HTTP has it. `is_chat`: whether the keys are those of a chat's body, as errors name them."""
    if isinstance(error, BatchError):
        error = next(outcome for outcome in error.outcomes if isinstance(outcome, PagewireError))
    if isinstance(error, InvalidRequest):
        error = by_keys(error, is_chat=is_chat)
    status, kind, code = _STATUSES.get(type(error), _OTHERS)
    param = error.field if isinstance(error, InvalidRequest) and error.field else None
    retry_s = error.retry_after_s if isinstance(error, Overloaded | Unavailable) else None
    headers = {} if retry_s is None else {"retry-after": str(math.ceil(retry_s))}
    return Said(status, {"error": {"message": str(error), "type": kind, "param": param, "code": code}}, headers)


def key_of(field: str, *, is_chat: bool) -> str:
    """The key for a field's path, which may go on behind it; the path itself where the body has no such key."""
    if field.startswith(_CANDIDATES):
        return ("top_logprobs" if is_chat else "logprobs") + field[len(_CANDIDATES) :]
    for beginning, key in _NAMES:
        ends = beginning.endswith(".") or field[len(beginning) : len(beginning) + 1] in ("", ".", "[")
        if field.startswith(beginning) and ends:
            return _IN_FUNCTION.sub(r"\1.function.\2", key + field[len(beginning) :])
    return field


def by_keys(error: InvalidRequest, *, is_chat: bool) -> InvalidRequest:
    """The same error, in whose message and field every field of the contract is a key of the body."""
    message = _FIELD.sub(lambda found: key_of(found[0], is_chat=is_chat), str(error))
    return type(error)(message, field=key_of(error.field, is_chat=is_chat))
