"""Template variables: what a chat template is given, plain variables, with the JSON of the request read into them.

Templates differ in two things, and no model's files say which is meant:

- A call's arguments. Most templates take an object, as transformers' users pass one; some join a text, as DeepSeek's do
  (`'CALL ' + name + arguments`). `CallArguments` is the object and, where it is joined or printed, the text; a template
  that fails with it is given the text alone.
- No content. A template that asks whether content is none is given none; others a message without the key, as
  transformers' `apply_chat_template` does, since many would print "None"; those that fail with either, empty content.

So `forms` yields what to try, likeliest first. It knows neither Jinja nor processes. Invariant: each form holds what
the request holds.
"""

from collections.abc import Iterator
from enum import Enum, auto
from typing import Any

import msgspec

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.limits import quote
from pagewire.scheduler_svc.frontend.text.json_text import JsonReader
from pagewire.scheduler_svc.frontend.text.parameter_types import parameter_types


class JsonText(msgspec.Struct, frozen=True):
    """An object as JSON, and where its value belongs."""

    path: str
    """Of the field in the request, for errors."""
    text: str
    steps: list[str | int]
    """From the variables to the value. Empty: its names are variables themselves."""


class Variables(msgspec.Struct, frozen=True):
    """What one rendering is made of, as it goes to the process that renders."""

    values: dict[str, Any]
    """Plain data. What a JSON text gives stands as none until it is read."""
    path: str = ""
    """The chat's, for errors."""
    max_values: int = 0
    """Most values in all JSON texts together."""
    objects: list[JsonText] = []
    call_arguments: list[JsonText] = []
    template_arguments: JsonText | None = None
    reserved: list[str] = []
    """Names that template_arguments may not set."""
    wants_parameter_types: bool = False
    """Whether what the tools' parameters may be is asked for."""


class CallArguments(dict[str, Any]):
    """A call's arguments: an object that is its own text where it is joined to text or printed."""

    # Names without a leading underscore would hide keys from templates: `arguments.text`.
    __slots__ = ("__text",)

    def __init__(self, values: dict[str, Any], text: str) -> None:
        super().__init__(values)
        self.__text = text

    def __getitem__(self, key: Any) -> Any:
        return self.__text[key] if isinstance(key, slice) else super().__getitem__(key)

    def __str__(self) -> str:
        return self.__text

    def __add__(self, other: object) -> str:
        return self.__text + other if isinstance(other, str) else NotImplemented

    def __radd__(self, other: object) -> str:
        return other + self.__text if isinstance(other, str) else NotImplemented


class _NoContent(Enum):
    """What stands for content that is unset."""

    NONE = auto()
    ABSENT = auto()
    EMPTY = auto()


class TemplateForms:
    """The forms of one chat's variables."""

    def __init__(self, variables: Variables) -> None:
        """Read the JSON. Raises InvalidArgument with the path of what is wrong in it."""
        reader = JsonReader(variables.path, variables.max_values)
        self._values = {"documents": None} | _arguments(variables, reader) | variables.values
        for each in variables.objects:
            self._place(each, reader.object(each.text, each.path))
        self._calls = [
            (each, CallArguments(reader.object(each.text, each.path), each.text)) for each in variables.call_arguments
        ]

    def forms(self, asks_for_none: bool) -> Iterator[dict[str, Any]]:
        """Each is valid until the next is asked for. `asks_for_none`: the template tests content for none."""
        messages = self._values.get("messages")
        contents = [_NoContent.NONE]
        if isinstance(messages, list) and any(_has_no_content(message) for message in messages):
            contents = list(_NoContent) if asks_for_none else [_NoContent.ABSENT, _NoContent.EMPTY]
        for as_text in (False, True) if self._calls else (False,):
            for place, arguments in self._calls:
                self._place(place, place.text if as_text else arguments)
            for content in contents:
                if content is _NoContent.NONE or not isinstance(messages, list):
                    yield self._values
                else:
                    yield self._values | {"messages": [_without_none(message, content) for message in messages]}

    def parameter_types(self) -> dict[str, dict[str, list[str]]]:
        """Of the tools' parameters, by tool."""
        functions = [tool["function"] for tool in self._values.get("tools") or ()]
        return {function["name"]: parameter_types(function.get("parameters")) for function in functions}

    def _place(self, where: JsonText, value: object) -> None:
        holder: Any = self._values
        for step in where.steps[:-1]:
            holder = holder[step]
        holder[where.steps[-1]] = value


def _arguments(variables: Variables, reader: JsonReader) -> dict[str, Any]:
    if (given := variables.template_arguments) is None:
        return {}
    arguments = reader.object(given.text, given.path)
    for name in variables.reserved:
        if name in arguments:
            raise InvalidArgument(given.path, f"sets {quote(name)}, which the server sets itself")
    return arguments


def _has_no_content(message: Any) -> bool:
    return isinstance(message, dict) and message.get("content", "") is None


def _without_none(message: Any, content: _NoContent) -> Any:
    if not _has_no_content(message):
        return message
    if content is _NoContent.EMPTY:
        return message | {"content": ""}
    return {name: value for name, value in message.items() if name != "content"}
