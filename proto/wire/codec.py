"""Typed, bounded encoding: msgpack for sockets, JSON lines for the control channel and configuration files.

Every border has one `Codec` for the union of messages that may cross it. A frame that is too long, malformed or of
another type raises `WireError`, which the link that read it counts and drops; nothing else can come out of `decode`.
"""

from typing import Generic, TypeVar

import msgspec

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Longest frame on any socket of ours: a plan that admits 2,048 prompts of 4k tokens is 34 MB."""

Message = TypeVar("Message")


class WireError(Exception):
    """A frame that is not a message of its border."""


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
        except (msgspec.DecodeError, RecursionError) as error:
            raise WireError(f"a frame of {len(frame)} bytes is not a message: {error}") from error


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
        except (msgspec.DecodeError, RecursionError) as error:
            raise WireError(f"a line of {len(line)} bytes is not a message: {error}") from error
