"""A chat's answer held to its grammar is read as what it was held to.

Calls are whole and valid for their schemas, reasoning is as long as it may be, and no content stands where none may."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import llguidance
import pytest
from support.tiny_tokenizer import make_tokenizer
from tokenizers import AddedToken, Tokenizer

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
    ChatFormat,
    ReasoningFormat,
    ReasoningStart,
    ToolCallFormat,
)
from pagewire.scheduler_svc.frontend.text.grammar_process import Compiled, SpecialTokens, added_tokens, compile_language
from pagewire.scheduler_svc.frontend.text.helper_process import Refused
from pagewire.scheduler_svc.frontend.text.languages import (
    Answer,
    AnswerReasoning,
    CallableTool,
    Calls,
    Choice,
    JsonSchema,
    StructuralTags,
    Tag,
)
from pagewire.scheduler_svc.frontend.text.parameter_types import parameter_types
from pagewire.wire.grammar import GrammarTokenizer, parser_limits

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "days": {"type": "integer", "minimum": 1, "maximum": 99},
        "unit": {"type": "string", "enum": ["metric", "imperial"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {"get_weather": WEATHER, "now": {"type": "object", "additionalProperties": False}}
TOOLS = (CallableTool(0, "get_weather", json.dumps(WEATHER)), CallableTool(3, "now", None))
FORMATS = [each for each in ToolCallFormat if each is not ToolCallFormat.NONE]
MARKERS = ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]", "<|python_tag|>")
MAX_STEPS = 400


@dataclass
class Model:
    """A tokenizer for which everything is equally likely."""

    tokenizer: Tokenizer
    grammar: GrammarTokenizer
    special: SpecialTokens
    end: int

    def compiled(self, answer: Answer) -> Compiled | Refused:
        return compile_language(answer, self.grammar, self.special)

    def answer(self, answer: Answer, seed: int, first: str = "") -> list[int]:
        """The ids of one, with its end; fewer where it did not come to it."""
        compiled = self.compiled(answer)
        assert isinstance(compiled, Compiled), compiled
        matcher = llguidance.LLMatcher(self.grammar.of_library, compiled.grammar, log_level=0, limits=parser_limits())
        ids: list[int] = []
        draw = random.Random(seed)
        forced = self.tokenizer.encode(first).ids
        while len(ids) < MAX_STEPS and self.end not in ids:
            mask = matcher.compute_bitmask()
            allowed = [token for token in range(self.grammar.num_ids) if mask[token // 8] >> (token % 8) & 1]
            assert allowed, self.tokenizer.decode(ids)
            token = forced.pop(0) if forced else self.end if self.end in allowed else draw.choice(allowed)
            assert matcher.consume_token(token), self.tokenizer.decode([*ids, token], skip_special_tokens=False)
            ids.append(token)
        return ids

    def read(self, ids: Sequence[int], form: AnswerForm) -> list[Part]:
        reader = AnswerReader(form)
        text = self.tokenizer.decode([each for each in ids if each != self.end], skip_special_tokens=False)
        return [*reader.take(text), *reader.end()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    tokenizer.add_special_tokens([AddedToken(marker, special=True) for marker in MARKERS])
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    end = tokenizer.token_to_id("<|im_end|>")
    grammar = GrammarTokenizer.read(str(file), (end,), 384)
    return Model(tokenizer, grammar, SpecialTokens(added_tokens(file.read_bytes()), grammar, (end,)), end)


def form(
    calls: ToolCallFormat,
    reasoning: ReasoningFormat = ReasoningFormat.NONE,
    start: ReasoningStart = ReasoningStart.NONE,
) -> AnswerForm:
    tools = {name: parameter_types(schema) for name, schema in SCHEMAS.items()}
    return AnswerForm(format=ChatFormat(reasoning, calls), reasoning=start, tools=tools)


def calls_of(parts: Sequence[Part]) -> list[tuple[str, Any]]:
    """Every call, whole and valid."""
    names = [part.name for part in parts if isinstance(part, CallBegun)]
    texts = [""] * len(names)
    for part in parts:
        if isinstance(part, CallArguments):
            texts[part.index] += part.text
    assert [part.index for part in parts if isinstance(part, CallComplete)] == list(range(len(names)))
    calls = [(name, json.loads(text)) for name, text in zip(names, texts, strict=True)]
    for name, arguments in calls:
        jsonschema.validate(arguments, SCHEMAS[name])
    return calls


@pytest.mark.parametrize("calls", FORMATS)
@pytest.mark.parametrize("is_single", [True, False])
def test_required_calls_are_whole_valid_and_all_there_is(calls: ToolCallFormat, is_single: bool, model: Model) -> None:
    language = Answer(None, None, Calls(calls, TOOLS, True, is_single))
    num_whole = 0
    for seed in range(20):
        ids = model.answer(language, seed)
        parts = model.read(ids, form(calls))
        assert not any(isinstance(part, Content | Reasoning) for part in parts)
        if ids[-1] == model.end:
            num_whole += 1
            made = calls_of(parts)
            assert len(made) == 1 or (made and not is_single)
    assert num_whole >= 15


REASONING = {
    ReasoningFormat.THINK: ("<think>", "</think>"),
    ReasoningFormat.MISTRAL: ("[THINK]", "[/THINK]"),
}


@pytest.mark.parametrize("calls", FORMATS)
@pytest.mark.parametrize("reasoning", REASONING)
@pytest.mark.parametrize("start", [ReasoningStart.OPEN, ReasoningStart.MAY_BEGIN])
@pytest.mark.parametrize("max_tokens", [None, 0, 7])
def test_reasoning_before_a_required_call(
    calls: ToolCallFormat, reasoning: ReasoningFormat, start: ReasoningStart, max_tokens: int | None, model: Model
) -> None:
    begin, end = REASONING[reasoning]
    held = AnswerReasoning(begin, end, start is ReasoningStart.OPEN, max_tokens)
    language = Answer(None, held, Calls(calls, TOOLS, True, True))
    first = begin if start is ReasoningStart.MAY_BEGIN else ""
    num_whole = 0
    for seed in range(4):
        hint = first if max_tokens is not None else f"{first}Hm.{end}"
        ids = model.answer(language, seed, hint)
        if max_tokens is not None:
            closed = ids.index(model.tokenizer.token_to_id(end))
            assert closed - bool(first) == max_tokens
        if ids[-1] == model.end:
            num_whole += 1
            parts = model.read(ids, form(calls, reasoning, start))
            assert len(calls_of(parts)) == 1
            assert not any(isinstance(part, Content | Malformed) for part in parts)
    assert num_whole >= 2


@pytest.mark.parametrize("reasoning", REASONING)
@pytest.mark.parametrize("calls", [None, *FORMATS])
def test_a_budget_leaves_the_rest_free(reasoning: ReasoningFormat, calls: ToolCallFormat | None, model: Model) -> None:
    begin, end = REASONING[reasoning]
    held = AnswerReasoning(begin, end, False, 3)
    language = Answer(None, held, None if calls is None else Calls(calls, TOOLS, False, False))
    for first in ("Yes, <b>ö</b> it is.", f"{begin}abc{end}Yes", f"{begin}abc{end}\n\n" + " Yes" * 3):
        ids = model.answer(language, 0, first)
        assert model.tokenizer.decode(ids[:-1], skip_special_tokens=False) == first
    refused = model.tokenizer.encode(f"{begin}abcde fghij klmno").ids
    with pytest.raises(AssertionError):
        model.answer(language, 0, model.tokenizer.decode(refused, skip_special_tokens=False))


def test_one_call_at_most_and_text_before_it(model: Model) -> None:
    written = {
        ToolCallFormat.QWEN3: '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        ToolCallFormat.QWEN3_CODER: "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        ToolCallFormat.LLAMA3: '{"name": "now", "parameters": {}}',
        ToolCallFormat.MISTRAL: '[TOOL_CALLS][{"name": "now", "arguments": {}}]',
        ToolCallFormat.MISTRAL_ARGS: "[TOOL_CALLS]now[ARGS]{}",
    }
    for calls, call in written.items():
        for reasoning in (None, AnswerReasoning("<think>", "</think>", False, None)):
            language = Answer(None, reasoning, Calls(calls, TOOLS, False, True))
            before = "" if calls is ToolCallFormat.LLAMA3 else "Sure <b. "
            for first in (call, before + call, "No, {never} <tool."):
                ids = model.answer(language, 0, first)
                assert model.tokenizer.decode(ids[:-1], skip_special_tokens=False) == first
            with pytest.raises(AssertionError):
                model.answer(language, 0, before + call + "\n" + call)


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tokenizer that has no token for any marker."""
    tokenizer = make_tokenizer()
    file = tmp_path_factory.mktemp("wordy") / "tokenizer.json"
    tokenizer.save(str(file))
    end = tokenizer.token_to_id("<|im_end|>")
    grammar = GrammarTokenizer.read(str(file), (end,), 384)
    return Model(tokenizer, grammar, SpecialTokens(added_tokens(file.read_bytes()), grammar, (end,)), end)


@pytest.mark.parametrize(
    ("calls", "first"),
    [
        (ToolCallFormat.QWEN3_CODER, "<function=now>\n</function>\n<tool_call>\n<function=now>"),
        (ToolCallFormat.QWEN3_CODER, "Hm <function="),
        (ToolCallFormat.LLAMA3, 'Hi <|python_tag|>{"name": "now"}'),
        (ToolCallFormat.QWEN3, "Hm <tool_call>x"),
        (ToolCallFormat.MISTRAL, "[TOOL_CALLS]x"),
    ],
)
def test_one_call_at_most_however_its_marker_is_spelled(calls: ToolCallFormat, first: str, wordy: Model) -> None:
    language = Answer(None, None, Calls(calls, TOOLS, False, True))
    with pytest.raises(AssertionError):
        wordy.answer(language, 0, first)
    for text in ("Hm.", "Hm <tool" if calls is not ToolCallFormat.LLAMA3 else "Hm <|python"):
        ids = wordy.answer(language, 0, text)
        assert wordy.tokenizer.decode(ids[:-1]) == text


@pytest.mark.parametrize("max_tokens", [None, 40])
def test_reasoning_ends_where_its_end_is_spelled_too(max_tokens: int | None, model: Model) -> None:
    """Its end in other tokens than its own is none that could come: it would be read as the end."""
    language = Answer(
        None, AnswerReasoning("<think>", "</think>", True, max_tokens), Calls(ToolCallFormat.QWEN3, TOOLS, True, True)
    )
    compiled = model.compiled(language)
    assert isinstance(compiled, Compiled)
    matcher = llguidance.LLMatcher(model.grammar.of_library, compiled.grammar, limits=parser_limits())
    spelled = [model.tokenizer.token_to_id(each) for each in "a</think"]
    assert all(matcher.consume_token(token) for token in spelled)
    last = model.tokenizer.token_to_id(">")
    assert not matcher.compute_bitmask()[last // 8] >> (last % 8) & 1


def test_content_of_a_language_stands_beside_calls(model: Model) -> None:
    reasoning = AnswerReasoning("<think>", "</think>", False, None)
    for content, text in (
        (JsonSchema('{"const": 5}'), "5"),
        (Choice(("yes", "no")), "no"),
        (StructuralTags((Tag("<a>", "<a>", JsonSchema('{"const": 5}'), "</a>"),)), "So <a>5</a>"),
    ):
        language = Answer(content, reasoning, Calls(ToolCallFormat.QWEN3, TOOLS, False, False))
        call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
        for first in (text, f"<think>Hm</think>{text}", call, f"<think>Hm</think>\n{call}"):
            ids = model.answer(language, 0, first)
            assert model.tokenizer.decode(ids[:-1], skip_special_tokens=False).startswith(first)
        if not isinstance(content, StructuralTags):
            with pytest.raises(AssertionError):
                model.answer(language, 0, "<think>Hm</think>maybe")


@pytest.mark.parametrize(
    ("calls", "tool", "reason"),
    [
        (
            ToolCallFormat.QWEN3,
            CallableTool(2, "f", '{"type": "array"}'),
            "tools[2].parameters, which is a schema of array",
        ),
        (ToolCallFormat.QWEN3, CallableTool(2, "f", "{"), "tools[2].parameters, which is no JSON"),
        (
            ToolCallFormat.QWEN3_CODER,
            CallableTool(1, "f>", None),
            "tools[1].name, whose name this model's calls cannot",
        ),
        (
            ToolCallFormat.QWEN3_CODER,
            CallableTool(1, "f", '{"properties": {"a": {"type": "string", "pattern": "a+"}}}'),
            "tools[1].parameters.properties.a, whose keyword pattern",
        ),
        (
            ToolCallFormat.QWEN3_CODER,
            CallableTool(1, "f", '{"properties": {"a": {"type": ["string", "integer"]}}}'),
            "tools[1].parameters.properties.a, whose type",
        ),
        (ToolCallFormat.QWEN3_CODER, CallableTool(1, "f", '{"minProperties": 1}'), "whose keyword minProperties"),
        (
            ToolCallFormat.QWEN3_CODER,
            CallableTool(1, "f", '{"properties": {"a": {"type": "string", "maxLength": "3}/ | /x"}}}'),
            "whose minLength or maxLength is no length",
        ),
        (ToolCallFormat.QWEN3_CODER, CallableTool(1, "f", '{"required": ["a"]}'), "requires 'a' and says nothing"),
        (
            ToolCallFormat.QWEN3_CODER,
            CallableTool(1, "f", '{"required": [["a"]]}'),
            "properties or required are no schema's",
        ),
        (
            ToolCallFormat.QWEN3_CODER,
            CallableTool(1, "f", '{"properties": {"a": {"type": "string", "minLength": null}}}'),
            "minLength is null",
        ),
        (
            ToolCallFormat.QWEN3_CODER,
            CallableTool(1, "f", '{"properties": {"a": {"type": "string", "minLength": 5, "maxLength": 2}}}'),
            "properties.a, whose minLength is 5, more than its maxLength of 2",
        ),
        (
            ToolCallFormat.QWEN3,
            CallableTool(4, "f", '{"not": {}}'),
            "has tools[4].parameters, which cannot be compiled: Unimplemented keys",
        ),
        (ToolCallFormat.MISTRAL_ARGS, CallableTool(1, "  ", None), "tools[1].name, which this model's calls cannot"),
        (ToolCallFormat.MISTRAL_ARGS, CallableTool(1, "f[", None), "tools[1].name, which this model's calls cannot"),
    ],
)
def test_tools_that_cannot_be_held_to_are_refused(
    calls: ToolCallFormat, tool: CallableTool, reason: str, model: Model
) -> None:
    refused = model.compiled(Answer(None, None, Calls(calls, (tool,), True, True)))
    assert isinstance(refused, Refused)
    assert reason in refused.message


def test_a_budget_needs_the_end_of_reasoning_as_one_token(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    end = tokenizer.token_to_id("<|im_end|>")
    grammar = GrammarTokenizer.read(str(tmp_path / "tokenizer.json"), (end,), 384)
    special = SpecialTokens(added_tokens((tmp_path / "tokenizer.json").read_bytes()), grammar, (end,))
    refused = compile_language(Answer(None, AnswerReasoning("<think>", "</think>", True, 5), None), grammar, special)
    assert isinstance(refused, Refused)
    assert "</think>, which ends reasoning, is no token of this model" in refused.message
