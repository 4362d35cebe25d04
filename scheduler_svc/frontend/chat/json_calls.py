"""Calls that are JSON: {"name": …, "arguments": {…}}, and arguments alone.

Names and arguments are handed on as they come, so a call is known to be none only once it goes wrong. It knows neither
markers nor what calls stand between.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection

from pagewire.scheduler_svc.frontend.chat.parts import CallArguments, CallBegun, CallComplete, MalformedCallError, Part
from pagewire.scheduler_svc.frontend.chat.source import LAYOUT, Source, Steps
from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.limits import MAX_CHAT_PARTS, MAX_JSON_BYTES, MAX_JSON_DEPTH, quote
from pagewire.scheduler_svc.frontend.text.json_text import JsonReader

_ARGUMENTS_KEYS = ("arguments", "parameters")
_OTHER_KEYS = ("id", "type")
"""Which some models write as their templates do; the service names calls itself."""
_OUTSIDE_TEXTS = frozenset(",:+-.0123456789Eaeflnrstu" + LAYOUT)
"""Beside brackets: commas, colons, numbers, true, false and null."""
ENDED = "the answer ended inside the call"


class OpenCall:
    """One call while it is read: tells what comes of it, once its name is known."""

    def __init__(self, index: int, names: Collection[str], emit: Callable[[Part], None]) -> None:
        """`names` are those of the tools that may be called."""
        self.index = index
        self._names = names
        self._emit = emit
        self.is_begun = False
        """Whether anything was told of it."""
        self._arguments: list[str] = []
        self._num_told = 0

    def name(self, name: str) -> None:
        """Raises MalformedCallError for a name that no tool has."""
        if name not in self._names:
            raise MalformedCallError(f"it names the tool {quote(name)}, which is not among the request's")
        self._emit(CallBegun(self.index, name))
        self.is_begun = True
        self._tell()

    def arguments(self, text: str) -> None:
        """More of them."""
        if text:
            self._arguments.append(text)
            self._tell()

    def _tell(self) -> None:
        if self.is_begun and (text := "".join(self._arguments[self._num_told :])):
            self._emit(CallArguments(self.index, text))
            self._num_told = len(self._arguments)

    def check_arguments(self) -> None:
        """All of them have come. Raises MalformedCallError for what this service would not take back in a message."""
        text = "".join(self._arguments)
        _check(len(text.encode()), MAX_JSON_BYTES, "bytes")
        try:
            JsonReader("arguments", MAX_CHAT_PARTS - 1).object(text, "arguments")
        except InvalidArgument as error:
            raise MalformedCallError(f"its {error.field} {error.problem}") from error

    def complete(self) -> None:
        """The call is whole."""
        if not self._arguments:
            self.arguments("{}")
        self._emit(CallComplete(self.index))


def read_object(source: Source, call: OpenCall) -> Steps[None]:
    """A call as one object. Raises MalformedCallError; what it should not have met is not read."""
    if not (yield from _next(source, "{")):
        raise MalformedCallError("it is no JSON object")
    seen: set[str] = set()
    while True:
        character = yield from _next(source, '"' if seen else '"}')
        if character == "}":
            break
        if not character:
            raise MalformedCallError("a key in double quotes is missing in its JSON object")
        key = yield from _string(source)
        kind = "arguments" if key in _ARGUMENTS_KEYS else key
        if kind in seen:
            raise MalformedCallError(f"it has its {quote(kind)} twice")
        seen.add(kind)
        if not (yield from _next(source, ":")):
            raise MalformedCallError(f"a colon is missing behind its key {quote(key)}")
        yield from _member(source, call, kind)
        character = yield from _next(source, ",}")
        if character == "}":
            break
        if not character:
            raise MalformedCallError(f"neither comma nor brace stands behind its {quote(key)}")
    if not call.is_begun:
        raise MalformedCallError("it has no name")


def _member(source: Source, call: OpenCall, kind: str) -> Steps[None]:
    yield from source.skip_space()
    if kind == "arguments":
        yield from read_arguments(source, call)
    elif kind == "name" or kind in _OTHER_KEYS:
        if not (yield from _next(source, '"')):
            raise MalformedCallError(f"its {kind} is no text")
        text = yield from _string(source)
        if kind == "name":
            call.name(text)
    else:
        raise MalformedCallError(f"it has the key {quote(kind)}")


def read_arguments(source: Source, call: OpenCall) -> Steps[None]:
    """One JSON object, told as it comes. Raises MalformedCallError: at once for what no JSON has outside its texts, and
    for more than a message may have."""
    if (first := (yield from source.peek())) != "{":
        raise MalformedCallError("its arguments are no JSON object" if first else ENDED)
    depth, num_commas, size, in_string, is_escaped = 0, 0, 0, False, False
    while True:
        if not (rest := source.rest):
            if source.is_ended:
                raise MalformedCallError(ENDED)
            yield
            continue
        for position, character in enumerate(rest):
            if in_string:
                if is_escaped:
                    is_escaped = False
                elif character == "\\":
                    is_escaped = True
                elif character == '"':
                    in_string = False
            elif character == '"':
                in_string = True
            elif character in "{[":
                depth += 1
                _check(depth, MAX_JSON_DEPTH, "levels")
            elif character in "}]":
                depth -= 1
                if depth == 0:
                    call.arguments(source.advance(position + 1))
                    call.check_arguments()
                    return
            elif character not in _OUTSIDE_TEXTS:
                call.arguments(source.advance(position))
                raise MalformedCallError(f"its arguments have {quote(character)} where JSON has nothing such")
            elif character == ",":
                num_commas += 1
                _check(num_commas, MAX_CHAT_PARTS, "values")
        size += len(rest)
        call.arguments(source.advance(len(rest)))
        _check(size, MAX_JSON_BYTES, "bytes")


def _check(count: int, most: int, what: str) -> None:
    """What arguments come to is read in one go, on the loop that every stream shares."""
    if count > most:
        raise MalformedCallError(f"its arguments have more than {most} {what}")


def _next(source: Source, wanted: str) -> Steps[str]:
    """The next character that is no space, read where it is one of these; else nothing, and it is not read. Raises
    MalformedCallError at the end."""
    yield from source.skip_space()
    character = yield from source.peek()
    if not character:
        raise MalformedCallError(ENDED)
    return source.advance(1) if character in wanted else ""


def _string(source: Source) -> Steps[str]:
    """Behind its opening quote. Raises MalformedCallError."""
    characters = ['"']
    while characters[-1] != '"' or len(characters) == 1:
        character = yield from source.character()
        if character == "\\":
            character += yield from source.character()
        if not character:
            raise MalformedCallError(ENDED)
        characters.append(character)
    try:
        text: str = json.loads("".join(characters))
    except ValueError as error:
        raise MalformedCallError(f"a text in it is not JSON: {error}") from error
    return text
