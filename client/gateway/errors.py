"""Errors of this client, as OpenAI's endpoints say them: an HTTP status, and an object that names the field."""

from __future__ import annotations

import math
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
from pagewire.client.gateway.keys import by_keys

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
