"""How many fields a message has on the wire, counted before protobuf makes objects of them.

A field may take two bytes, and protobuf and whoever walks the message spend a microsecond or more on each: 4 MB of them
held the event loop, and so every stream, for seconds, before any limit of the contract was looked at. It knows the wire
format (protobuf.dev/programming-guides/encoding) and descriptors, and judges nothing else: bytes that are no message
are left to the parser.
"""

from typing import Any

from google.protobuf.message import Message

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.request.limits import MAX_FIELDS

_LEAST_FIELD_BYTES = 2


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
