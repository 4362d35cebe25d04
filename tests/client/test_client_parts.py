"""Parts of a chat's answer: joined they are the answer, and a stream that is told again delivers none twice."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagewire.client import (
    ContentPart,
    MalformedCall,
    Message,
    Part,
    ProtocolError,
    ReasoningPart,
    ToolCall,
    ToolCallPart,
)
from pagewire.client.parts import PartsDiffer, PartsRecord

ANSWER: list[Part] = [
    ReasoningPart("Let me look."),
    ContentPart("Looking"),
    ToolCallPart(0, "a", "f", '{"q": "Köln"}', True),
    ToolCallPart(1, "b", "f", '{"q": ', False),
    MalformedCall("<tool_call>…", "it is no JSON object", 1),
    ContentPart("Found."),
    ToolCallPart(2, "c", "g", "", True),
]
MESSAGE = Message(
    "assistant",
    "LookingFound.",
    tool_calls=(ToolCall("a", "f", '{"q": "Köln"}'), ToolCall("c", "g", "")),
    reasoning_content="Let me look.",
)


def pieces(part: Part, cuts: list[int]) -> list[Part]:
    """The same part, in pieces as a service might send it."""
    match part:
        case ContentPart(text) | ReasoningPart(text):
            places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
            return [type(part)(text[a:b]) for a, b in pairwise(places)]
        case ToolCallPart():
            places = sorted({0, len(part.arguments), *(cut % (len(part.arguments) + 1) for cut in cuts)})
            texts = [part.arguments[a:b] for a, b in pairwise(places)]
            first = ToolCallPart(part.index, part.id, part.name, "", False)
            more = [ToolCallPart(part.index, None, None, text, False) for text in texts]
            return [first, *more, *([ToolCallPart(part.index, None, None, "", True)] if part.is_complete else [])]
        case _:
            return [part]


CUTS = st.lists(st.integers(0, 60), max_size=4)
ALL = st.tuples(*[CUTS for _ in ANSWER]).map(
    lambda cuts: [piece for part, at in zip(ANSWER, cuts, strict=True) for piece in pieces(part, at)]
)


def joined(parts: list[Part]) -> list[Part]:
    whole: list[Part] = []
    for part in parts:
        last = whole[-1] if whole else None
        if isinstance(part, ContentPart | ReasoningPart) and type(last) is type(part):
            whole[-1] = type(part)(last.text + part.text)  # type: ignore[union-attr]
        elif isinstance(part, ToolCallPart) and isinstance(last, ToolCallPart) and last.index == part.index:
            is_complete = last.is_complete or part.is_complete
            whole[-1] = ToolCallPart(last.index, last.id, last.name, last.arguments + part.arguments, is_complete)
        else:
            whole.append(part)
    return whole


@given(parts=ALL)
def test_joined_they_are_the_answer(parts: list[Part]) -> None:
    record = PartsRecord()
    for part in parts:
        assert record.accept([part]) == (part,)
    assert record.message() == MESSAGE
    assert record.malformed_calls == (ANSWER[4],)


@given(first=ALL, second=ALL, third=ALL, breaks=st.tuples(st.integers(0, 100), st.integers(0, 100)))
def test_what_is_told_again_is_delivered_once(
    first: list[Part], second: list[Part], third: list[Part], breaks: tuple[int, int]
) -> None:
    record = PartsRecord()
    delivered: list[Part] = []
    for parts, end in ((first, breaks[0] % (len(first) + 1)), (second, breaks[1] % (len(second) + 1)), (third, None)):
        for part in parts[:end]:
            delivered += record.accept([part])
        if end is not None:
            record.rewind()
    assert not record.is_behind
    assert joined(delivered) == ANSWER
    assert record.message() == MESSAGE


@pytest.mark.parametrize(
    "again",
    [
        [ContentPart("Let")],
        [ReasoningPart("Let us")],
        [*ANSWER[:2], ToolCallPart(0, "x", "f", "", False)],
        [*ANSWER[:2], ToolCallPart(0, "a", "f", '{"q": "Bonn"}', True)],
        [*ANSWER[:3], ContentPart("?")],
    ],
)
def test_what_is_told_otherwise_is_found(again: list[Part]) -> None:
    record = PartsRecord()
    record.accept(ANSWER)
    record.rewind()
    with pytest.raises(PartsDiffer):
        record.accept(again)


def test_an_end_before_all_was_told_again_is_found() -> None:
    record = PartsRecord()
    record.accept(ANSWER)
    record.rewind()
    record.accept(ANSWER[:3])
    assert record.is_behind


def test_an_answer_that_says_nothing_is_empty_content() -> None:
    assert PartsRecord().message() == Message("assistant", "")


def test_a_call_without_an_end_is_no_answer() -> None:
    record = PartsRecord()
    record.accept([ToolCallPart(0, "a", "f", "{", False)])
    with pytest.raises(ProtocolError, match="call 0 did not come to its end"):
        record.message()
