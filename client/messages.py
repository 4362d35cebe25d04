"""The contract's messages from Python values, with errors that name the field."""

from typing import TypeVar

from google.protobuf.message import Message

from pagewire.client.errors import InvalidRequest, brief

M = TypeVar("M", bound=Message)


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
                raise InvalidRequest(f"{field} is {brief(value)}: {error}", field=field) from error
        raise
