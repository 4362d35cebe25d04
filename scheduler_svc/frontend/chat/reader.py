"""The reader of one answer: text as it comes → parts, as the chat's format has them.

    reasoning    at the beginning, between its markers, or from the prompt on where that began it
    content      up to a call's marker, and behind a call
    calls        handed on as they come; one that goes wrong is told as text with the reason, and reading goes on

Invariants: the parts do not depend on how the text was cut; every character is in a part, but for markers, layout
beside them, and what a well-formed call's own writing takes; nothing that a model writes raises.
"""

from __future__ import annotations

from collections.abc import Callable

from pagewire.scheduler_svc.frontend.chat.form import AnswerForm
from pagewire.scheduler_svc.frontend.chat.json_calls import ENDED, OpenCall, read_arguments, read_object
from pagewire.scheduler_svc.frontend.chat.parameter_calls import read_function
from pagewire.scheduler_svc.frontend.chat.parts import Content, Malformed, MalformedCallError, Part, Reasoning
from pagewire.scheduler_svc.frontend.chat.source import LAYOUT, Source, Steps, find_first, open_length
from pagewire.scheduler_svc.frontend.text.chat_format import (
    ARGUMENTS_MARKER,
    CALL_BEGINS,
    CALL_END,
    CALL_ID_MARKER,
    REASONING_MARKERS,
    ReasoningStart,
    ToolCallFormat,
)

_BARE_CALL = "{"


class AnswerReader:
    """Reads one answer. Feed it the text in order, then end it."""

    def __init__(self, form: AnswerForm) -> None:
        self._form = form
        self._source = Source()
        self._parts: list[Part] = []
        self._num_calls = 0
        self._separator: str | None = None
        """Layout around calls behind content, which belongs to content that follows; none before any was said."""
        self._begins = CALL_BEGINS[form.format.tool_calls]
        self._steps = self._answer()

    def take(self, text: str) -> list[Part]:
        """What it now turns out to say."""
        self._source.feed(text)
        return self._step()

    def end(self) -> list[Part]:
        """No more text comes: what was held back."""
        self._source.is_ended = True
        return self._step()

    def _step(self) -> list[Part]:
        next(self._steps, None)
        parts, self._parts = self._parts, []
        return parts

    def _answer(self) -> Steps[None]:
        source = self._source
        if (yield from self._begins_reasoning()):
            markers = REASONING_MARKERS[self._form.format.reasoning]
            if not self._form.is_continued:
                yield from source.skip_space()
            if (yield from self._text(Reasoning, (markers.end,))) is not None:
                source.advance(len(markers.end))
                if not self._form.is_content_held:
                    yield from source.skip_space()
        is_llama3 = self._form.format.tool_calls is ToolCallFormat.LLAMA3
        begin = yield from source.behind_layout(*self._begins, *((_BARE_CALL,) if is_llama3 else ()))
        is_call = begin is not None
        if begin is not None and begin[1] == _BARE_CALL:
            is_call = yield from self._bare_calls()
        if self._form.is_content_held and not is_call:
            yield from self._text(Content, ())
        while (marker := (yield from self._text(Content, self._begins))) is not None:
            yield from self._calls(marker)
            behind = yield from source.skip_space()
            if self._separator == "":
                self._separator = behind

    def _begins_reasoning(self) -> Steps[bool]:
        if self._form.reasoning is not ReasoningStart.MAY_BEGIN:
            return self._form.reasoning is ReasoningStart.OPEN
        found = yield from self._source.behind_layout(REASONING_MARKERS[self._form.format.reasoning].begin)
        if found is None:
            return False
        self._source.advance(found[0] + len(found[1]))
        return True

    def _text(self, kind: type[Content | Reasoning], ends: tuple[str, ...]) -> Steps[str | None]:
        """Tell text up to the first of these, which is not read, or to the end of the answer, and which it was. Layout
        before it is dropped."""
        source = self._source
        layout: list[str] = []  # of which it is not known yet
        while True:
            rest = source.rest
            if (found := find_first(rest, ends)) is not None:
                text = source.advance(found[0])
                if said := text.rstrip(LAYOUT):
                    self._tell(kind, "".join(layout) + said)
                    layout.clear()
                if self._separator is not None and not self._separator:
                    self._separator = "".join(layout) + text[len(said) :]
                return found[1]
            if source.is_ended or not ends:
                text = "".join(layout) + source.advance(len(rest))
                if source.is_ended and kind is Content and self._form.is_call_required and text.strip(LAYOUT):
                    self._parts.append(Malformed(text, ENDED, None))
                else:
                    self._tell(kind, text)
                if source.is_ended:
                    return None
            else:
                text = source.advance(len(rest) - open_length(rest, ends))
                if said := text.rstrip(LAYOUT):
                    self._tell(kind, "".join(layout) + said)
                    layout.clear()
                if said != text:
                    layout.append(text[len(said) :])
            yield

    def _tell(self, kind: type[Content | Reasoning], text: str) -> None:
        if text and kind is Content:
            text, self._separator = (self._separator or "") + text, ""
        if text:
            self._parts.append(kind(text))

    # Calls.

    def _calls(self, marker: str) -> Steps[None]:
        """Those that a marker begins."""
        match self._form.format.tool_calls:
            case ToolCallFormat.QWEN3 | ToolCallFormat.QWEN3_CODER:
                yield from self._call(lambda call: self._tagged(marker, call), CALL_END)
            case ToolCallFormat.LLAMA3:
                yield from self._objects(marker)
            case _:
                self._source.record()
                self._source.advance(len(marker))
                yield from self._source.skip_space()
                is_array = (yield from self._source.peek()) == "["
                marker += self._source.recorded()[len(marker) :]
                if is_array:
                    yield from self._array(marker)
                else:
                    yield from self._call(self._named, None, read_before=marker)

    def _call(
        self, read: Callable[[OpenCall], Steps[None]], end: str | None, *, read_before: str = "", is_bare: bool = False
    ) -> Steps[bool]:
        """One call; whether it was one. One that is none is told with what follows it, up to its end or to where
        another may begin. `is_bare`: nothing but its own writing shows that it is one."""
        source = self._source
        call = OpenCall(self._num_calls, self._form.tools, lambda part: self._parts.append(part))
        source.record()
        try:
            yield from read(call)
        except MalformedCallError as error:
            if is_bare and not call.is_begun and not self._form.is_call_required:
                self._tell(Content, source.recorded())
                return False
            yield from self._skip(end)
            index = call.index if call.is_begun else None
            self._num_calls += call.is_begun
            self._parts.append(Malformed(read_before + source.recorded(), str(error), index))
            return False
        source.recorded()
        self._num_calls += 1
        call.complete()
        return True

    def _skip(self, end: str | None) -> Steps[None]:
        found = (yield from self._source.until(*self._begins, *([end] if end else [])))[1]
        if found is not None and found == end:
            self._source.advance(len(end))

    def _tagged(self, marker: str, call: OpenCall) -> Steps[None]:
        """<tool_call>…</tool_call>; a function's own end is enough where its outer marker was left out, and the end of
        the answer where its outer end was."""
        source = self._source
        is_enclosed = marker == self._begins[0]
        if is_enclosed:
            source.advance(len(marker))
            yield from source.skip_space()
        is_function = self._form.format.tool_calls is ToolCallFormat.QWEN3_CODER
        if is_function:
            yield from read_function(source, call, self._form.tools)
        else:
            yield from read_object(source, call)
        if (yield from self._is_closed()) or not is_enclosed:
            return
        # Several functions may stand in one enclosure.
        if not is_function or (yield from source.begins_with(*self._begins[1:])) is None:
            raise MalformedCallError(f"something else than {CALL_END} follows it")

    def _is_closed(self) -> Steps[bool]:
        source = self._source
        yield from source.skip_space()
        if (yield from source.begins_with(CALL_END)) is not None:
            source.advance(len(CALL_END))
            return True
        # Where the answer ended inside it, the call is whole all the same.
        if source.is_ended and CALL_END.startswith(source.rest):
            source.advance(len(source.rest))
            return True
        return False

    def _named(self, call: OpenCall) -> Steps[None]:
        """name[ARGS]{…}, also with an id between, and without the marker."""
        source = self._source
        name, end = yield from source.until(ARGUMENTS_MARKER, CALL_ID_MARKER, "{", *self._begins)
        if end is None or end in self._begins:
            raise MalformedCallError("its name does not end")
        call.name(name.strip())
        if end == CALL_ID_MARKER:
            end = (yield from source.until(ARGUMENTS_MARKER, "{", *self._begins))[1]
            if end is None or end in self._begins:
                raise MalformedCallError("it has an id, and no arguments")
        if end == ARGUMENTS_MARKER:
            source.advance(len(end))
        yield from source.skip_space()
        yield from read_arguments(source, call)

    def _array(self, marker: str) -> Steps[None]:
        """[{…}, {…}]"""
        source = self._source
        before, wanted = marker, "["
        while True:
            separated = wanted

            def read(call: OpenCall, separated: str = separated) -> Steps[None]:
                yield from source.skip_space()
                if (yield from source.peek()) != separated:
                    raise MalformedCallError("neither comma nor bracket stands behind a call")
                yield from self._object(call, 1)

            if not (yield from self._call(read, None, read_before=before)):
                return
            yield from source.skip_space()
            if (yield from source.peek()) in ("]", ""):
                source.advance(len((yield from source.peek())))
                return
            before, wanted = "", ","

    def _object(self, call: OpenCall, before: int) -> Steps[None]:
        """{…}, behind so many characters."""
        self._source.advance(before)
        yield from self._source.skip_space()
        yield from read_object(self._source, call)

    def _objects(self, marker: str) -> Steps[None]:
        """{…}; {…} behind a marker."""
        if (yield from self._call(lambda call: self._object(call, len(marker)), None)):
            yield from self._further()

    def _bare_calls(self) -> Steps[bool]:
        """{…}; {…} where an answer begins with it; whether it is a call."""
        is_call = yield from self._call(lambda call: self._object(call, 0), None, is_bare=True)
        if is_call:
            yield from self._further()
        return is_call

    def _further(self) -> Steps[None]:
        """; {…} behind a call."""
        while True:
            yield from self._source.skip_space()
            is_next = (yield from self._source.peek()) == ";"
            if not is_next or not (yield from self._call(lambda call: self._object(call, 1), None)):
                return
