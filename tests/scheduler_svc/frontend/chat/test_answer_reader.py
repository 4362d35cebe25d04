"""Answers are told apart into content, reasoning and calls, the same however their text was cut.

What is no call is text with a reason."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagewire.scheduler_svc.frontend.chat.form import AnswerForm
from pagewire.scheduler_svc.frontend.chat.parts import (
    CallArguments,
    CallBegun,
    CallComplete,
    Content,
    Malformed,
    Part,
    Reasoning,
)
from pagewire.scheduler_svc.frontend.chat.reader import AnswerReader
from pagewire.scheduler_svc.frontend.text.chat_format import (
    CALL_BEGINS,
    ChatFormat,
    ReasoningFormat,
    ReasoningStart,
    ToolCallFormat,
)

TYPES = {
    "city": ["string"],
    "days": ["integer"],
    "tags": ["array"],
    "is_metric": ["boolean"],
    "note": ["string", "null"],
}
TOOLS = {"get_weather": TYPES, "search": {}}


def form(
    calls: ToolCallFormat = ToolCallFormat.QWEN3,
    reasoning: ReasoningFormat = ReasoningFormat.THINK,
    start: ReasoningStart = ReasoningStart.MAY_BEGIN,
) -> AnswerForm:
    return AnswerForm(format=ChatFormat(reasoning, calls), reasoning=start, tools=TOOLS)


FORMS = {
    **{calls.value: form(calls) for calls in ToolCallFormat},
    "opened": form(start=ReasoningStart.OPEN),
    "closed": form(start=ReasoningStart.NONE),
    "mistral_thinks": form(ToolCallFormat.MISTRAL_ARGS, ReasoningFormat.MISTRAL),
    "plain": AnswerForm(),
    "held": dataclasses.replace(form(), is_content_held=True),
    "required": dataclasses.replace(form(), is_call_required=True),
    "continued": dataclasses.replace(form(start=ReasoningStart.OPEN), is_continued=True),
}


@dataclass
class Answer:
    """What parts say together."""

    content: str = ""
    reasoning: str = ""
    calls: dict[int, list[str]] = field(default_factory=dict)
    complete: list[int] = field(default_factory=list)
    malformed: list[Malformed] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    """Which kinds, one after the other."""

    def arguments(self) -> list[tuple[str, object]]:
        """Of the calls that are whole, with their names."""
        return [(self.calls[i][0], json.loads("".join(self.calls[i][1:]))) for i in self.complete]


def told(parts: Iterable[Part]) -> Answer:
    answer = Answer()
    for part in parts:
        match part:
            case Content():
                answer.content += part.text
            case Reasoning():
                answer.reasoning += part.text
            case CallBegun():
                assert part.index not in answer.calls
                answer.calls[part.index] = [part.name]
            case CallArguments():
                answer.calls[part.index].append(part.text)
            case CallComplete():
                assert part.index not in answer.complete
                answer.complete.append(part.index)
            case Malformed():
                answer.malformed.append(part)
                if part.index is not None:
                    assert part.index not in answer.complete
                    del answer.calls[part.index]
        kind = type(part).__name__ + str(getattr(part, "index", ""))
        if not answer.order or answer.order[-1] != kind:
            answer.order.append(kind)
    for index, call in answer.calls.items():
        answer.calls[index] = [call[0], "".join(call[1:])]
    return answer


def read(pieces: Iterable[str], as_form: AnswerForm) -> Answer:
    reader = AnswerReader(as_form)
    parts = [part for piece in pieces for part in reader.take(piece)]
    return told([*parts, *reader.end()])


WEATHER = '{"name": "get_weather", "arguments": {"city": "Köln", "days": 3}}'
MARKERS = [
    "<think>",
    "</think>",
    "[THINK]",
    "[/THINK]",
    "<tool_call>",
    "</tool_call>",
    "<function=",
    "</function>",
    "<parameter=city>",
    "<parameter=days>",
    "<parameter=note>",
    "</parameter>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
]
PIECES = [
    *MARKERS,
    *[
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        ";",
        '"',
        "\\",
        "<",
        "</",
        ">",
        "{}",
        "3",
        "null",
        "abc",
        "🙂",
        "tool_call",
        "get_weather",
        "search",
        '"name"',
        '"arguments"',
    ],
    "\n",
    " ",
    "<function=get_weather>",
    '{"name": "search", "arguments": {"q": "<tool_call>"}}',
    '{"name": "get_weather", "parameters": {"a": [1, {"b": "}"}]}}',
    WEATHER,
    f"<tool_call>{WEATHER}</tool_call>",
    f"<tool_call>\n{WEATHER}\n",
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n</function>\n</tool_call>",
    f"[TOOL_CALLS][{WEATHER},",
    "[TOOL_CALLS]search[ARGS]{}",
    f"<|python_tag|>{WEATHER};",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=14).map("".join)
FORM_NAMES = st.sampled_from(sorted(FORMS))


@settings(max_examples=1000)
@given(
    name=FORM_NAMES,
    text=TEXTS,
    cuts=st.lists(st.integers(0, 300), max_size=40),
)
def test_any_cut_of_any_text_tells_the_same(name: str, text: str, cuts: list[int]) -> None:
    whole = read([text], FORMS[name])
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    assert read([text[a:b] for a, b in pairwise(places)], FORMS[name]) == whole
    assert read(list(text), FORMS[name]) == whole
    for call in whole.complete:
        assert whole.calls[call][0] in TOOLS
        assert isinstance(json.loads(whole.calls[call][1]), dict)
    assert set(whole.calls) == set(whole.complete)
    for malformed in whole.malformed:
        assert malformed.text in text
        assert malformed.reason


@given(name=FORM_NAMES, text=TEXTS)
def test_no_text_is_lost(name: str, text: str) -> None:
    """But for layout, the markers of reasoning, and calls."""
    reader = AnswerReader(FORMS[name])
    parts = [*reader.take(text), *reader.end()]
    if any(isinstance(part, CallComplete) for part in parts):
        return
    told_text = "".join(part.text for part in parts if isinstance(part, Content | Reasoning | Malformed))
    possible = {text}
    for begin, end in (("<think>", "</think>"), ("[THINK]", "[/THINK]")):
        possible |= {
            text.replace(begin, "", 1),
            text.replace(end, "", 1),
            text.replace(begin, "", 1).replace(end, "", 1),
        }
    assert without_layout(told_text) in {without_layout(each) for each in possible}


def without_layout(text: str) -> str:
    return text.translate({ord(each): None for each in " \t\r\n"})


@given(
    content=st.text(st.characters(exclude_characters="<[{", exclude_categories=["Cs"])),
    reasoning=st.text(st.characters(exclude_characters="<[", exclude_categories=["Cs"])),
    city=st.text(st.characters(exclude_categories=["Cs"])),
    days=st.integers(),
)
def test_what_was_written_is_what_is_read(content: str, reasoning: str, city: str, days: int) -> None:
    arguments = {"city": city, "days": days}
    call = json.dumps({"name": "get_weather", "arguments": arguments}, ensure_ascii=False)
    answer = read([f"<think>\n{reasoning}\n</think>\n\n{content}\n<tool_call>\n{call}\n</tool_call>"], FORMS["qwen3"])
    assert answer.reasoning == reasoning.strip(" \t\r\n")
    assert answer.content == content.strip(" \t\r\n")
    assert answer.arguments() == [("get_weather", arguments)]


@given(
    city=st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"])),
    days=st.integers(),
    tags=st.lists(st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]))),
    is_metric=st.booleans(),
)
def test_parameters_are_read_as_their_schema_has_them(city: str, days: int, tags: list[str], is_metric: bool) -> None:
    values = {"city": city, "days": days, "tags": tags, "is_metric": is_metric, "note": None}
    written = "".join(
        f"<parameter={name}>\n{value if isinstance(value, str) else json.dumps(value)}\n</parameter>\n"
        for name, value in values.items()
    )
    text = f"<tool_call>\n<function=get_weather>\n{written}</function>\n</tool_call>"
    assert read(list(text), FORMS["qwen3_coder"]).arguments() == [("get_weather", values)]


CITY = {"city": "Köln", "days": 3}
CALL = ("get_weather", CITY)
AS_JSON = json.dumps(CITY, ensure_ascii=False)


@pytest.mark.parametrize(
    ("name", "text", "content", "calls"),
    [
        ("qwen3", f"Let me look.\n<tool_call>\n{WEATHER}\n</tool_call>", "Let me look.", [CALL]),
        ("qwen3", f"<tool_call>{WEATHER}</tool_call>\n<tool_call>{WEATHER}</tool_call>", "", [CALL, CALL]),
        ("qwen3", f"<tool_call>\n{WEATHER}", "", [CALL]),
        ("qwen3", f'<tool_call>{{"arguments": {AS_JSON}, "name": "get_weather"}}</tool_call> Done.', "Done.", [CALL]),
        ("qwen3", '<tool_call>{"name": "search"}</tool_call>', "", [("search", {})]),
        ("qwen3", "Write <tool_cal or <think>.\n", "Write <tool_cal or <think>.\n", []),
        (
            "qwen3_coder",
            "Sure.\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
            "</function>\n</tool_call>",
            "Sure.",
            [CALL],
        ),
        (
            "qwen3_coder",
            "<tool_call><function=search></function><function=search><parameter=q>a\n\nb</parameter></function></tool_call>",
            "",
            [("search", {}), ("search", {"q": "a\n\nb"})],
        ),
        ("llama3", f'{{"name": "get_weather", "parameters": {AS_JSON}}}', "", [CALL]),
        ("llama3", f'<|python_tag|>{{"name": "get_weather", "parameters": {AS_JSON}}}; {WEATHER}', "", [CALL, CALL]),
        ("llama3", f'{{"type": "function", "name": "get_weather", "parameters": {AS_JSON}}}', "", [CALL]),
        ("llama3", '{"answer": 42}', '{"answer": 42}', []),
        ("llama3", ' {"name": "nobody"} said', ' {"name": "nobody"} said', []),
        ("mistral", f"[TOOL_CALLS] [{WEATHER}, {WEATHER}]", "", [CALL, CALL]),
        ("mistral", f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {AS_JSON}, "id": "abcdefghi"}}]', "", [CALL]),
        (
            "mistral_args",
            f"Hm.[TOOL_CALLS]get_weather[ARGS]{AS_JSON}[TOOL_CALLS]search{{}}",
            "Hm.",
            [CALL, ("search", {})],
        ),
        ("mistral_args", f"[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{AS_JSON}", "", [CALL]),
        ("none", f"<tool_call>{WEATHER}</tool_call>", f"<tool_call>{WEATHER}</tool_call>", []),
    ],
)
def test_calls_of_every_format(name: str, text: str, content: str, calls: list[tuple[str, object]]) -> None:
    answer = read([text], FORMS[name])
    assert (answer.content, answer.arguments(), answer.malformed) == (content, calls, [])


@pytest.mark.parametrize(
    ("name", "text", "reasoning", "content"),
    [
        ("qwen3", "<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("qwen3", "\n<think>\n\n</think>\n\nYes.", "", "Yes."),
        ("qwen3", "<think>\nHm. And", "Hm. And", ""),
        ("qwen3", "\n\nYes <think>no</think>", "", "\n\nYes <think>no</think>"),
        ("opened", "Hm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("opened", "Hm. <tool_call>{}</tool_call>", "Hm. <tool_call>{}</tool_call>", ""),
        ("closed", "<think>Yes</think>", "", "<think>Yes</think>"),
        ("mistral_thinks", "[THINK]Hm.[/THINK]Yes.", "Hm.", "Yes."),
        ("plain", "<think>Yes</think>  \n", "", "<think>Yes</think>  \n"),
    ],
)
def test_reasoning(name: str, text: str, reasoning: str, content: str) -> None:
    answer = read(list(text), FORMS[name])
    assert (answer.reasoning, answer.content) == (reasoning, content)


@pytest.mark.parametrize(
    ("calls", "text"),
    [
        (ToolCallFormat.QWEN3, '{"a": "use <tool_call> now"}'),
        (ToolCallFormat.QWEN3, f'\n {{"a": "<tool_call>{WEATHER}</tool_call>"}} \n'),
        (ToolCallFormat.QWEN3_CODER, '["<function=search></function>"]'),
        (ToolCallFormat.MISTRAL_ARGS, "use [TOOL_CALLS]search[ARGS]{} now"),
        (ToolCallFormat.LLAMA3, f'[{{"name": "search"}}, {WEATHER}]'),
    ],
)
def test_content_of_a_language_is_told_to_the_letter(calls: ToolCallFormat, text: str) -> None:
    """Text in it that looks like a call is none, and no blank is layout."""
    for before, reasoning in (("", ""), ("<think>Hm</think>", "Hm")):
        held = dataclasses.replace(form(calls), is_content_held=True)
        answer = read(list(before + text), held)
        assert (answer.content, answer.reasoning, answer.calls, answer.malformed) == (text, reasoning, {}, [])


def test_a_call_in_place_of_content_of_a_language() -> None:
    held = dataclasses.replace(form(), is_content_held=True)
    answer = read(list(f"<think>Hm</think>\n\n<tool_call>{WEATHER}</tool_call>"), held)
    assert (answer.content, answer.arguments()) == ("", [CALL])


def test_an_answer_that_ends_inside_a_call_s_last_marker_has_the_call() -> None:
    for end in ("", "<", "</tool", "</tool_call"):
        assert read([f"<tool_call>{WEATHER}\n{end}"], FORMS["qwen3"]).arguments() == [CALL], end
    coder = "<tool_call><function=search></function>\n</tool_c"
    assert read([coder], FORMS["qwen3_coder"]).arguments() == [("search", {})]


def test_where_only_calls_may_stand_the_beginning_of_one_is_no_content() -> None:
    required = dataclasses.replace(form(), is_call_required=True)
    for text, calls in ((f"<tool_call>{WEATHER}</tool_call>\n<tool_", [CALL]), ("<tool", [])):
        answer = read(list(text), required)
        assert (answer.content, answer.arguments(), len(answer.malformed)) == ("", calls, 1)
        assert answer.malformed[0].reason == "the answer ended inside the call"
    bare = dataclasses.replace(form(ToolCallFormat.LLAMA3), is_call_required=True)
    answer = read(['{"na'], bare)
    assert (answer.content, [each.text for each in answer.malformed]) == ("", ['{"na'])


def test_what_a_continued_message_begins_with_is_no_layout() -> None:
    continued = dataclasses.replace(form(start=ReasoningStart.OPEN), is_continued=True)
    assert read(list(" to the point\n</think>\n\nYes"), continued).reasoning == " to the point"


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (f"Let me see.\n\n<tool_call>{WEATHER}</tool_call>\nThat is all.", "Let me see.\n\nThat is all."),
        (f"See.<tool_call>{WEATHER}</tool_call> So.", "See. So."),
        (f"See.<tool_call>{WEATHER}</tool_call>So.", "See.So."),
        (f"<tool_call>{WEATHER}</tool_call>\n\nSo.", "So."),
        (f"See. \n<tool_call>{WEATHER}</tool_call>\n<tool_call>{WEATHER}</tool_call>\n", "See."),
        ("x = 1\n<tool_call>\nhello\n</tool_call>\ny = 2", "x = 1\ny = 2"),
    ],
)
def test_content_around_calls_keeps_a_blank_between(text: str, content: str) -> None:
    assert read(list(text), FORMS["qwen3"]).content == content


def test_a_text_is_handed_on_as_it_comes() -> None:
    """What cannot be a marker's beginning is not held back."""
    reader = AnswerReader(FORMS["qwen3"])
    assert reader.take("<think>Hm") == [Reasoning("Hm")]
    assert reader.take(" so </thi") == [Reasoning(" so")]
    assert reader.take("nk>\n\nYes ") == [Content("Yes")]
    assert reader.take("<") == []
    assert reader.take("b") == [Content(" <b")]
    assert reader.take('<tool_call>{"name": "search", "arguments": {"q') == [
        CallBegun(0, "search"),
        CallArguments(0, '{"q'),
    ]
    assert reader.take('": 1') == [CallArguments(0, '": 1')]
    assert reader.take("}}") == [CallArguments(0, "}")]
    assert reader.take("</tool_call>") == [CallComplete(0)]
    assert reader.end() == []


BREAKS = {
    "qwen3": (f"<tool_call>\n{WEATHER}\n</tool_call>", "</tool_call>"),
    "qwen3_coder": (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "</function>\n</tool_call>",
        "</tool_call>",
    ),
    "llama3": ('<|python_tag|>{"name": "get_weather", "parameters": {"city": "Köln", "days": 3}}', None),
    "mistral": ('[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Köln", "days": 3}}]', None),
    "mistral_args": ('[TOOL_CALLS]get_weather[ARGS]{"city": "Köln", "days": 3}', None),
}


def test_two_hundred_malformed_calls() -> None:
    """Every call of every format, cut at every place and with a character lost, changed or doubled, is either a call or
    text with a reason, and what stands behind it is read."""
    num_malformed = 0
    for name, (call, end) in BREAKS.items():
        broken = [call[:size] for size in range(len(CALL_BEGINS[ToolCallFormat(name)][0]), len(call))]
        for place in range(len(CALL_BEGINS[ToolCallFormat(name)][0]), len(call) - len(end or "")):
            broken += [call[:place] + other + call[place + 1 :] for other in ("", "x", call[place] * 2, '"', "}")]
        for text in broken:
            answer = read(["Look: ", text], FORMS[name])
            assert answer.content.startswith("Look:"), text
            assert len(answer.complete) + len(answer.malformed) >= 1 or name == "mistral", text
            for malformed in answer.malformed:
                num_malformed += 1
                assert malformed.text
                assert malformed.text in text
                assert malformed.reason
            if end is not None and text.endswith(end):
                after = read([text, "\nAfter."], FORMS[name])
                assert after.content.endswith("After.") or any("After." in each.text for each in after.malformed), text
    assert num_malformed >= 200


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("qwen3", "<tool_call>get_weather(3)</tool_call>", "it is no JSON object"),
        ("qwen3", '<tool_call>{"name": "fly", "arguments": {}}</tool_call>', "it names the tool 'fly', which is not"),
        ("qwen3", '<tool_call>{"name": "search", "arguments": "x"}</tool_call>', "its arguments are no JSON object"),
        ("qwen3", '<tool_call>{"name": "search", "arguments": {"a": 1 2}}</tool_call>', "its arguments is not JSON"),
        ("qwen3", '<tool_call>{"name": "search", "arguments": {"a": 1, "a": 2}}</tool_call>', "stands twice"),
        ("qwen3", '<tool_call>{"name": "search", "why": 1}</tool_call>', "it has the key 'why'"),
        ("qwen3", '<tool_call>{"arguments": {}}</tool_call>', "it has no name"),
        ("qwen3", '<tool_call>{"name": "search", "arguments": {"q": "x', "the answer ended inside the call"),
        ("qwen3", '<tool_call>{"name": "search", "arguments": {}}}</tool_call>', "something else than </tool_call>"),
        (
            "qwen3_coder",
            "<tool_call><function=get_weather><parameter=days>soon</parameter></function></tool_call>",
            "its parameter 'days' is 'soon', which is no integer",
        ),
        (
            "qwen3_coder",
            "<tool_call><function=search>what?</function></tool_call>",
            "a parameter or </function> is missing",
        ),
        ("llama3", '<|python_tag|>brave_search.call(query="x")', "it is no JSON object"),
        ("mistral_args", "[TOOL_CALLS]search", "its name does not end"),
    ],
)
def test_reasons_say_what_is_wrong(name: str, text: str, reason: str) -> None:
    answer = read([text], FORMS[name])
    assert [each.text for each in answer.malformed] == [text]
    assert reason in answer.malformed[0].reason
    assert answer.calls == {}


@pytest.mark.parametrize(
    ("name", "text", "malformed", "content", "calls"),
    [
        ("qwen3", '<tool_call>{"name": "search", "arguments": {"a": 1}</tool_call>\nSorry.', 1, "Sorry.", []),
        ("qwen3", '<tool_call>{"name": "search", "arguments": {"a": 1</tool_call>\nSorry.', 1, "Sorry.", []),
        ("qwen3", "<tool_call>\n</tool_call>\nSorry.", 1, "Sorry.", []),
        ("qwen3", '<tool_call>{"name"</tool_call>\nSorry.', 1, "Sorry.", []),
        ("qwen3", f'<tool_call>{{"name": "search", "arguments": {{}}<tool_call>{WEATHER}</tool_call>', 1, "", [CALL]),
        ("qwen3", f'<tool_call>{{"name": "search", "arguments": <tool_call>{WEATHER}</tool_call>', 1, "", [CALL]),
        ("llama3", f"{{<|python_tag|>{WEATHER}", 0, "{", [CALL]),
        ("mistral_args", f"[TOOL_CALLS]search[CALL_ID]abc[TOOL_CALLS]get_weather[ARGS]{AS_JSON}", 1, "", [CALL]),
    ],
)
def test_what_goes_wrong_takes_nothing_behind_it(
    name: str, text: str, malformed: int, content: str, calls: list[tuple[str, object]]
) -> None:
    answer = read(list(text), FORMS[name])
    assert (len(answer.malformed), answer.content, answer.arguments()) == (malformed, content, calls)


def test_a_bare_call_in_place_of_content_of_a_language() -> None:
    held = dataclasses.replace(form(ToolCallFormat.LLAMA3), is_content_held=True)
    answer = read(list(f"<think>Hm</think>\n\n{WEATHER}"), held)
    assert (answer.content, answer.arguments()) == ("", [CALL])
    for text in (' {"a": "<|python_tag|>"} ', '{"name": "nobody", "parameters": {}}\n'):
        assert read(list(text), held).content == text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ('{"a": ' + "[" * 101, "more than 100 levels"),
        ('{"a": [' + "0," * 16_385, "more than 16384 values"),
        ('{"a": "' + "x" * (1 << 20), "more than 1048576 bytes"),
        ('{"a": "' + "ü" * (1 << 19) + '"}}', "more than 1048576 bytes"),
    ],
)
def test_arguments_that_no_message_may_have_are_no_call(arguments: str, reason: str) -> None:
    answer = read([f'<tool_call>{{"name": "search", "arguments": {arguments}</tool_call>Then.'], FORMS["qwen3"])
    assert [reason in each.reason for each in answer.malformed] == [True]
    assert answer.calls == {}


def test_a_malformed_call_hides_none_of_those_behind_it() -> None:
    text = f'<tool_call>{{"name": search}}</tool_call>\n<tool_call>{{"name", <tool_call>{WEATHER}</tool_call>'
    answer = read([text], FORMS["qwen3"])
    assert [each.text for each in answer.malformed] == [
        '<tool_call>{"name": search}</tool_call>',
        '<tool_call>{"name", ',
    ]
    assert answer.arguments() == [CALL]
