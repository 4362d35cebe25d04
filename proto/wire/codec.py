"""Codecs: typed, bounded decoding of bytes that somebody else made, and the encoding beside it.

This is the one door through which such bytes become values: msgpack frames on sockets, JSON lines on the control
channel, whole files. The libraries behind it raise what they like (msgspec its own errors, but UnicodeDecodeError for
text that is no UTF-8 and RecursionError for what is nested too deeply; tomllib a plain ValueError for an endless
number); nothing but `WireError` comes out. A link counts such a frame and drops it; who reads a file names the file.

Every border has one codec for the union of messages that may cross it. `tests/house` finds decoding elsewhere.

Ranges of the numbers and texts on the private wire are said in the types here: a decoder refuses a message with any
other. They are what every reader can hold, in its int32 columns and in the public contract's fields, not what makes
sense; a reader checks that itself. Fields that a refusal must be able to name the message for have none of them:
`Submit`.
"""

import tomllib
from collections.abc import Callable
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Longest frame on any socket of ours: a plan that admits 2,048 prompts of 4k tokens is 34 MB."""

MAX_TOML_BYTES = 64 * 1024
MAX_TOML_LINE_BYTES = 8 * 1024
"""Longest TOML file, and line of it: the library's time and memory for a key grow with the square of its dots, to
15 seconds and 4 GB for 64 KiB of them."""

Handle = Annotated[int, Meta(ge=0, lt=2**31)]
Count = Annotated[int, Meta(ge=0, lt=2**31)]
PeerNumber = Annotated[int, Meta(ge=0, lt=1024)]
"""Of a frontend, or a rank."""
Incarnation = Annotated[int, Meta(ge=0, lt=2**31)]
Total = Annotated[int, Meta(ge=0, lt=2**53)]
"""A counter, microseconds, or bytes; the sum over ranks is one too."""
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
"""Finite, and a number."""
ShortText = Annotated[str, Meta(max_length=1024)]
"""A name or a version."""
ShortTexts = Annotated[dict[ShortText, ShortText], Meta(max_length=256)]
ShortCounts = Annotated[dict[ShortText, Total], Meta(max_length=256)]
HandleColumn = Annotated[bytes, Meta(max_length=4 * 65_536)]
"""int32 column of handles that stand there once each."""

Message = TypeVar("Message")
Value = TypeVar("Value")


class WireError(ValueError):
    """Bytes that are not a message of their border, or not the file that they should be."""


class Codec(Generic[Message]):
    """Encodes and decodes the messages of one border."""

    def __init__(self, message_type: object, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(message_type)
        self._max_frame_bytes = max_frame_bytes

    def encode(self, message: Message) -> bytes:
        """Encode one message."""
        return self._encoder.encode(message)

    def decode(self, frame: bytes) -> Message:
        """Decode one frame. Raises WireError."""
        if len(frame) > self._max_frame_bytes:
            raise WireError(f"a frame of {len(frame)} bytes is over the limit of {self._max_frame_bytes}")
        try:
            return self._decoder.decode(frame)
        except Exception as error:  # as the module says
            raise WireError(f"a frame of {len(frame)} bytes is not a message: {_reason(error)}") from error


class JsonCodec(Generic[Message]):
    """The same for text channels: one JSON object per line."""

    def __init__(self, message_type: object, max_frame_bytes: int = 16 * 1024 * 1024) -> None:
        self._encoder = msgspec.json.Encoder()
        self._decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(message_type)
        self._max_frame_bytes = max_frame_bytes

    def encode_line(self, message: Message) -> bytes:
        """Encode one message and end it with a newline."""
        return self._encoder.encode(message) + b"\n"

    def decode(self, line: bytes) -> Message:
        """Decode one line. Raises WireError."""
        if len(line) > self._max_frame_bytes:
            raise WireError(f"a line of {len(line)} bytes is over the limit of {self._max_frame_bytes}")
        try:
            return self._decoder.decode(line)
        except Exception as error:  # as the module says
            raise WireError(f"a line of {len(line)} bytes is not a message: {_reason(error)}") from error


def decode_json(content: bytes | str, kind: type[Value]) -> Value:
    """A whole JSON text as `kind`. Raises WireError, whose message says where, but not in which file."""
    return _decoded(lambda: msgspec.json.decode(content, type=kind))


def decode_toml(content: bytes) -> dict[str, Any]:
    """A whole TOML file. Raises WireError, as above."""
    if len(content) > MAX_TOML_BYTES:
        raise WireError(f"it has {len(content)} bytes; the limit is {MAX_TOML_BYTES}")
    if max(map(len, content.splitlines()), default=0) > MAX_TOML_LINE_BYTES:
        raise WireError(f"it has a line of over {MAX_TOML_LINE_BYTES} bytes")
    return _decoded(lambda: tomllib.loads(content.decode()))


def decode_text(content: bytes) -> str:
    """Bytes as UTF-8. Raises WireError, as above."""
    return _decoded(content.decode)


def _decoded(decode: Callable[[], Value]) -> Value:
    try:
        return decode()
    except Exception as error:  # as the module says
        raise WireError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """Why bytes did not decode, for a person: some libraries name what they met, not what is wrong."""
    match error:
        case UnicodeDecodeError():
            return f"it holds text that is not UTF-8 (byte 0x{error.object[error.start]:02x})"
        case RecursionError():
            return "it is nested too deeply"
        case MemoryError():
            return "it does not fit the memory"
        case _:
            return str(error) or type(error).__name__
