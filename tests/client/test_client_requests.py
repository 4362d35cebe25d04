"""From Python arguments to the contract's messages."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pagewire.client import Chat, ChatFormat, InvalidRequest, Message, NamedTool, Tag, Tool, ToolCall, requests
from pagewire.client.chat_formats import REASONING_FORMATS, TOOL_CALL_FORMATS, format_message, format_value
from pagewire.client.prompts import Parameters
from pagewire.v1 import generation_pb2 as pb

ITSELF: dict[str, object] = {}
ITSELF["a"] = ITSELF


def test_nothing_set_leaves_everything_unset() -> None:
    assert requests.generation("hi", {}) == pb.Generation(prompt=pb.Prompt(text="hi"))
    assert requests.generation("hi", {"temperature": None, "stop": None}) == pb.Generation(prompt=pb.Prompt(text="hi"))


def test_zero_is_set() -> None:
    message = requests.generation("hi", {"temperature": 0, "seed": 0, "priority": 0, "ignore_eos": False})
    assert message.sampling.HasField("temperature")
    assert message.sampling.HasField("seed")
    assert message.HasField("priority")
    assert message.stopping.HasField("ignore_eos")


def test_every_parameter_reaches_its_field() -> None:
    parameters: Parameters = {
        "model": "m",
        "temperature": 0.5,
        "top_k": 4,
        "top_p": 0.75,
        "min_p": 0.25,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "repetition_penalty": 1.5,
        "logit_bias": {3: 2.0},
        "allowed_token_ids": [3, 4, 5],
        "banned_token_ids": [4],
        "bad_words": ["no"],
        "seed": 2**64 - 1,
        "max_tokens": 9,
        "min_tokens": 2,
        "stop": ["a", "b"],
        "stop_token_ids": [5],
        "ignore_eos": True,
        "include_stop": True,
        "return_text": True,
        "return_token_ids": True,
        "logprobs": True,
        "num_candidates": 2,
        "prompt_logprobs": True,
        "num_prompt_candidates": 1,
        "logprob_token_ids": [7],
        "processed_logprobs": True,
        "skip_special_tokens": False,
        "return_parts": False,
        "n": 2,
        "priority": -3,
        "cache_salt": "s",
        "choice": ["x", "y"],
        "max_queue_time_s": 1.5,
        "request_id": "r",
    }
    message = requests.generation([1, 2], parameters)
    expected = pb.Generation(
        model="m",
        prompt=pb.Prompt(token_ids=pb.TokenIds(ids=[1, 2])),
        sampling=pb.Sampling(
            temperature=0.5,
            top_k=4,
            top_p=0.75,
            min_p=0.25,
            presence_penalty=1,
            frequency_penalty=-1,
            repetition_penalty=1.5,
            logit_bias={3: 2.0},
            allowed_token_ids=[3, 4, 5],
            banned_token_ids=[4],
            bad_words=["no"],
            seed=2**64 - 1,
        ),
        stopping=pb.Stopping(
            max_tokens=9,
            min_tokens=2,
            stop_strings=["a", "b"],
            stop_token_ids=[5],
            ignore_eos=True,
            include_stop=True,
        ),
        output=pb.Output(
            text=True,
            token_ids=True,
            logprobs=True,
            num_candidates=2,
            prompt_logprobs=True,
            num_prompt_candidates=1,
            skip_special_tokens=False,
            parts=False,
            logprob_token_ids=[7],
            processed_logprobs=True,
        ),
        n=2,
        priority=-3,
        cache_salt="s",
        constraint=pb.Constraint(choice=pb.Choices(texts=["x", "y"])),
        request_id="r",
    )
    expected.max_queue_time.FromMilliseconds(1500)
    assert message == expected
    # At most one constraint; see below.
    others = {"json_schema", "json_object", "regex", "grammar", "structural_tags", "tag_triggers"}
    assert set(parameters) | others == set(Parameters.__annotations__)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"json_schema": '{"type": "object"}'}, pb.Constraint(json_schema='{"type": "object"}')),
        ({"json_schema": {"type": "object"}}, pb.Constraint(json_schema='{"type": "object"}')),
        ({"regex": "a+"}, pb.Constraint(regex="a+")),
        ({"grammar": "root ::= x"}, pb.Constraint(grammar="root ::= x")),
        ({"json_object": True}, pb.Constraint(json_object=pb.JsonObject())),
        ({"regex": "a", "json_object": False}, pb.Constraint(regex="a")),
        (
            {
                "structural_tags": [
                    Tag("<f>", json_schema={"type": "object"}, end="</f>"),
                    {"begin": "<g>", "regex": "x"},
                ],
                "tag_triggers": ["<"],
            },
            pb.Constraint(
                structural_tags=pb.StructuralTags(
                    tags=[
                        pb.StructuralTag(begin="<f>", json_schema='{"type": "object"}', end="</f>"),
                        pb.StructuralTag(begin="<g>", regex="x"),
                    ],
                    triggers=["<"],
                )
            ),
        ),
    ],
)
def test_constraints(parameters: Parameters, expected: pb.Constraint) -> None:
    assert requests.generation("hi", parameters).constraint == expected


def test_one_stop_string_may_stand_alone() -> None:
    assert list(requests.generation("hi", {"stop": "END"}).stopping.stop_strings) == ["END"]


def test_a_conversation_with_all_of_its_parts() -> None:
    chat = Chat(
        [
            Message("system", "be brief", name="boss"),
            Message("assistant", tool_calls=[ToolCall("c1", "weather", {"city": "Oslo"})], reasoning_content="hm"),
            Message("tool", "rain", tool_call_id="c1"),
        ],
        tools=[Tool("weather", "now", {"type": "object"}), Tool("time")],
        template_arguments={"enable_thinking": False},
        add_generation_prompt=False,
    )
    message = requests.prompt_message(chat, "prompt").chat
    assert [each.role for each in message.messages] == [
        pb.CHAT_ROLE_SYSTEM,
        pb.CHAT_ROLE_ASSISTANT,
        pb.CHAT_ROLE_TOOL,
    ]
    assert message.messages[0].name == "boss"
    assert not message.messages[1].HasField("content")
    assert message.messages[1].tool_calls[0].arguments == '{"city": "Oslo"}'
    assert message.messages[1].reasoning_content == "hm"
    assert message.messages[2].tool_call_id == "c1"
    assert message.tools[0].parameters == '{"type": "object"}'
    assert not message.tools[1].HasField("parameters")
    assert message.template_arguments == '{"enable_thinking": false}'
    assert message.HasField("add_generation_prompt")


def test_messages_alone_are_a_conversation() -> None:
    assert requests.prompt_message([Message("user", "hi")], "prompt").chat.messages[0].content == "hi"


def test_a_conversation_in_the_shape_of_openais_clients_is_the_same() -> None:
    ours = Chat(
        [
            Message("system", "be brief"),
            Message("system", "ein\nzwei", name="boss"),
            Message("user", ""),
            Message("assistant", None, tool_calls=[ToolCall("c1", "get", '{"b": 1.0, "a": 9007199254740993}')]),
            Message("tool", "", tool_call_id="c1"),
            Message("assistant", "", reasoning_content=""),
        ],
        [Tool("get", "gets", {"type": "object", "properties": {"ü": {}}}), Tool("now")],
    )
    call = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": {"b": 1.0, "a": 2**53 + 1}}}
    parts = [{"type": "text", "text": "ein"}, {"type": "text", "text": "zwei"}]
    schema = {"type": "object", "properties": {"ü": {}}}
    theirs = Chat(
        [
            {"role": "developer", "content": "be brief"},
            {"role": "system", "content": parts, "name": "boss"},
            {"role": "user", "content": "", "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
            {"role": "tool", "content": "", "tool_call_id": "c1"},
            {"role": "assistant", "content": "", "reasoning_content": ""},
        ],
        [
            {"type": "function", "function": {"name": "get", "description": "gets", "parameters": schema}},
            {"type": "function", "function": {"name": "now", "parameters": None, "strict": False}},
        ],
    )
    message = requests.prompt_message(theirs, "prompt")
    assert message == requests.prompt_message(ours, "prompt")
    assert [each.HasField("content") for each in message.chat.messages] == [True, True, True, False, True, True]
    assert message.chat.messages[5].HasField("reasoning_content")
    as_text = {**call, "function": {"name": "get", "arguments": '{"b":1e0}'}}
    (sent,) = requests.prompt_message([{"role": "assistant", "tool_calls": [as_text]}], "p").chat.messages
    assert sent.tool_calls[0].arguments == '{"b":1e0}', "text is sent to the letter"


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"content": "x"}, "role"),
        ({"role": "function", "content": "x"}, "role"),
        ({"role": ["user"], "content": "x"}, "role"),
        ({"role": "user", "contents": "x"}, "contents"),
        ({"role": "user", 3: "x"}, "3"),
        ({"role": "user", "content": 3}, "content"),
        ({"role": "user", "content": {"type": "text", "text": "x"}}, "content"),
        ({"role": "user", "content": ["x"]}, "content[0]"),
        (
            {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]},
            "content[1].type",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "cache": 1}]}, "content[0].cache"),
        ({"role": "user", "content": "x", "name": 3}, "name"),
        ({"role": "assistant", "refusal": "no"}, "refusal"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "function_call"),
        ({"role": "assistant", "tool_calls": CALL}, "tool_calls"),
        ({"role": "assistant", "tool_calls": [3]}, "tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}, "tool_calls[0].type"),
        ({"role": "assistant", "tool_calls": [{**CALL, "name": "f"}]}, "tool_calls[0].name"),
        ({"role": "assistant", "tool_calls": [{**CALL, "function": {}}]}, "tool_calls[0].function.name"),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": 3}}]},
            "tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {"a": {1}}}}]},
            "tool_calls[0].arguments.a",
        ),
    ],
)
def test_a_mapping_that_is_no_message_is_refused_with_its_path(message: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests.prompt_message([{"role": "user", "content": "x"}, message], "prompt")
    assert caught.value.field == f"prompt.chat.messages[1].{field}"
    assert caught.value.field in str(caught.value)


@pytest.mark.parametrize(
    ("tool", "field"),
    [
        ("get", ""),
        ({"type": "function"}, ".function"),
        ({"type": "web_search"}, ".type"),
        ({"name": "get"}, ".name"),
        ({"function": {"name": "get", "strict": True}}, ".function.strict"),
        ({"function": {"name": "get", "return": {}}}, ".function.return"),
        ({"function": {"name": "get", "description": 3}}, ".function.description"),
        ({"function": {"name": "get", "parameters": []}}, ".function.parameters"),
    ],
)
def test_a_mapping_that_is_no_tool_is_refused_with_its_path(tool: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests.prompt_message(Chat([Message("user", "x")], [tool]), "prompt")
    assert caught.value.field == f"prompt.chat.tools[0]{field}"


@pytest.mark.parametrize(
    ("prompt", "parameters", "field"),
    [
        ("hi", {"top_k": -1}, "generation.sampling.top_k"),
        ("hi", {"seed": 2**64}, "generation.sampling.seed"),
        ("hi", {"temperature": "warm"}, "generation.sampling.temperature"),
        ("hi", {"min_p": 10**400}, "generation.sampling.min_p"),
        ("hi", {"max_tokens": 1.5}, "generation.stopping.max_tokens"),
        ("hi", {"stop": ["a", 3]}, "generation.stopping.stop_strings"),
        ("hi", {"n": -2}, "generation.n"),
        ("hi", {"max_queue_time_s": float("inf")}, "generation.max_queue_time"),
        ("hi", {"max_queue_time_s": "soon"}, "generation.max_queue_time"),
        ("hi", {"regex": "a", "grammar": "b"}, "generation.constraint"),
        ("hi", {"tag_triggers": ["a"]}, "generation.constraint.structural_tags.triggers"),
        ("hi", {"structural_tags": [{"begin": "a", "x": 1}]}, "generation.constraint.structural_tags.tags[0].x"),
        ("hi", {"structural_tags": [{"begin": 1}]}, "generation.constraint.structural_tags.tags[0].begin"),
        (
            "hi",
            {"structural_tags": [Tag("a", regex="a", json_object=True)]},
            "generation.constraint.structural_tags.tags[0]",
        ),
        ("\ud800", {}, "generation.prompt.text"),
        ([], {}, "generation.prompt"),
        (3, {}, "generation.prompt"),
        ([1, -1], {}, "generation.prompt.token_ids.ids"),
        ([Message("robot", "hi")], {}, "generation.prompt.chat.messages[0].role"),  # type: ignore[arg-type]
        ([Message("user", "hi"), "hi"], {}, "generation.prompt.chat.messages[1]"),
        (
            Chat([Message("user", "x")], template_arguments={"a": object()}),
            {},
            "generation.prompt.chat.template_arguments.a",
        ),
        ("hi", {"json_schema": {"a": [1, float("nan")]}}, "generation.constraint.json_schema.a[1]"),
        ("hi", {"json_schema": {"a": {1: 2}}}, "generation.constraint.json_schema.a"),
        ("hi", {"json_schema": {"a": 10**5000}}, "generation.constraint.json_schema"),
        ("hi", {"json_schema": ITSELF}, "generation.constraint.json_schema"),
    ],
)
def test_what_python_cannot_carry_over_is_named(prompt: object, parameters: Parameters, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests.generation(prompt, parameters)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert field in str(caught.value)


def test_a_misspelled_parameter_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="temprature"):
        requests.generation("hi", {"temprature": 1})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize(
    ("prompts", "count"),
    [
        ("text", None),
        ([1, 2], None),
        ([Message("user", "x")], None),
        (Chat([Message("user", "x")]), None),
        ([], None),
        (["a", "b"], 2),
        (("a",), 1),
        ([[1], [2]], 2),
        ([[Message("user", "x")]], 1),
        ([{"role": "user", "content": "x"}], None),
        ([[{"role": "user", "content": "x"}]], 1),
        ([Chat([Message("user", "x")]), "b"], 2),
    ],
)
def test_one_prompt_or_several(prompts: object, count: int | None) -> None:
    several = requests.several(prompts)
    assert (None if several is None else len(several)) == count


def test_arguments_of_openais_clients_that_are_empty_are_none() -> None:
    """As whoever puts streamed calls together leaves them for a tool without parameters."""
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": ""}}
    message = requests.prompt_message([{"role": "assistant", "content": None, "tool_calls": [call]}], "prompt")
    assert not message.chat.messages[0].tool_calls[0].HasField("arguments")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (None, None),
        ("auto", pb.ToolChoice(auto=pb.AutoToolChoice())),
        ("none", pb.ToolChoice(none=pb.NoToolChoice())),
        ("required", pb.ToolChoice(required=pb.RequiredToolChoice())),
        (NamedTool("f"), pb.ToolChoice(named="f")),
        ({"type": "function", "function": {"name": "f"}}, pb.ToolChoice(named="f")),
    ],
)
def test_what_bears_on_an_answer_reaches_its_field(choice: Any, message: pb.ToolChoice | None) -> None:
    chat = Chat(
        [Message("user", "x")],
        tool_choice=choice,
        parallel_tool_calls=False,
        max_reasoning_tokens=0,
        continue_final_message=True,
        format=ChatFormat("think", "qwen3_coder"),
    )
    expected = pb.Chat(
        messages=[pb.ChatMessage(role=pb.CHAT_ROLE_USER, content="x")],
        tool_choice=message,
        parallel_tool_calls=False,
        max_reasoning_tokens=0,
        continue_final_message=True,
        format=pb.ChatFormat(reasoning=pb.REASONING_FORMAT_THINK, tool_calls=pb.TOOL_CALL_FORMAT_QWEN3_CODER),
    )
    assert requests.prompt_message(chat, "prompt").chat == expected
    assert {field.name for field in pb.Chat.DESCRIPTOR.fields} == {field.name for field in dataclasses.fields(Chat)}


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("prompt.chat.tool_choice", {"tool_choice": "f"}),
        ("prompt.chat.tool_choice", {"tool_choice": 3}),
        ("prompt.chat.tool_choice.function.name", {"tool_choice": {"type": "function", "function": {}}}),
        ("prompt.chat.tool_choice.type", {"tool_choice": {"type": "custom", "function": {"name": "f"}}}),
        ("prompt.chat.format", {"format": "qwen3"}),
        ("prompt.chat.format.reasoning", {"format": ChatFormat("thinking")}),  # type: ignore[arg-type]
        ("prompt.chat.format.tool_calls", {"format": ChatFormat(tool_calls="xml")}),  # type: ignore[arg-type]
        ("prompt.chat.max_reasoning_tokens", {"max_reasoning_tokens": -1}),
        ("prompt.chat.parallel_tool_calls", {"parallel_tool_calls": "no"}),
    ],
)
def test_what_cannot_bear_on_an_answer_is_named(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        requests.prompt_message(Chat([Message("user", "x")], **fields), "prompt")
    assert refused.value.field == field


def test_formats_are_those_of_the_contract() -> None:
    for kind, names in (("reasoning", REASONING_FORMATS), ("tool_calls", TOOL_CALL_FORMATS)):
        enum = pb.ChatFormat.DESCRIPTOR.fields_by_name[kind].enum_type
        prefix = {"reasoning": "REASONING_FORMAT_", "tool_calls": "TOOL_CALL_FORMAT_"}[kind]
        known = [value.name.removeprefix(prefix).lower() for value in enum.values if value.number]
        assert list(names) == known
        for name in names:
            given = ChatFormat(**{kind: name})
            assert format_value(format_message(given, "format")) == given
