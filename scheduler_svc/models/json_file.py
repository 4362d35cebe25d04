"""Reads JSON files that came with a model: bounded in size, and one kind of error whatever is wrong with them.

It knows no file's meaning. A byte-order mark, which some editors put in front, is passed over; other encodings than
UTF-8 are refused.
"""

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pagewire.scheduler_svc.startup_errors import ModelError

MAX_BYTES = 16 * 1024 * 1024
"""Configurations have some KiB; the index of 90,000 tensors has 9 MB."""

_BOM = b"\xef\xbb\xbf"

_T = TypeVar("_T")


def read_bounded(file: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """A small file's content. Raises ModelError where it is larger, OSError where it cannot be read."""
    with file.open("rb") as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ModelError(f"{file} is larger than the {max_bytes} bytes that are read of such a file")
    return content


def decode_json(content: bytes, kind: type[_T], origin: str) -> _T:
    """Decode into the type. Raises ModelError naming `origin`."""
    try:
        return msgspec.json.decode(content.removeprefix(_BOM), type=kind)
    except UnicodeDecodeError as error:
        raise ModelError(f"{origin} is not UTF-8: {error}") from error
    except RecursionError as error:
        raise ModelError(f"{origin}: it is nested too deep") from error
    except ValueError as error:  # msgspec's own, and Python's for integers of many digits
        raise ModelError(f"{origin}: {error}") from error


def decode_object(content: bytes, origin: str) -> dict[str, Any]:
    """Every key of a JSON object and its value. Raises ModelError naming `origin`."""
    return decode_json(content, dict[str, Any], origin)
