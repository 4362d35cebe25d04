"""Answer grammars: a chat's answer, reasoning and then content or calls of tools, as llguidance reads it.

What content may be is another grammar's to say; where it may be anything, this says what text that is: any, in which
the chat's own markers may stand.

    start: begin reasoning body | bare      where reasoning may begin
    start: reasoning body                   where the prompt has begun it
"""

import json
from collections.abc import Callable
from typing import Any

from pagewire.scheduler_svc.frontend.text.call_grammar import call_marker, write_calls
from pagewire.scheduler_svc.frontend.text.chat_format import (
    ARGUMENTS_MARKER,
    CALL_BEGINS,
    CALL_END,
    CALL_ID_MARKER,
    ToolCallFormat,
)
from pagewire.scheduler_svc.frontend.text.grammar_writer import GrammarWriter, escaped
from pagewire.scheduler_svc.frontend.text.languages import Answer, AnswerReasoning, Calls, GrammarTextError

_CONTENT = "content"
_LAYOUT = r"[ \t\r\n]"
_ANYTHING = r"(.|\n)*"


def answer_text(answer: Answer, writer: GrammarWriter, content: Callable[[str], list[dict[str, Any]]]) -> str:
    """The whole, as the library's JSON. `content` makes the content's grammars, the first of a name. Raises
    GrammarTextError."""
    if answer.calls is not None and answer.calls.tools:
        write_calls(writer, answer.calls)
    reasoning = answer.reasoning
    writer.rule("body", _body(answer, writer, "after", "TEXT"))
    if reasoning is None:
        writer.rule("start", "body")
    else:
        writer.rule("layout", f"/{_LAYOUT}{{1,4}}/")
        is_free = answer.content is None and not (answer.calls is not None and answer.calls.is_required)
        rest = "body" if is_free else "after"
        if not is_free:
            # Of content that is held, every character counts.
            kinds = _kinds(answer)
            writer.rule("after", " | ".join(f"layout? {kind}" if kind == "calls" else kind for kind in kinds))
        _write_reasoning(reasoning, writer)
        if reasoning.is_open:
            writer.rule("start", f"reasoning {rest}")
        else:
            bare = "TEXT"
            if is_free:
                bare = "BARE"  # any text but what is read as reasoning
                writer.rule(bare, f"/{_ANYTHING}/ & ~/{_LAYOUT}*{escaped(reasoning.begin)}{_ANYTHING}/")
            writer.rule("bare", _body(answer, writer, "bare", bare))
            writer.rule("start", f"{writer.text(reasoning.begin)} reasoning {rest} | bare")
    first, *others = writer.grammars()
    contents = [] if answer.content is None else content(_CONTENT)
    return json.dumps({"grammars": [first, *contents, *others]}, ensure_ascii=False)


def _kinds(answer: Answer) -> list[str]:
    """What may stand behind reasoning, where it is not free text."""
    calls = ["calls"] if answer.calls is not None else []
    if answer.calls is not None and answer.calls.is_required:
        return calls
    return [] if answer.content is None else [f"@{_CONTENT}", *calls]


def _write_reasoning(reasoning: AnswerReasoning, writer: GrammarWriter) -> None:
    """Up to the first text that is read as its end, whether that is written as one token or not. Raises
    GrammarTextError where its tokens are to be counted and no token of its own ends it."""
    end, most = writer.text(reasoning.end), reasoning.max_tokens
    if not end.startswith("<["):
        if most is not None:
            raise GrammarTextError(
                f"has max_reasoning_tokens, and {reasoning.end}, which ends reasoning, is no token of this model"
            )
        # Lazy: it ends where its end is first complete.
        writer.rule("reasoning[lazy]", f"TEXT {end}")
        return
    writer.rule("REASON", f"/{_ANYTHING}/ & ~/{_ANYTHING}{escaped(reasoning.end)}{_ANYTHING}/")
    if most is not None and most > 0:
        writer.rule(f"limited[max_tokens={most}]", "REASON")
    writer.rule("reasoning", {None: f"REASON {end}", 0: end}.get(most, f"limited {end}"))


def _body(answer: Answer, writer: GrammarWriter, prefix: str, text: str) -> str:
    """What stands behind reasoning, or without any; `text` is the terminal of free text's first piece."""
    calls = answer.calls
    if kinds := _kinds(answer):
        return " | ".join(kinds)
    if calls is None or not calls.is_single:
        ids = [each for marker in _markers(calls) for each in writer.special.pieces(marker) if isinstance(each, int)]
        marker = " | ".join(f"<[{each}]>" for each in ids)
        return f"{text} (({marker}) TEXT)*" if ids else text
    return _up_to_one_call(writer, calls, prefix, text)


def _markers(calls: Calls | None) -> tuple[str, ...]:
    if calls is None:
        return ()
    return (*CALL_BEGINS[calls.format], CALL_END, ARGUMENTS_MARKER, CALL_ID_MARKER)


def _up_to_one_call(writer: GrammarWriter, calls: Calls, prefix: str, text: str) -> str:
    """Text without any call, or text and one call, with which the answer ends."""
    plain, head, marker = f"{prefix.upper()}_PLAIN", f"{prefix.upper()}_HEAD", call_marker(calls)
    begins = CALL_BEGINS[calls.format]
    without = f"{text} & {_without(begins)}"
    if calls.format is ToolCallFormat.LLAMA3:
        writer.rule(plain, f"{without} & ~/{_LAYOUT}*\\{{{_ANYTHING}/")
        return f"{plain} | calls"
    writer.rule(plain, without)
    if not isinstance(next(iter(writer.special.pieces(marker))), str):
        return f"{plain} calls?"
    others = tuple(begin for begin in begins if begin != marker)
    writer.rule(head, f"{text} & {_without(others)}" if others else text)
    writer.rule(f"{prefix}_head[lazy]", f"{head} {writer.text(marker)}")
    return f"{plain} | {prefix}_head calls_rest"


def _without(markers: tuple[str, ...]) -> str:
    """As a terminal: text that none of these stands in."""
    return f"~/{_ANYTHING}({'|'.join(map(escaped, markers))}){_ANYTHING}/"
