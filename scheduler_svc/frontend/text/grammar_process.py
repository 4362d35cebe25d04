"""The grammar process: compiles a request's language, in a process with limits.

A schema, a regular expression or a grammar comes with a request, and what it takes to compile one is not seen from its
size. Here a timer of processor time or the memory limit ends the process, and nobody else is delayed: it runs behind
everything else on the machine. What comes out is the grammar as the workers read it, tried as they will begin with it.
"""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import llguidance
import msgspec

from pagewire.scheduler_svc.frontend.text.grammar_text import grammar_text
from pagewire.scheduler_svc.frontend.text.helper_process import (
    Prepared,
    Refused,
    limit_cpu_time,
    limit_memory,
    limit_time,
    serve,
)
from pagewire.scheduler_svc.frontend.text.languages import Answer, GrammarTextError, JsonSchema, Language
from pagewire.wire.codec import Codec, WireError, decode_json
from pagewire.wire.grammar import GrammarTokenizer, parser_limits
from pagewire.wire.logits import MAX_GRAMMAR_CHARACTERS

_NICENESS = 19
"""A sixtieth of the share of a process beside it: whoever streams is not delayed. With SCHED_IDLE a good one would wait
for as long as the machine is full, and nobody leaves that class again without privileges."""
_MAX_MESSAGE = 400


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """First frame to the process: the model's tokenizer, and the limits of every language."""

    tokenizer_file: str
    eos_token_ids: tuple[int, ...]
    vocab_size: int
    cpu_limit_s: float
    time_limit_s: float
    """Of waiting for the processor too."""
    memory_limit_bytes: int
    """Address space beyond what the process has with its tokenizer."""


class Compile(msgspec.Struct, frozen=True, tag="compile"):
    """Compile one."""

    language: Language


class Compiled(msgspec.Struct, frozen=True, tag="compiled"):
    """The grammar, in llguidance's form."""

    grammar: str


ToCompiler = Prepare | Compile
FromCompiler = Prepared | Compiled | Refused


class _AddedToken(msgspec.Struct, frozen=True):
    id: int
    content: str


class _Definition(msgspec.Struct, frozen=True):
    """The part of `tokenizer.json` that says which tokens are no text."""

    added_tokens: list[_AddedToken] = []


def added_tokens(definition: bytes) -> dict[str, int]:
    """A tokenizer's, as they are written. Raises WireError for a definition that cannot be read."""
    return {token.content: token.id for token in decode_json(definition, _Definition).added_tokens}


class SpecialTokens:
    """Those of one tokenizer, as they are written: the tokens that the library takes for no text. That is more than the
    definition says: <think> and its like too."""

    def __init__(self, added: dict[str, int], tokenizer: GrammarTokenizer, eos_token_ids: tuple[int, ...]) -> None:
        is_special = tokenizer.of_library.is_special_token
        self._ids = {
            content: token
            for content, token in added.items()
            if content and token < tokenizer.num_ids and is_special(token)
        }
        self._eos_token_ids = eos_token_ids
        # The longest first, so that none is taken for another's beginning.
        written = "|".join(map(re.escape, sorted(self._ids, key=len, reverse=True)))
        self._pattern = re.compile(f"({written})" if written else r"(?!)()")

    def pieces(self, text: str) -> Iterator[str | int]:
        """Cuts a text at special tokens: its other pieces, and the ids of these. Raises GrammarTextError for one that
        ends the output."""
        for piece in self._pattern.split(text):
            token = self._ids.get(piece)
            if token in self._eos_token_ids:
                raise GrammarTextError(f"has the end-of-sequence token {piece} in {text!r}, where the output would end")
            if piece:
                yield piece if token is None else token


class Compiler:
    """What this process holds."""

    def __init__(self) -> None:
        self._model: tuple[GrammarTokenizer, SpecialTokens] | None = None
        self._cpu_limit_s = 0.0
        self._time_limit_s = 0.0

    def answer(self, request: ToCompiler) -> FromCompiler:
        """Prepare or compile."""
        match request:
            case Prepare():
                return self._prepare(request)
            case Compile() if self._model is not None:
                limit_cpu_time(self._cpu_limit_s)
                limit_time(self._time_limit_s)
                return compile_language(request.language, *self._model)
            case _:
                sys.exit("grammar process: asked to compile before it had a tokenizer")

    def _prepare(self, request: Prepare) -> Prepared | Refused:
        try:
            tokenizer = GrammarTokenizer.read(request.tokenizer_file, request.eos_token_ids, request.vocab_size)
            added = added_tokens(Path(request.tokenizer_file).read_bytes())
            special = SpecialTokens(added, tokenizer, request.eos_token_ids)
        except (OSError, ValueError, WireError) as error:
            return Refused(_one_line(str(error)))
        self._model = tokenizer, special
        self._cpu_limit_s, self._time_limit_s = request.cpu_limit_s, request.time_limit_s
        limit_memory(request.memory_limit_bytes)
        # Not before: behind a worker that takes every core it would be ready after seconds, for which whoever comes
        # back from a frontend that was killed waits.
        os.nice(_NICENESS)
        return Prepared()


def compile_language(language: Language, tokenizer: GrammarTokenizer, special: SpecialTokens) -> Compiled | Refused:
    """The grammar, from which something may be generated; or why not."""
    try:
        grammar = grammar_text(language, special)
    except GrammarTextError as error:
        return Refused(_one_line(str(error)))
    if len(grammar) > MAX_GRAMMAR_CHARACTERS:
        return Refused(f"is a grammar of {len(grammar)} characters; at most {MAX_GRAMMAR_CHARACTERS} may be")
    matcher = llguidance.LLMatcher(tokenizer.of_library, grammar, log_level=0, limits=parser_limits())
    if matcher.is_error():
        faulty = _faulty_tool(language, tokenizer, special) if isinstance(language, Answer) else ""
        return Refused(f"{faulty}cannot be compiled: {_one_line(matcher.get_error())}")
    may_come_first = any(matcher.compute_bitmask())
    if matcher.is_error() or not may_come_first:
        return Refused(f"is empty, or cannot be followed: {_one_line(matcher.get_error()) or 'nothing may come first'}")
    return Compiled(grammar)


def _faulty_tool(answer: Answer, tokenizer: GrammarTokenizer, special: SpecialTokens) -> str:
    """Which tool's parameters are what cannot be compiled; empty where it is none of them alone."""
    for tool in () if answer.calls is None else answer.calls.tools:
        grammar = grammar_text(JsonSchema(tool.schema or "{}"), special)
        if llguidance.LLMatcher.validate_grammar(grammar, tokenizer.of_library, limits=parser_limits()):
            return f"has tools[{tool.index}].parameters, which "
    return ""


def _one_line(message: str) -> str:
    return " ".join(message.split())[:_MAX_MESSAGE]


def main() -> None:
    """Serve until standard input ends."""
    incoming: Codec[ToCompiler] = Codec(ToCompiler)
    outgoing: Codec[FromCompiler] = Codec(FromCompiler)
    serve(incoming, outgoing, Compiler().answer)


if __name__ == "__main__":
    main()
