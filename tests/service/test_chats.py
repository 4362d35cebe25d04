"""Chats through the whole service: answers whole and streamed, calls that must come, and reasoning to its budget."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from support.service import Service, serve
from support.thinking_model import save_thinking_model

from pagewire.client import (
    Chat,
    ChatFormat,
    Client,
    ContentPart,
    Delta,
    InvalidRequest,
    MalformedCall,
    Message,
    NamedTool,
    Part,
    ReasoningPart,
    Tool,
    ToolCallPart,
)

pytestmark = [pytest.mark.slow, pytest.mark.model]

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"type": "string", "enum": ["metric", "imperial"]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {"get_weather": WEATHER, "now": {"type": "object", "additionalProperties": False}}
TOOLS = [Tool("get_weather", "The weather of a city", WEATHER), Tool("now")]
QUESTION = [Message("user", "What is the weather in Köln?")]
QWEN3 = ChatFormat(reasoning="none", tool_calls="qwen3")


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Client]:
    with (
        serve(model="smollm2-135m", device="cpu", max_model_len=512, max_num_seqs=64) as service,
        Client(service.address) as client,
    ):
        yield client


def joined(parts: list[Part]) -> list[tuple[str, Any]]:
    """What they say together, in order."""
    said: list[tuple[str, Any]] = []
    for part in parts:
        match part:
            case ContentPart() | ReasoningPart():
                kind = type(part).__name__
                if said and said[-1][0] == kind:
                    said[-1] = (kind, said[-1][1] + part.text)
                else:
                    said.append((kind, part.text))
            case ToolCallPart(name=str(name)):
                said.append(("call", [name, part.id, part.arguments]))
            case ToolCallPart():
                said[-1][1][2] += part.arguments
            case MalformedCall():
                said.append(("malformed", part))
    return said


def test_an_answer_is_content_where_nothing_else_is_known(smollm2: Client) -> None:
    assert not smollm2.model().capabilities.tool_calls
    answer = smollm2.chat(QUESTION, temperature=0, max_tokens=30)
    assert answer.message == Message("assistant", answer.text)
    with smollm2.stream(Chat(QUESTION), temperature=0, max_tokens=30) as stream:
        parts = list(stream.parts)
        assert stream.result().outputs == answer.outputs
    assert joined(parts) == [("ContentPart", answer.text)]
    plain = smollm2.chat(QUESTION, temperature=0, max_tokens=30, return_parts=False)
    assert plain.text == answer.text
    assert plain.outputs[0].message is None


def test_a_message_can_be_put_behind_the_others(smollm2: Client) -> None:
    chat = Chat(QUESTION, TOOLS, tool_choice="required", parallel_tool_calls=False, format=QWEN3)
    first = smollm2.generate(chat, temperature=1, seed=2, max_tokens=200)
    (call,) = first.message.tool_calls
    messages = [*QUESTION, first.message, Message("tool", "sunny", tool_call_id=call.id)]  # type: ignore[union-attr]
    assert smollm2.chat(messages, tools=TOOLS, max_tokens=5).message.content


@pytest.mark.parametrize("tool_calls", ["qwen3", "qwen3_coder", "llama3", "mistral", "mistral_args"])
def test_forty_required_calls_of_every_format(smollm2: Client, tool_calls: Any) -> None:
    """Two hundred in all, at temperature 1: every one well-formed, and valid for its schema."""
    chats = [
        Chat(QUESTION, TOOLS, tool_choice=choice, parallel_tool_calls=False, format=ChatFormat("none", tool_calls))
        for choice in ("required", NamedTool("get_weather"))
        for _ in range(20)
    ]
    results = [
        *smollm2.generate(chats[:20], temperature=1, max_tokens=300),
        *smollm2.generate(chats[20:], temperature=1, max_tokens=300),
    ]
    for index, result in enumerate(results):
        assert result.finish_reason == "eos", result
        assert result.outputs[0].malformed_calls == ()
        message = result.message
        assert (message.content, message.reasoning_content) == (None, None)
        (call,) = message.tool_calls
        assert call.name in SCHEMAS if index < 20 else call.name == "get_weather"
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])  # type: ignore[union-attr, arg-type]


def test_a_stream_tells_what_the_whole_answer_is(smollm2: Client) -> None:
    for seed in range(6):
        chat = Chat(QUESTION, TOOLS, tool_choice="required", format=QWEN3)
        whole = smollm2.generate(chat, temperature=1, seed=seed, max_tokens=90)
        with smollm2.stream(chat, temperature=1, seed=seed, max_tokens=90) as stream:
            parts = list(stream.parts)
            result = stream.result()
        assert result.outputs == whole.outputs
        calls = [(call.name, call.id, call.arguments) for call in result.message.tool_calls]  # type: ignore[union-attr]
        told = [tuple(said) for kind, said in joined(parts) if kind == "call"]
        malformed = [said for kind, said in joined(parts) if kind == "malformed"]
        assert [call for index, call in enumerate(told) if index not in {each.index for each in malformed}] == calls
        assert tuple(malformed) == result.outputs[0].malformed_calls
        if result.finish_reason == "length":
            assert malformed[0].reason == "the answer ended inside the call"


def test_a_last_message_is_gone_on_with(smollm2: Client) -> None:
    begun = [*QUESTION, Message("assistant", "The weather in Köln is")]
    answer = smollm2.chat(begun, continue_final_message=True, temperature=0, max_tokens=8)
    prompt = smollm2.tokenize(Chat(begun, continue_final_message=True))
    assert prompt.text is not None
    assert prompt.text.endswith("assistant\nThe weather in Köln is")
    assert smollm2.generate(list(prompt.ids), temperature=0, max_tokens=8).token_ids == answer.token_ids
    assert answer.message.content == answer.text


def test_what_cannot_be_is_refused_by_its_field(smollm2: Client) -> None:
    bad = Tool("f", parameters={"type": "array"})
    with pytest.raises(
        InvalidRequest, match=r"generation\.prompt\.chat has tools\[0\]\.parameters, which is a schema of"
    ):
        smollm2.generate(Chat(QUESTION, [bad], tool_choice="required", format=QWEN3))
    with pytest.raises(InvalidRequest, match=r"format\.tool_calls says it"):
        smollm2.chat(QUESTION, tools=TOOLS, tool_choice=NamedTool("now"))
    with pytest.raises(InvalidRequest, match=r"generation\.constraint\.regex cannot be compiled"):
        smollm2.generate(Chat(QUESTION, TOOLS, format=QWEN3), regex="(")
    with pytest.raises(InvalidRequest, match="</think>, which ends reasoning, is no token of this model"):
        smollm2.generate(Chat(QUESTION, max_reasoning_tokens=5, format=ChatFormat("think")))


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A model that has tokens for the markers, as Qwen3 has."""
    directory = tmp_path_factory.mktemp("thinking")
    save_thinking_model(directory)
    with serve(model=str(directory), device="cpu", dtype="float32", max_model_len=400, max_num_seqs=64) as service:
        yield service


@pytest.mark.parametrize("budget", [0, 1, 7, 40])
def test_reasoning_ends_at_its_budget_to_the_token(thinking: Service, budget: int) -> None:
    with Client(thinking.address) as client:
        assert client.model().capabilities.reasoning
        (end,) = client.tokenize("</think>").ids
        chat = Chat(QUESTION, template_arguments={"enable_thinking": True}, max_reasoning_tokens=budget)
        result = client.generate(chat, n=16, temperature=1, seed=5, max_tokens=60)
        lengths = [output.token_ids.index(end) for output in result.outputs]
        assert max(lengths) == budget
        assert all(length <= budget for length in lengths)
        for output in result.outputs:
            assert output.text is not None
            assert output.message is not None
            reasoning, _, content = output.text.partition("</think>")
            assert (output.message.reasoning_content or "") == reasoning.strip(" \t\r\n")
            assert (output.message.content or "") == content.lstrip(" \t\r\n")


def test_reasoning_may_end_before_its_budget_and_begin_by_itself(thinking: Service) -> None:
    with Client(thinking.address) as client:
        begin, end = (client.tokenize(text).ids[0] for text in ("<think>", "</think>"))
        opened = Chat(QUESTION, template_arguments={"enable_thinking": True}, max_reasoning_tokens=40)
        early = client.generate(opened, logit_bias={end: 60.0}, temperature=1, seed=5, max_tokens=20)
        assert early.token_ids.index(end) < 40
        begins = client.generate(
            Chat(QUESTION, max_reasoning_tokens=6), logit_bias={begin: 100.0}, temperature=1, seed=5, max_tokens=20
        )
        assert begins.token_ids[0] == begin
        assert begins.token_ids.index(end) <= 7
        assert begin not in begins.token_ids[1 : begins.token_ids.index(end)]
        never = client.generate(
            Chat(QUESTION, max_reasoning_tokens=6), logit_bias={begin: -100.0}, temperature=1, seed=5, max_tokens=20
        )
        assert never.message.reasoning_content is None
        assert never.message.content == never.text


def test_content_of_a_schema_comes_after_free_reasoning(thinking: Service) -> None:
    with Client(thinking.address) as client:
        (end,) = client.tokenize("</think>").ids
        chat = Chat(QUESTION, template_arguments={"enable_thinking": True})
        schema = {"type": "array", "items": {"type": "integer"}, "maxItems": 3}
        num_whole = 0
        for seed in range(8):
            result = client.generate(
                chat, json_schema=schema, logit_bias={end: 5.0}, temperature=1, seed=seed, max_tokens=300
            )
            if result.finish_reason == "eos":
                num_whole += 1
                assert result.message.reasoning_content
                jsonschema.validate(json.loads(result.message.content or ""), schema)
        assert num_whole >= 4


def test_a_reader_that_stops_in_mid_answer_leaves_nothing_behind(thinking: Service) -> None:
    with Client(thinking.address) as client, client.stream(Chat(QUESTION), ignore_eos=True) as stream:
        next(event for event in stream if isinstance(event, Delta))
    thinking.wait_for_load(lambda load: load.running_sequences == 0 and load.used_blocks == 0)
