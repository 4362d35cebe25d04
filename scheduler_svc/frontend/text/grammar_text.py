"""Grammars' texts: a language as llguidance reads it, before anything is compiled.

It knows the library's forms (Lark, JSON schema and regular expressions as grammars of their own) and how special tokens
are written in them; it compiles nothing.
"""

import json
from typing import TYPE_CHECKING, Any

import llguidance
from llguidance.gbnf_to_lark import any_to_lark

from pagewire.scheduler_svc.frontend.text.answer_grammar import answer_text
from pagewire.scheduler_svc.frontend.text.grammar_writer import GrammarWriter, SpecialTokens, written
from pagewire.scheduler_svc.frontend.text.languages import (
    Answer,
    Choice,
    Content,
    Grammar,
    GrammarTextError,
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
_JSON: "JsonCompileOptions" = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "whitespace_pattern": _WHITESPACE,
    "lenient": False,
    "coerce_one_of": False,
}
"""Over what a schema says of them (x-guidance): it is JSON, nothing of the schema is ignored, oneOf is not anyOf."""
_ANY_OBJECT = '{"type": "object"}'
_BOOLEANS = {"true": "{}", "false": '{"enum": []}'}


def grammar_text(language: Language, special: SpecialTokens) -> str:
    """In the library's form. Raises GrammarTextError."""
    match language:
        case Answer():
            content = language.content
            writer = GrammarWriter(special, lambda schema: _part(JsonSchema(schema)))
            return answer_text(language, writer, lambda name: [] if content is None else _named(content, name, special))
        case StructuralTags():
            return json.dumps({"grammars": _tags(language, special)}, ensure_ascii=False)
        case Choice():
            return _choice(language)
        case Grammar():
            return _lark(language.text)
        case _:
            return _whole_text(language)


def _named(content: Content, name: str, special: SpecialTokens) -> list[dict[str, Any]]:
    """As grammars that another may refer to by this name."""
    match content:
        case StructuralTags():
            first, *others = _tags(content, special)
            return [{**first, "name": name}, *others]
        case Choice():
            return [{"lark_grammar": _choice(content), "name": name}]
        case _:
            return [{**_part(content), "name": name}]


def _choice(choice: Choice) -> str:
    options = " | ".join(json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(choice.texts))
    return f"start: {options}"


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


def _tags(language: StructuralTags, special: SpecialTokens) -> list[dict[str, Any]]:
    """Free text up to a trigger, then what one of its tags says, and again; last free text."""
    by_trigger: dict[str, list[int]] = {}
    for index, tag in enumerate(language.tags):
        by_trigger.setdefault(tag.trigger, []).append(index)
    parts = " | ".join(f"part_{part}" for part in range(len(by_trigger)))
    rules = [f"start: ({parts})* TEXT", r"TEXT: /(.|\n)*/"]
    for part, (trigger, indices) in enumerate(by_trigger.items()):
        options = " | ".join(f"tag_{index}" for index in indices)
        first, *others = special.pieces(trigger)
        if isinstance(first, int):
            rules.append(f"part_{part}: TEXT {written([first, *others])} ({options})")
        else:
            # Lazy: free text ends where the trigger is first complete.
            rules.append(f"head_{part}[lazy]: TEXT {written([first])}")
            rules.append(f"part_{part}: head_{part} {written(others)} ({options})")
    for index, tag in enumerate(language.tags):
        rest = written(special.pieces(tag.begin[len(tag.trigger) :]))
        rules.append(f"tag_{index}: {rest} @content_{index} {written(special.pieces(tag.end))}")
    grammars: list[dict[str, Any]] = [{"lark_grammar": "\n".join(rules)}]
    grammars += [{**_content(tag, index), "name": f"content_{index}"} for index, tag in enumerate(language.tags)]
    return grammars


def _content(tag: Tag, index: int) -> dict[str, Any]:
    try:
        return _part(tag.content)
    except GrammarTextError as error:
        raise GrammarTextError(f"has tags[{index}], whose content {error}") from error
