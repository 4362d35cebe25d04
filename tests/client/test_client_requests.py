"""From Python arguments to the contract's messages."""

from __future__ import annotations

import pytest

from pagewire.client import Chat, InvalidRequest, Message, Tool, ToolCall, requests
from pagewire.client.prompts import Parameters
from pagewire.v1 import generation_pb2 as pb


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
        "skip_special_tokens": False,
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
        ),
        n=2,
        priority=-3,
        cache_salt="s",
        constraint=pb.Constraint(choice=pb.Choices(texts=["x", "y"])),
        request_id="r",
    )
    expected.max_queue_time.FromMilliseconds(1500)
    assert message == expected
    others = {"json_schema", "regex", "grammar"}  # at most one constraint; see below
    assert set(parameters) | others == set(Parameters.__annotations__)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"json_schema": '{"type": "object"}'}, pb.Constraint(json_schema='{"type": "object"}')),
        ({"json_schema": {"type": "object"}}, pb.Constraint(json_schema='{"type": "object"}')),
        ({"regex": "a+"}, pb.Constraint(regex="a+")),
        ({"grammar": "root ::= x"}, pb.Constraint(grammar="root ::= x")),
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
    assert message.messages[1].tool_calls[0].arguments["city"] == "Oslo"
    assert message.messages[1].reasoning_content == "hm"
    assert message.messages[2].tool_call_id == "c1"
    assert message.tools[0].parameters["type"] == "object"
    assert not message.tools[1].HasField("parameters")
    assert message.template_arguments["enable_thinking"] is False
    assert message.HasField("add_generation_prompt")


def test_messages_alone_are_a_conversation() -> None:
    assert requests.prompt_message([Message("user", "hi")], "prompt").chat.messages[0].content == "hi"


@pytest.mark.parametrize(
    ("prompt", "parameters", "field"),
    [
        ("hi", {"top_k": -1}, "generation.sampling.top_k"),
        ("hi", {"seed": 2**64}, "generation.sampling.seed"),
        ("hi", {"temperature": "warm"}, "generation.sampling.temperature"),
        ("hi", {"max_tokens": 1.5}, "generation.stopping.max_tokens"),
        ("hi", {"stop": ["a", 3]}, "generation.stopping.stop_strings"),
        ("hi", {"n": -2}, "generation.n"),
        ("hi", {"max_queue_time_s": float("inf")}, "generation.max_queue_time"),
        ("hi", {"max_queue_time_s": "soon"}, "generation.max_queue_time"),
        ("hi", {"regex": "a", "grammar": "b"}, "generation.constraint"),
        ("\ud800", {}, "generation.prompt.text"),
        ([], {}, "generation.prompt"),
        (3, {}, "generation.prompt"),
        ([1, -1], {}, "generation.prompt.token_ids.ids"),
        ([Message("robot", "hi")], {}, "generation.prompt.chat.messages[0].role"),  # type: ignore[arg-type]
        ([Message("user", "hi"), "hi"], {}, "generation.prompt.chat.messages[1]"),
        (
            Chat([Message("user", "x")], template_arguments={"a": object()}),
            {},
            "generation.prompt.chat.template_arguments",
        ),
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
        ([Chat([Message("user", "x")]), "b"], 2),
    ],
)
def test_one_prompt_or_several(prompts: object, count: int | None) -> None:
    several = requests.several(prompts)
    assert (None if several is None else len(several)) == count
