"""Grammar writers: rules in Lark as they are put together, and the grammars of other kinds that they refer to.

It knows how texts, special tokens and schemas are written there; what the rules say is others' to know.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from pagewire.scheduler_svc.frontend.text.languages import GrammarTextError


class SpecialTokens(Protocol):
    """Those of one tokenizer."""

    def pieces(self, text: str) -> Iterable[str | int]:
        """Cuts a text at special tokens: its other pieces, and the ids of these. Raises GrammarTextError for one that
        ends the output."""


class GrammarWriter:
    """Rules and grammars so far."""

    def __init__(self, special: SpecialTokens, json_schema: Callable[[str], dict[str, Any]]) -> None:
        """`json_schema` makes a grammar of a schema's text, or raises GrammarTextError."""
        self.special = special
        self._json_schema = json_schema
        self._rules = [r"TEXT: /(.|\n)*/"]
        self._grammars: list[dict[str, Any]] = []

    def rule(self, name: str, body: str) -> None:
        """One more; a terminal where its name is in capitals. TEXT is any text without special tokens."""
        self._rules.append(f"{name}: {body}")

    def text(self, text: str) -> str:
        """A text as rules have it."""
        return written(self.special.pieces(text))

    def json(self, name: str, schema: object, what: str) -> str:
        """JSON of a schema, as rules have it. Raises GrammarTextError saying what it is the schema of."""
        try:
            grammar = self._json_schema(json.dumps(schema, ensure_ascii=False))
        except GrammarTextError as error:
            raise GrammarTextError(f"has {what}, which {error}") from error
        self._grammars.append({**grammar, "name": name})
        return f"@{name}"

    def grammars(self) -> list[dict[str, Any]]:
        """The rules, which begin with `start`, and what they refer to."""
        return [{"lark_grammar": "\n".join(self._rules)}, *self._grammars]


def written(pieces: Iterable[str | int]) -> str:
    """As Lark has them: a special token by its id."""
    return " ".join(f"<[{each}]>" if isinstance(each, int) else json.dumps(each, ensure_ascii=False) for each in pieces)


def escaped(text: str) -> str:
    """A text of ASCII as a regular expression between slashes."""
    return "".join(each if each.isalnum() else f"\\x{ord(each):02x}" for each in text)
