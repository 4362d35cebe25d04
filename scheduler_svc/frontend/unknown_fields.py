"""Finding fields that a client set and this build does not know.

protobuf keeps them silently; a server that ignored them would answer a question that was not asked. The test is cheap
because it runs in C: copy, discard the unknown fields at every depth, compare sizes (11 µs for 50 chat messages, 21 µs
for 1,000 token ids; walking the message in Python costs more than the rest of validation). Only a request that fails
it is walked, to name the field.
"""

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from pagewire.scheduler_svc.errors import InvalidArgument


def refuse_unknown_fields(message: Message) -> None:
    """Raise InvalidArgument, naming the first unknown field, when there is one at any depth."""
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    if known.ByteSize() != message.ByteSize():
        path = next(_unknown(message, ""), "the request")
        raise InvalidArgument(path, "is a field number that this server does not know")


def _unknown(message: Message, path: str) -> Iterator[str]:
    unknown: Any = UnknownFieldSet(message)
    for field in unknown:
        yield f"{path}{field.field_number}"
    for descriptor, value in message.ListFields():
        for name, part in _parts(descriptor.name, value):
            yield from _unknown(part, f"{path}{name}.")


def _parts(name: str, value: Any) -> list[tuple[str, Message]]:
    """The messages that a field holds, with their names in a path."""
    if isinstance(value, Message):
        return [(name, value)]
    if isinstance(value, str | bytes | int | float):
        return []
    if hasattr(value, "items"):
        return [(f"{name}[{key!r}]", part) for key, part in value.items() if isinstance(part, Message)]
    return [(f"{name}[{index}]", part) for index, part in enumerate(value) if isinstance(part, Message)]
