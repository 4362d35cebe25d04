"""Log lines: how every process of a server writes its log on stderr, as text or as a JSON object a line.

A record may bring `fields`, values by name, in its `extra`: in JSON they stand beside the message, in text behind it as
`name=value`. Whatever a caller chose is escaped, so that one record is one line and cannot look like two (a traceback,
in text, is several). It knows neither who logs nor what about.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]

_PLAIN = re.compile(r"[A-Za-z0-9._:/@+-]+")
_MAX_VALUE_CHARACTERS = 1024

RequestOf = Callable[[], str]
"""The id of the request that the running code is about; empty where it is about none."""


def _no_request() -> str:
    return ""


def set_up_logging(
    process: str, level: str, log_format: LogFormat, request_of: RequestOf = _no_request, text: str | None = None
) -> None:
    """Log on stderr, if there is one, from this level on. `process` says which of the server's processes this is;
    `text` is another beginning for lines of text than time, process and level."""
    handler: logging.Handler = logging.NullHandler() if sys.stderr is None else logging.StreamHandler()
    formatter: logging.Formatter = JsonLines(process, request_of)
    if log_format == "text":
        shown = process.replace("%", "%%")
        formatter = TextLines(text or f"%(asctime)s {shown} %(levelname)s %(message)s", request_of)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler])


class TextLines(logging.Formatter):
    """Lines for people."""

    def __init__(self, beginning: str, request_of: RequestOf = _no_request) -> None:
        """`beginning` is a %-format of `logging`, the message included."""
        super().__init__(beginning)
        self._request_of = request_of

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, without a traceback."""
        said = [f"{name}={_value(value)}" for name, value in _fields(record, self._request_of).items()]
        return " ".join([super().formatMessage(record), *said])


class JsonLines(logging.Formatter):
    """Lines for programs: `time` (UTC), `level`, `process`, `pid`, `logger`, `message`, the record's own fields, and
    `error`, a traceback, where there is one."""

    def __init__(self, process: str, request_of: RequestOf = _no_request) -> None:
        super().__init__()
        self._process = process
        self._request_of = request_of

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": os.getpid(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _fields(record, self._request_of)
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        # In ASCII: a terminal obeys more control characters than JSON escapes, and a name may hold what is no UTF-8.
        return json.dumps(line, separators=(",", ":"))


def _fields(record: logging.LogRecord, request_of: RequestOf) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    if "request_id" not in fields and (request_id := request_of()):
        return {"request_id": request_id, **fields}
    return fields


def _value(value: object) -> str:
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else json.dumps(value[:_MAX_VALUE_CHARACTERS])
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ",".join(map(_value, value))
    return str(value)
