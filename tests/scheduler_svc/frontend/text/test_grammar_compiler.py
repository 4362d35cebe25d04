"""Languages become grammars that let exactly their texts come next; what cannot is refused with a reason, in time."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import llguidance
import msgspec
import pytest
from support.tiny_tokenizer import make_spec, make_tokenizer

from pagewire.scheduler_svc.frontend.text.grammar_compiler import CompileLimits, GrammarCompiler, LanguageRefusedError
from pagewire.scheduler_svc.frontend.text.grammar_process import Compiled, SpecialTokens, added_tokens, compile_language
from pagewire.scheduler_svc.frontend.text.helper_process import Refused
from pagewire.scheduler_svc.frontend.text.languages import (
    Choice,
    Grammar,
    JsonObject,
    JsonSchema,
    Language,
    Regex,
    StructuralTags,
    Tag,
)
from pagewire.wire.grammar import GrammarTokenizer, parser_limits

Run = Callable[[Coroutine[Any, Any, None]], None]
QUOTED = 'a "quoted"\n\\ text 🙂'
LARK = 'start: "a" ("b" | "c")+'
GBNF = 'root ::= "a" tail+\ntail ::= "b" | "c"'
CALL = Tag("<call>", "<call>", JsonSchema('{"type": "integer"}'), "</call>")
TURN = Tag("<|im_start|>", "<|im_start|>x=", Regex("[0-9]+"), "!")


class Known(NamedTuple):
    tokenizer: GrammarTokenizer
    special: SpecialTokens


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    spec = make_spec(tmp_path_factory.mktemp("spec"))
    assert spec.tokenizer_file is not None
    tokenizer = GrammarTokenizer.read(spec.tokenizer_file, spec.eos_token_ids, spec.decoder.vocab_size)
    return Known(
        tokenizer, SpecialTokens(added_tokens(Path(spec.tokenizer_file).read_bytes()), tokenizer, spec.eos_token_ids)
    )


def is_whole(language: Language, text: str, known: Known) -> bool:
    """Whether the text is one that may stand there and end."""
    compiled = compile_language(language, *known)
    assert isinstance(compiled, Compiled), compiled
    matcher = llguidance.LLMatcher(known.tokenizer.of_library, compiled.grammar, limits=parser_limits())
    ids = make_tokenizer().encode(text).ids
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("language", "right", "wrong"),
    [
        (
            JsonSchema('{"type": "array", "items": {"type": "integer"}}'),
            ["[]", "[1, 2]", "[\n 1]"],
            ["{}", "[1", "[1.5]"],
        ),
        (
            JsonSchema('{"type": "array", "items": {"type": "integer"}, "x-guidance": {"item_separator": ";"}}'),
            ["[1, 2]"],
            ["[1;2]", "[1; 2]"],
        ),
        (JsonSchema("true"), ["1", "{}", '"x"'], ["x", ""]),
        (JsonSchema('{"const": "\\u00fc\\ud83d\\ude42"}'), ['"ü🙂"'], ['"u"']),
        (JsonObject(), ["{}", '{"a": [1, {"b": null}]}'], ["[]", "1", '{"a"}']),
        (Regex("[a-c]{2}"), ["ab", "cc"], ["a", "abc", "xy"]),
        (Regex(""), [""], ["a"]),
        (Regex("ü+|你好"), ["üü", "你好"], ["你", "u"]),
        (Grammar(LARK), ["ab", "abcbc"], ["a", "b"]),
        (Grammar(GBNF), ["ab", "abcbc"], ["a", "b"]),
        (
            Choice(("yes", "no", "yes", 'a "quoted"\n\\ text 🙂')),
            ["yes", "no", 'a "quoted"\n\\ text 🙂'],
            ["ye", "nono"],
        ),
        (
            StructuralTags((CALL, TURN)),
            ["", "free text", "x <call>12</call> y <call>-3</call>", "<cal", "a<|im_start|>x=1!b"],
            ["<call>x", "<call>12", "<|im_start|>y", "<|im_start|>x=1"],
        ),
        (
            StructuralTags((Tag("<f=", "<f=a>", Regex("1"), ";"), Tag("<f=", "<f=b>", Regex("2"), ""))),
            ["<f=a>1;", "<f=b>2 and <f=a>1;<f=b>2"],
            ["<f=c>", "<f=a>2;", "<f=a>1"],
        ),
    ],
)
def test_a_language_is_its_texts(language: Language, right: list[str], wrong: list[str], known: Known) -> None:
    assert [text for text in right if not is_whole(language, text, known)] == []
    assert [text for text in wrong if is_whole(language, text, known)] == []


def test_blanks_between_json_s_tokens_are_bounded(known: Known) -> None:
    assert is_whole(JsonObject(), "{" + " " * 32 + "}", known)
    assert not is_whole(JsonObject(), "{" + " " * 33 + "}", known)


DEEP = 100_000
BAD: list[tuple[Language, str]] = [
    (JsonSchema("x"), "no JSON schema that can be read"),
    (JsonSchema("[1]"), "no JSON schema that can be read"),
    (JsonSchema("false"), "Unsatisfiable"),
    (JsonSchema('{"uniqueItems": true, "type": "array"}'), "uniqueItems"),
    (JsonSchema('{"type": "string", "minLength": 5, "maxLength": 3}'), "minLength"),
    (JsonSchema('{"$ref": "#/nowhere"}'), "nowhere"),
    (JsonSchema('{"not": {}, "x-guidance": {"lenient": true}}'), "not"),
    (JsonSchema('{"$ref": "https://example.com/schema"}'), "cannot be compiled"),
    (JsonSchema('{"a":' * 20_000 + "1" + "}" * 20_000), "recursion"),
    (JsonSchema('{"not": ' * 40 + "{}" + "}" * 40), "not"),
    (Regex("("), "cannot be compiled"),
    (Regex("(?=a)b"), "look-around"),
    (Regex("(" * DEEP + "a" + ")" * DEEP), "cannot be compiled"),
    (Grammar("start: nowhere"), "nowhere"),
    (Grammar("start: start"), "is empty, or cannot be followed"),
    (Grammar("nothing"), "cannot be compiled"),
    (Grammar(' {"grammars": [{"json_schema": {}}]}'), "neither Lark nor EBNF"),
    (Grammar("start: " + "(" * DEEP + '"a"' + ")" * DEEP), "nested"),
    (Grammar("root ::= " + "(" * DEEP + '"a"' + ")" * DEEP), "EBNF"),
    (Grammar("root ::= ???"), "EBNF"),
    (StructuralTags((Tag("a", "a", JsonSchema("{"), ""),)), "has tags[0], whose content is no JSON schema"),
    (StructuralTags((Tag("a", "a", Regex("["), ""),)), "cannot be compiled"),
    (StructuralTags((Tag("a", "a", Regex("b"), "<|im_end|>"),)), "has the end-of-sequence token <|im_end|> in"),
]


@pytest.mark.parametrize(("language", "reason"), BAD, ids=[f"{index}" for index in range(len(BAD))])
def test_what_is_none_is_refused_with_the_reason(language: Language, reason: str, known: Known) -> None:
    answer = compile_language(language, *known)
    assert isinstance(answer, Refused)
    assert reason in answer.message
    assert "\n" not in answer.message
    assert len(answer.message) < 600


def test_special_tokens_are_cut_out(known: Known) -> None:
    start = make_tokenizer().token_to_id("<|im_start|>")
    pieces = list(known.special.pieces("ü<|im_start|>a b<|im_start|>"))
    assert pieces == ["ü", start, "a b", start]
    assert list(known.special.pieces("")) == []


def test_through_processes(tmp_path: Path) -> None:
    """Many at once, bad ones among them: each has its own answer."""
    spec = make_spec(tmp_path)

    async def test() -> None:
        compiler = GrammarCompiler(spec, CompileLimits())
        languages = [Regex(f"a{{{index}}}" if index % 3 else "(") for index in range(1, 40)]
        answers = await asyncio.gather(
            *[compiler.compile(language, f"client {index % 5}") for index, language in enumerate(languages)],
            return_exceptions=True,
        )
        assert [isinstance(answer, str) for answer in answers] == [bool(index % 3) for index in range(1, 40)]
        assert all(isinstance(answer, str | LanguageRefusedError) for answer in answers)
        await compiler.close()

    asyncio.run(test())


def test_what_takes_too_long_ends_a_process_and_nothing_else(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    heavy = Choice(tuple(f"{index:040d}" for index in range(9000)))

    async def test() -> None:
        compiler = GrammarCompiler(spec, CompileLimits(cpu_limit_s=0.02))
        began = time.monotonic()
        with pytest.raises(LanguageRefusedError, match=r"took more than 0\.02 s of a processor"):
            await compiler.compile(heavy, "")
        assert time.monotonic() - began < 30
        assert await compiler.compile(Choice(("a",)), "") == 'start: "a"'
        await compiler.close()

    asyncio.run(test())


def test_a_model_whose_tokenizer_cannot_be_read_says_so(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    spec = msgspec.structs.replace(make_spec(tmp_path), tokenizer_file=str(file))
    file.write_text("{}")

    async def test() -> None:
        compiler = GrammarCompiler(spec, CompileLimits())
        for _ in range(2):
            with pytest.raises(LanguageRefusedError, match="tokenizer"):
                await compiler.compile(Regex("a"), "")
        await compiler.close()

    asyncio.run(test())


def test_a_language_that_comes_again_is_not_compiled_again(tmp_path: Path, run: Run) -> None:
    async def test() -> None:
        compiler = GrammarCompiler(make_spec(tmp_path), CompileLimits(max_remembered_characters=300_000))
        asked: list[Language] = []
        ask = compiler._compilers.ask

        async def counted(request: Any, client: str) -> Any:
            asked.append(request.language)
            return await ask(request, client)

        compiler._compilers.ask = counted  # type: ignore[method-assign]
        try:
            first = await compiler.compile(Choice(("yes", "no")), "a")
            assert await compiler.compile(Choice(("yes", "no")), "b") == first
            for _ in range(2):
                with pytest.raises(LanguageRefusedError, match="cannot be compiled"):
                    await compiler.compile(Regex("("), "a")
            assert asked == [Choice(("yes", "no")), Regex("(")]
            # Others are not it, however alike; and what was not asked for lately makes room.
            assert await compiler.compile(Choice(("no", "yes")), "a") != first
            for size in (40_000, 40_001, 40_002, 40_003):
                await compiler.compile(Choice(("x" * size,)), "a")
            assert await compiler.compile(Choice(("yes", "no")), "a") == first
            assert asked[-1] == Choice(("yes", "no"))
        finally:
            await compiler.close()

    run(test())
