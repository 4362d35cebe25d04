"""The contract's messages from Python values, with errors that name the field."""

from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from pagewire.client.errors import InvalidRequest, brief

M = TypeVar("M", bound=Message)

_RANGES = {
    FieldDescriptor.TYPE_UINT32: "0 to 4294967295",
    FieldDescriptor.TYPE_UINT64: "0 to 18446744073709551615",
    FieldDescriptor.TYPE_INT32: "-2147483648 to 2147483647",
}
"""Of numbers that the contract has."""


def build_message(cls: type[M], path: str, **fields: object) -> M:
    """Build a message; a field of None stays unset. An error names the field, which protobuf's own does not."""
    fields = {name: value for name, value in fields.items() if value is not None}
    try:
        return cls(**fields)
    except (TypeError, ValueError, OverflowError):
        for name, value in fields.items():
            try:
                cls(**{name: value})
            except (TypeError, ValueError, OverflowError) as error:
                field = f"{path}.{name}" if path else name
                problem = _range(cls, name, value) or str(error)
                raise InvalidRequest(f"{field} is {brief(value)}: {problem}", field=field) from error
        raise


def _range(cls: type[Message], name: str, value: object) -> str:
    """What a number that its field cannot hold may be; empty where that is not what is wrong."""
    numbers = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(number, int) for number in numbers):
        return ""
    limits = _RANGES.get(cls.DESCRIPTOR.fields_by_name[name].type)
    return f"its range is {limits}" if limits else ""
