"""Finding fields that a client set and this build does not know.

protobuf keeps them silently; a server that ignored them would answer a question that was not asked. The test is cheap
because it runs in C: copy, discard the unknown fields at every depth, compare sizes (11 µs for 50 chat messages, 21 µs
for 1,000 token ids; walking the message in Python costs more than the rest of validation). Only a request that fails
it is walked, to name the field, and no further than its first thousand messages: the walk holds the event loop.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.request.fields import quote

_MAX_WALKED_MESSAGES = 1000


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
