"""What a chat says of its answer: read, or refused by the name of its field; formats known from templates; and messages
that are gone on with as transformers does."""

import dataclasses
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.tiny_tokenizer import TEMPLATE, make_spec
from transformers import PreTrainedTokenizerFast

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.limits import MAX_CONSTRAINT_BYTES, MAX_REASONING_TOKENS, ModelLimits
from pagewire.scheduler_svc.frontend.request.chat import template_variables
from pagewire.scheduler_svc.frontend.request.chat_turn import model_format
from pagewire.scheduler_svc.frontend.request.continuation import cut_continuation
from pagewire.scheduler_svc.frontend.request.prompt import validate_prompt
from pagewire.scheduler_svc.frontend.request.validate import ValidGeneration, validate_generation
from pagewire.scheduler_svc.frontend.text.chat_format import (
    ChatFormat,
    ReasoningFormat,
    ReasoningStart,
    ToolCallFormat,
    recognized_format,
)
from pagewire.scheduler_svc.frontend.text.languages import Answer, AnswerReasoning, Regex
from pagewire.scheduler_svc.frontend.text.template_process import Rendered, compile_template, render
from pagewire.v1 import generation_pb2 as pb
from pagewire.wire.model import ModelSpec

Run = Callable[[Coroutine[Any, Any, None]], None]
TEMPLATES = Path(__file__).parent / "chat_templates"
LIMITS = ModelLimits(vocab_size=384, max_model_len=400, max_kv_tokens=0, max_n=4)
QWEN3 = (TEMPLATES / "qwen3.jinja").read_text()
USER = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content="Hi")
TOOL = pb.Tool(name="f", parameters='{"type": "object"}')
NAMED = pb.ToolChoice(named="f")
REQUIRED = pb.ToolChoice(required=pb.RequiredToolChoice())


def said(content: str | None, **fields: Any) -> pb.ChatMessage:
    return pb.ChatMessage(role=pb.CHAT_ROLE_ASSISTANT, content=content, **fields)


def chat(*messages: pb.ChatMessage, output: pb.Output | None = None, **fields: Any) -> pb.Generation:
    return pb.Generation(prompt=pb.Prompt(chat=pb.Chat(messages=messages or [USER], **fields)), output=output)


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    return make_spec(tmp_path, template=QWEN3)


def valid(generation: pb.Generation, spec: ModelSpec) -> ValidGeneration:
    return validate_generation(generation, spec, LIMITS)


NO_PARTS = pb.Output(parts=False)
REFUSED = {
    "output.parts": pb.Generation(prompt=pb.Prompt(text="Hi"), output=pb.Output(parts=True)),
    "prompt.chat.tool_choice": chat(tools=[TOOL], tool_choice=pb.ToolChoice()),
    "prompt.chat.tool_choice.required": chat(tool_choice=REQUIRED),
    "prompt.chat.tool_choice.named": chat(tools=[TOOL], tool_choice=pb.ToolChoice(named="g")),
    "constraint": pb.Generation(
        prompt=pb.Prompt(chat=pb.Chat(messages=[USER], tools=[TOOL], tool_choice=REQUIRED)),
        constraint=pb.Constraint(regex="a"),
    ),
    "prompt.chat.parallel_tool_calls": chat(parallel_tool_calls=False),
    "prompt.chat.tools[1].name": chat(tools=[TOOL, TOOL]),
    "prompt.chat.tools[0].name": chat(tools=[pb.Tool(name="a\0b")]),
    "prompt.chat.format": chat(output=NO_PARTS, format=pb.ChatFormat(reasoning=pb.REASONING_FORMAT_NONE)),
    "prompt.chat.format.reasoning": chat(format=pb.ChatFormat(reasoning=99)),  # type: ignore[arg-type]
    "prompt.chat.format.tool_calls": chat(format=pb.ChatFormat(tool_calls=99)),  # type: ignore[arg-type]
    "prompt.chat.max_reasoning_tokens": chat(max_reasoning_tokens=MAX_REASONING_TOKENS + 1),
    "prompt.chat.tools": chat(
        tools=[pb.Tool(name="f", parameters=" " * (MAX_CONSTRAINT_BYTES + 1))], tool_choice=NAMED
    ),
    "prompt.chat.tools[0].parameters": chat(tools=[pb.Tool(name="f", parameters="[" * 501)], tool_choice=NAMED),
    "prompt.chat.continue_final_message": chat(continue_final_message=True),
    "stopping.ignore_eos": pb.Generation(
        prompt=pb.Prompt(chat=pb.Chat(messages=[USER], max_reasoning_tokens=3)), stopping=pb.Stopping(ignore_eos=True)
    ),
}


@pytest.mark.parametrize("field", REFUSED)
def test_a_refusal_names_its_field(field: str, spec: ModelSpec) -> None:
    with pytest.raises(InvalidArgument) as refused:
        valid(REFUSED[field], spec)
    assert refused.value.field == f"generation.{field}"


@pytest.mark.parametrize(
    ("reason", "generation"),
    [
        ("output.parts is false", chat(output=NO_PARTS, tools=[TOOL], tool_choice=NAMED)),
        ("output.parts is false", chat(output=NO_PARTS, tools=[TOOL], parallel_tool_calls=False)),
        ("output.parts is false", chat(output=NO_PARTS, max_reasoning_tokens=3)),
        ("format.tool_calls says it", chat(tools=[TOOL], tool_choice=NAMED, format=pb.ChatFormat(tool_calls=1))),  # type: ignore[arg-type]
        ("format.reasoning says it", chat(max_reasoning_tokens=3, format=pb.ChatFormat(reasoning=1))),  # type: ignore[arg-type]
        ("is not the assistant's", chat(said("x"), USER, continue_final_message=True)),
        ("says nothing yet", chat(USER, said(""), tools=[TOOL], continue_final_message=True)),
        ("add_generation_prompt", chat(USER, said("x"), continue_final_message=True, add_generation_prompt=True)),
        (
            "behind which nothing goes on",
            chat(USER, said("x", tool_calls=[pb.ToolCall(name="f")]), continue_final_message=True),
        ),
    ],
)
def test_reasons(reason: str, generation: pb.Generation, spec: ModelSpec) -> None:
    with pytest.raises(InvalidArgument) as refused:
        valid(generation, spec)
    assert reason in refused.value.message


@pytest.mark.parametrize(
    "generation",
    [
        chat(tools=[TOOL], tool_choice=REQUIRED),
        chat(max_reasoning_tokens=3),
        chat(tools=[TOOL], parallel_tool_calls=False),
    ],
)
def test_a_device_without_logits_refuses_what_is_a_constraint(generation: pb.Generation, spec: ModelSpec) -> None:
    valid(generation, spec)
    with pytest.raises(InvalidArgument, match="no logits here"):
        validate_generation(generation, spec, dataclasses.replace(LIMITS, no_logits="no logits here"))


def test_what_asks_for_nothing_constrains_nothing(spec: ModelSpec) -> None:
    for generation in (
        chat(),
        chat(tools=[TOOL]),
        chat(tools=[TOOL], tool_choice=pb.ToolChoice(auto=pb.AutoToolChoice()), parallel_tool_calls=True),
        chat(tool_choice=pb.ToolChoice(none=pb.NoToolChoice())),
    ):
        turn = valid(generation, spec).turn
        assert turn is not None
        assert all(turn.language(None, start) is None for start in ReasoningStart)
    assert valid(chat(output=NO_PARTS, tools=[TOOL]), spec).turn is None
    assert valid(pb.Generation(prompt=pb.Prompt(text="x")), spec).turn is None


def test_tools_that_nothing_is_held_to_may_be_long(spec: ModelSpec) -> None:
    long = chat(output=NO_PARTS, tools=[pb.Tool(name="f", parameters=" " * (MAX_CONSTRAINT_BYTES + 1))])
    long.constraint.regex = "a"
    assert valid(long, spec).turn is None


@pytest.mark.parametrize(
    ("generation", "field"),
    [
        (chat(tools=[TOOL], tool_choice=REQUIRED), "generation.prompt.chat.tool_choice"),
        (chat(tools=[TOOL], parallel_tool_calls=False), "generation.prompt.chat.parallel_tool_calls"),
        (chat(max_reasoning_tokens=3), "generation.prompt.chat.max_reasoning_tokens"),
        (chat(), "generation.constraint"),
    ],
)
def test_who_asks_for_a_constraint_is_known(generation: pb.Generation, field: str, spec: ModelSpec) -> None:
    turn = valid(generation, spec).turn
    assert turn is not None
    assert turn.asking_field == field


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("format.reasoning", {"format": pb.ChatFormat(reasoning=77)}),  # type: ignore[arg-type]
        ("tool_choice.named", {"tools": [TOOL], "tool_choice": pb.ToolChoice(named="g")}),
        ("tools[1].name", {"tools": [TOOL, TOOL]}),
        ("max_reasoning_tokens", {"max_reasoning_tokens": 2**32 - 1}),
    ],
)
def test_tokenize_refuses_what_generate_does(field: str, fields: dict[str, Any], spec: ModelSpec) -> None:
    with pytest.raises(InvalidArgument) as refused:
        validate_prompt(chat(**fields).prompt, "prompt", spec, LIMITS)
    assert refused.value.field == f"prompt.chat.{field}"


def test_a_budget_constrains_reasoning_where_it_can_come(spec: ModelSpec) -> None:
    turn = valid(chat(max_reasoning_tokens=3), spec).turn
    assert turn is not None
    assert turn.language(None, ReasoningStart.NONE) is None
    held = turn.language(None, ReasoningStart.OPEN)
    assert held == Answer(None, AnswerReasoning("<think>", "</think>", True, 3), None)


def test_content_of_a_language_leaves_reasoning_free(spec: ModelSpec) -> None:
    turn = valid(chat(), spec).turn
    assert turn is not None
    assert turn.language(Regex("a"), ReasoningStart.NONE) == Regex("a")
    held = turn.language(Regex("a"), ReasoningStart.MAY_BEGIN)
    assert held == Answer(Regex("a"), AnswerReasoning("<think>", "</think>", False, None), None)


def test_no_choice_hides_the_tools(spec: ModelSpec) -> None:
    none = chat(tools=[TOOL], tool_choice=pb.ToolChoice(none=pb.NoToolChoice())).prompt.chat
    variables = template_variables(none, {}, "chat")
    assert (variables.values["tools"], variables.objects) == (None, [])
    only_for_tools = msgspec.structs.replace(spec, chat_template=None, tool_use_template=QWEN3)
    with pytest.raises(InvalidArgument, match="for tools alone"):
        valid(chat(tools=[TOOL], tool_choice=pb.ToolChoice(none=pb.NoToolChoice())), only_for_tools)
    turn = valid(chat(tools=[TOOL], tool_choice=pb.ToolChoice(none=pb.NoToolChoice())), spec).turn
    assert turn is not None
    assert (turn.tools, turn.format.tool_calls) == ((), ToolCallFormat.NONE)


@pytest.mark.parametrize(
    ("template", "chat_format"),
    [
        ("qwen3", ChatFormat(ReasoningFormat.THINK, ToolCallFormat.QWEN3)),
        ("parameters_style", ChatFormat(ReasoningFormat.THINK, ToolCallFormat.QWEN3_CODER)),
        ("llama3_style", ChatFormat(ReasoningFormat.NONE, ToolCallFormat.LLAMA3)),
        ("mistral_style", ChatFormat(ReasoningFormat.NONE, ToolCallFormat.MISTRAL)),
        ("deepseek_r1_style", ChatFormat(ReasoningFormat.THINK, ToolCallFormat.NONE)),
        ("smollm2", ChatFormat()),
    ],
)
def test_formats_are_known_from_templates(template: str, chat_format: ChatFormat, spec: ModelSpec) -> None:
    source = (TEMPLATES / f"{template}.jinja").read_text()
    assert model_format(msgspec.structs.replace(spec, chat_template=source)) == chat_format
    later = "{{ '[TOOL_CALLS]' + call.name + '[ARGS]' }}{{ '[THINK]' + m.thinking + '[/THINK]' }}"
    assert recognized_format(later) == ChatFormat(ReasoningFormat.MISTRAL, ToolCallFormat.MISTRAL_ARGS)


def rendered(source: str, generation: pb.Generation) -> str:
    answer = render(compile_template(source), template_variables(generation.prompt.chat, {}, "chat"), 100_000)
    assert isinstance(answer, Rendered), answer
    return answer.text


@pytest.mark.parametrize("content", ["Once", "Once upon a time, ", "Once\nupon", "im_end", "a", "Grüße 🙂"])
@pytest.mark.parametrize("template", ["qwen3", "tiny"])
def test_a_message_is_gone_on_with_as_in_transformers(content: str, template: str) -> None:
    source = QWEN3 if template == "qwen3" else TEMPLATE
    ours = cut_continuation(rendered(source, chat(USER, said(content), continue_final_message=True)), "chat")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}]
    judge = PreTrainedTokenizerFast.apply_chat_template
    theirs = judge(_NoTokens(), messages, chat_template=source, continue_final_message=True, tokenize=False)
    assert ours == theirs


class _NoTokens:
    """As much of a tokenizer as a rendering asks for."""

    special_tokens_map: dict[str, str] = {}  # noqa: RUF012

    def get_chat_template(self, chat_template: str, tools: object) -> str:
        return chat_template


def test_reasoning_is_gone_on_with(spec: ModelSpec) -> None:
    generation = chat(USER, said(None, reasoning_content="Let me think"), continue_final_message=True)
    prompt = cut_continuation(rendered(QWEN3, generation), "chat")
    assert prompt.endswith("<|im_start|>assistant\n<think>\nLet me think")
    turn = valid(generation, spec).turn
    assert turn is not None
    assert turn.start(prompt) is ReasoningStart.OPEN


@pytest.mark.parametrize(
    ("message", "start"),
    [
        (said("Yes"), ReasoningStart.NONE),
        (said("<think>Hm"), ReasoningStart.OPEN),
        (said("<think>Hm</think>Yes"), ReasoningStart.NONE),
        (said("Yes", reasoning_content="Hm"), ReasoningStart.NONE),
    ],
)
def test_where_a_message_stands_that_is_gone_on_with(
    message: pb.ChatMessage, start: ReasoningStart, spec: ModelSpec
) -> None:
    turn = valid(chat(USER, message, continue_final_message=True), spec).turn
    assert turn is not None
    assert turn.start("whatever") is start


def test_where_an_answer_stands(spec: ModelSpec) -> None:
    turn = valid(chat(), spec).turn
    assert turn is not None
    assert turn.start(rendered(QWEN3, chat())) is ReasoningStart.MAY_BEGIN
    off = chat(template_arguments='{"enable_thinking": false}')
    assert turn.start(rendered(QWEN3, off)) is ReasoningStart.NONE
    assert turn.start("<|im_start|>assistant\n<think>\n") is ReasoningStart.OPEN


def test_a_template_that_writes_the_message_twice_is_refused() -> None:
    twice = "{{ messages[-1].content }}{{ messages[-1].content }}"
    prompt = rendered(twice, chat(USER, said("x"), continue_final_message=True))
    with pytest.raises(InvalidArgument, match="more than once"):
        cut_continuation(prompt, "chat")


def test_a_template_that_leaves_the_message_out_is_refused() -> None:
    prompt = rendered("{{ messages[0].content }}", chat(USER, said("x"), continue_final_message=True))
    with pytest.raises(InvalidArgument) as refused:
        cut_continuation(prompt, "chat")
    assert refused.value.field == "chat.continue_final_message"
