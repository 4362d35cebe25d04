"""Message fields that no check of the contract sees: how many there are, and those that this build does not know.

How many: counted on the wire, before protobuf makes objects of them. A field may take two bytes, and protobuf and
whoever walks the message spend a microsecond or more on each: 4 MB of them held the event loop, and so every stream,
for seconds, before any limit of the contract was looked at. The count knows the wire format
(protobuf.dev/programming-guides/encoding) and descriptors, and judges nothing else: bytes that are no message are left
to the parser.

Unknown ones: protobuf keeps them silently; a server that ignored them would answer a question that was not asked. The
test is cheap because it runs in C: copy, discard the unknown fields at every depth, compare sizes (11 µs for 50 chat
messages, 21 µs for 1,000 token ids; walking the message in Python costs more than the rest of validation). Only a
request that fails it is walked, to name the field, and no further than its first thousand messages: the walk holds the
event loop.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.limits import MAX_FIELDS, quote

_LEAST_FIELD_BYTES = 2
_MAX_WALKED_MESSAGES = 1000


def refuse_many_fields(frame: bytes, kind: type[Message]) -> None:
    """Raise InvalidArgument for a message of more than MAX_FIELDS fields at all depths, known or not. A list of numbers
    that is packed counts as one. At most MAX_FIELDS steps, and none for a frame that is too short for them."""
    if len(frame) <= _LEAST_FIELD_BYTES * MAX_FIELDS:
        return
    try:
        if _has_more(frame, kind.DESCRIPTOR, MAX_FIELDS):
            raise InvalidArgument("the request", f"has more than {MAX_FIELDS} fields, all messages in it together")
    except IndexError:  # it is cut off: the parser says so
        return


def _has_more(frame: bytes, descriptor: Any, limit: int) -> bool:
    """`descriptor` is the message's. Raises IndexError where the frame ends inside a field."""
    num_fields = 0
    to_read: list[tuple[int, int, Any]] = [(0, len(frame), descriptor)]
    while to_read:
        at, end, kind = to_read.pop()
        known = kind.fields_by_number
        while at < end:
            num_fields += 1
            if num_fields > limit:
                return True
            tag, at = _varint(frame, at)
            match tag & 7:
                case 0:
                    _, at = _varint(frame, at)
                case 1:
                    at += 8
                case 2:
                    size, at = _varint(frame, at)
                    field = known.get(tag >> 3)
                    if field is not None and field.message_type is not None:
                        to_read.append((at, min(at + size, end), field.message_type))
                    at += size
                case 5:
                    at += 4
                case 3 | 4:  # a group's ends, each a field here
                    pass
                case _:
                    return False
    return False


def _varint(frame: bytes, at: int) -> tuple[int, int]:
    """The number, and where it ends."""
    byte = frame[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    for index in range(at + 1, at + 10):
        byte = frame[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    raise IndexError


def refuse_unknown_fields(message: Message) -> None:
    """Raise InvalidArgument, naming the first unknown field, when there is one at any depth."""
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    if known.ByteSize() != message.ByteSize():
        path = _first_unknown(message)
        if path is None:
            raise InvalidArgument("the request", "has a field number that this server does not know")
        raise InvalidArgument(path, "is a field number that this server does not know")


def _first_unknown(message: Message) -> str | None:
    for path, part in itertools.islice(_walk(message, ""), _MAX_WALKED_MESSAGES):
        unknown: Any = UnknownFieldSet(part)
        for field in unknown:
            return f"{path}{field.field_number}"
    return None


def _walk(message: Message, path: str) -> Iterator[tuple[str, Message]]:
    """The message and every message below it, each with the path that its fields have."""
    yield path, message
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for name, part in _parts(descriptor.name, value):
                yield from _walk(part, f"{path}{name}.")


def _parts(name: str, value: Any) -> Iterator[tuple[str, Message]]:
    """The messages that a field of messages holds, with their names in a path."""
    if isinstance(value, Message):
        yield name, value
    elif hasattr(value, "items"):
        for key, part in value.items():
            if isinstance(part, Message):
                yield f"{name}[{quote(str(key))}]", part
    else:
        for index, part in enumerate(value):
            yield f"{name}[{index}]", part
