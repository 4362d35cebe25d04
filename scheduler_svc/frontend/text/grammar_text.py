"""Grammars' texts: a language as llguidance reads it, before anything is compiled.

It knows the library's forms (Lark, JSON schema and regular expressions as grammars of their own) and how special tokens
are written in them; it compiles nothing.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import llguidance
from llguidance.gbnf_to_lark import any_to_lark

from pagewire.scheduler_svc.frontend.text.languages import (
    Choice,
    Grammar,
    JsonObject,
    JsonSchema,
    Language,
    Part,
    Regex,
    StructuralTags,
    Tag,
)

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"
"""Between JSON's tokens. Without a limit, a model that has begun to indent may never stop."""
_JSON: "JsonCompileOptions" = {"whitespace_pattern": _WHITESPACE, "lenient": False, "coerce_one_of": False}
"""Over what a schema says of them: nothing in it is ignored, and oneOf is not anyOf."""
_ANY_OBJECT = '{"type": "object"}'
_BOOLEANS = {"true": "{}", "false": '{"enum": []}'}

SpecialTokens = Callable[[str], Iterator[str | int]]
"""Cuts a text at special tokens: its other pieces, and the ids of these."""


class GrammarTextError(Exception):
    """It is no text of its kind; the message says why."""


def grammar_text(language: Language, special_tokens: SpecialTokens) -> str:
    """In the library's form. Raises GrammarTextError."""
    match language:
        case StructuralTags():
            return _tags_text(language, special_tokens)
        case Choice():
            options = " | ".join(json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(language.texts))
            return f"start: {options}"
        case Grammar():
            return _lark(language.text)
        case _:
            return _whole_text(language)


def _whole_text(part: JsonSchema | JsonObject | Regex) -> str:
    """As the library writes it."""
    if isinstance(part, Regex):
        return llguidance.LLMatcher.grammar_from_regex(part.pattern)
    schema = _ANY_OBJECT if isinstance(part, JsonObject) else part.text
    if schema.strip() in _BOOLEANS:  # which cannot hold the library's options
        schema = _BOOLEANS[schema.strip()]
    try:
        return llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_JSON)
    except (ValueError, RecursionError) as error:
        raise GrammarTextError(f"is no JSON schema that can be read: {error}") from error


def _part(part: Part) -> dict[str, Any]:
    """A grammar that others may refer to."""
    if isinstance(part, Grammar):
        return {"lark_grammar": _lark(part.text)}
    grammar: dict[str, Any] = json.loads(_whole_text(part))["grammars"][0]
    return grammar


def _lark(text: str) -> str:
    if text.lstrip().startswith("{"):  # the library's own form, in which more may be said than the contract has
        raise GrammarTextError("is neither Lark nor EBNF: it begins with {")
    if "::=" not in text:
        return text
    try:
        lark: str = any_to_lark(text)
    except Exception as error:  # the library's translation raises whatever it meets
        raise GrammarTextError(f"is no EBNF that can be read: {error}") from error
    return lark


def _tags_text(language: StructuralTags, special_tokens: SpecialTokens) -> str:
    """Free text up to a trigger, then what one of its tags says, and again; last free text."""
    by_trigger: dict[str, list[int]] = {}
    for index, tag in enumerate(language.tags):
        by_trigger.setdefault(tag.trigger, []).append(index)
    parts = " | ".join(f"part_{part}" for part in range(len(by_trigger)))
    rules = [f"start: ({parts})* TEXT", r"TEXT: /(.|\n)*/"]
    for part, (trigger, indices) in enumerate(by_trigger.items()):
        options = " | ".join(f"tag_{index}" for index in indices)
        first, *others = special_tokens(trigger)
        if isinstance(first, int):
            rules.append(f"part_{part}: TEXT {_written([first, *others])} ({options})")
        else:
            # Lazy: free text ends where the trigger is first complete.
            rules.append(f"head_{part}[lazy]: TEXT {_written([first])}")
            rules.append(f"part_{part}: head_{part} {_written(others)} ({options})")
    for index, tag in enumerate(language.tags):
        rest = _written(special_tokens(tag.begin[len(tag.trigger) :]))
        rules.append(f"tag_{index}: {rest} @content_{index} {_written(special_tokens(tag.end))}")
    grammars: list[dict[str, Any]] = [{"lark_grammar": "\n".join(rules)}]
    grammars += [{**_content(tag, index), "name": f"content_{index}"} for index, tag in enumerate(language.tags)]
    return json.dumps({"grammars": grammars}, ensure_ascii=False)


def _written(pieces: Iterable[str | int]) -> str:
    """As Lark has them: a special token by its id."""
    return " ".join(f"<[{each}]>" if isinstance(each, int) else json.dumps(each, ensure_ascii=False) for each in pieces)


def _content(tag: Tag, index: int) -> dict[str, Any]:
    try:
        return _part(tag.content)
    except GrammarTextError as error:
        raise GrammarTextError(f"has tags[{index}], whose content {error}") from error
