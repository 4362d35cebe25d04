"""Every promise of the contract's comments: what is refused, with which field, and what is accepted."""

import dataclasses
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from support.frontend_world import failure, ids_request, running_frontend, unary, violated_field
from support.tiny_tokenizer import make_tokenizer

from pagewire.scheduler_svc.frontend.errors import InvalidArgument, NotFound
from pagewire.scheduler_svc.frontend.limits import MAX_CHAT_PARTS, MAX_JSON_BYTES, ModelLimits
from pagewire.scheduler_svc.frontend.request.prompt import ChatPrompt
from pagewire.scheduler_svc.frontend.request.validate import resolve_max_tokens, validate_generation
from pagewire.scheduler_svc.frontend.rpc.message_fields import refuse_unknown_fields
from pagewire.scheduler_svc.frontend.text.languages import (
    Choice,
    Grammar,
    JsonObject,
    JsonSchema,
    Regex,
    StructuralTags,
    Tag,
)
from pagewire.scheduler_svc.frontend.text.template_variables import TemplateForms
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2
from pagewire.wire.columns import pack, unpack
from pagewire.wire.launch import Device
from pagewire.wire.logits import LogprobsRequest
from pagewire.wire.logits_check import logits_problem
from pagewire.wire.model import ModelSpec
from pagewire.wire.requests import Submit
from pagewire.wire.sampling import SamplingParams

Run = Callable[[Coroutine[Any, Any, None]], None]
LIMITS = ModelLimits(vocab_size=384, max_model_len=512, max_kv_tokens=400, max_n=4)
HUGE = 3.4e38
WHY_NOT = "has no logits"
ENDS_AT_1 = pb.Stopping(min_tokens=1, stop_token_ids=[1])


def generation(**fields: Any) -> pb.Generation:
    made = pb.Generation(**fields)
    if not made.HasField("prompt"):
        made.prompt.token_ids.ids.extend([1, 2, 3])
    return made


def chat(*messages: pb.ChatMessage, **fields: Any) -> pb.Generation:
    return pb.Generation(prompt=pb.Prompt(chat=pb.Chat(messages=messages, **fields)))


def user(content: str = "hello", **fields: Any) -> pb.ChatMessage:
    return pb.ChatMessage(role=fields.pop("role", pb.CHAT_ROLE_USER), content=content, **fields)


NO_LOGITS = [
    ("sampling.presence_penalty", generation(sampling=pb.Sampling(presence_penalty=-0.5))),
    ("sampling.frequency_penalty", generation(sampling=pb.Sampling(frequency_penalty=0.5))),
    ("sampling.repetition_penalty", generation(sampling=pb.Sampling(repetition_penalty=1.1))),
    ("sampling.logit_bias", generation(sampling=pb.Sampling(logit_bias={3: 0.5}))),
    ("sampling.allowed_token_ids", generation(sampling=pb.Sampling(allowed_token_ids=[3]))),
    ("sampling.banned_token_ids", generation(sampling=pb.Sampling(banned_token_ids=[3]))),
    ("sampling.bad_words", generation(sampling=pb.Sampling(bad_words=["x"]))),
    ("stopping.min_tokens", generation(stopping=ENDS_AT_1)),
    ("output.logprobs", generation(output=pb.Output(logprobs=True))),
    ("output.num_candidates", generation(output=pb.Output(num_candidates=1))),
    ("output.logprob_token_ids", generation(output=pb.Output(logprob_token_ids=[1]))),
    ("output.prompt_logprobs", generation(output=pb.Output(prompt_logprobs=True))),
    ("output.num_prompt_candidates", generation(output=pb.Output(num_prompt_candidates=1))),
    ("constraint", generation(constraint=pb.Constraint(regex="a+"))),
]
"""What a device without logits cannot do."""


def tags(*tags: pb.StructuralTag, **fields: Any) -> pb.Generation:
    return generation(constraint=pb.Constraint(structural_tags=pb.StructuralTags(tags=tags, **fields)))


WRONG_CONSTRAINTS = [
    ("constraint", generation(constraint=pb.Constraint())),
    ("stopping.ignore_eos", generation(constraint=pb.Constraint(regex="a"), stopping=pb.Stopping(ignore_eos=True))),
    ("constraint.json_schema", generation(constraint=pb.Constraint(json_schema=""))),
    ("constraint.json_schema", generation(constraint=pb.Constraint(json_schema="x" * 131_073))),
    ("constraint.grammar", generation(constraint=pb.Constraint(grammar=""))),
    ("constraint.regex", generation(constraint=pb.Constraint(regex="ü(" * 501))),
    ("constraint.json_schema", generation(constraint=pb.Constraint(json_schema='{"a":[' * 251))),
    ("constraint.structural_tags.tags[0].regex", tags(pb.StructuralTag(begin="x", regex="[" * 501))),
    ("constraint.choice.texts", generation(constraint=pb.Constraint(choice=pb.Choices()))),
    ("constraint.choice.texts", generation(constraint=pb.Constraint(choice=pb.Choices(texts=["x"] * 4097)))),
    ("constraint.choice.texts[1]", generation(constraint=pb.Constraint(choice=pb.Choices(texts=["x", ""])))),
    ("constraint.structural_tags.tags", tags()),
    ("constraint.structural_tags.tags", tags(*[pb.StructuralTag(begin="x", regex="x")] * 257)),
    ("constraint.structural_tags.tags[0].begin", tags(pb.StructuralTag(regex="x"))),
    ("constraint.structural_tags.tags[0]", tags(pb.StructuralTag(begin="x"))),
    ("constraint.structural_tags.tags[0].grammar", tags(pb.StructuralTag(begin="x", grammar=""))),
    ("constraint.structural_tags.tags[0].begin", tags(pb.StructuralTag(begin="x", regex="x"), triggers=["y"])),
    ("constraint.structural_tags.triggers[0]", tags(pb.StructuralTag(begin="x", regex="x"), triggers=[""])),
]

OUT_OF_RANGE = [
    *WRONG_CONSTRAINTS,
    ("prompt", pb.Generation()),
    ("prompt", pb.Generation(prompt=pb.Prompt())),
    ("prompt.token_ids.ids", pb.Generation(prompt=pb.Prompt(token_ids=pb.TokenIds()))),
    ("prompt.token_ids.ids[1]", pb.Generation(prompt=pb.Prompt(token_ids=pb.TokenIds(ids=[1, 384])))),
    ("prompt.token_ids.ids[0]", pb.Generation(prompt=pb.Prompt(token_ids=pb.TokenIds(ids=[2**32 - 1])))),
    ("prompt.token_ids.ids", pb.Generation(prompt=pb.Prompt(token_ids=pb.TokenIds(ids=[1] * 400)))),
    ("sampling.temperature", generation(sampling=pb.Sampling(temperature=-0.1))),
    ("sampling.temperature", generation(sampling=pb.Sampling(temperature=100.1))),
    ("sampling.temperature", generation(sampling=pb.Sampling(temperature=math.nan))),
    ("sampling.temperature", generation(sampling=pb.Sampling(temperature=math.inf))),
    ("sampling.temperature", generation(sampling=pb.Sampling(temperature=HUGE))),
    ("sampling.top_p", generation(sampling=pb.Sampling(top_p=0))),
    ("sampling.top_p", generation(sampling=pb.Sampling(top_p=1.01))),
    ("sampling.top_p", generation(sampling=pb.Sampling(top_p=math.nan))),
    ("sampling.top_p", generation(sampling=pb.Sampling(top_p=-math.inf))),
    ("sampling.min_p", generation(sampling=pb.Sampling(min_p=-0.1))),
    ("sampling.min_p", generation(sampling=pb.Sampling(min_p=1.01))),
    ("sampling.min_p", generation(sampling=pb.Sampling(min_p=math.nan))),
    *(
        (f"sampling.{name}", generation(sampling=pb.Sampling(**{name: value})))
        for name, values in {
            "presence_penalty": (-2.001, 2.001, math.nan, HUGE),
            "frequency_penalty": (-2.001, 2.001, math.inf, -HUGE),
            "repetition_penalty": (0, -0.0, 0.0099, 100.001, -1, math.nan, math.inf),
        }.items()
        for value in values
    ),
    ("sampling.logit_bias[384]", generation(sampling=pb.Sampling(logit_bias={384: 1}))),
    ("sampling.logit_bias[4294967295]", generation(sampling=pb.Sampling(logit_bias={1: 1, 2**32 - 1: 0}))),
    ("sampling.logit_bias[7]", generation(sampling=pb.Sampling(logit_bias={3: -100, 7: 100.001}))),
    ("sampling.logit_bias[7]", generation(sampling=pb.Sampling(logit_bias={7: -math.inf}))),
    ("sampling.logit_bias[7]", generation(sampling=pb.Sampling(logit_bias={7: math.nan}))),
    ("sampling.logit_bias", generation(sampling=pb.Sampling(logit_bias=dict.fromkeys(range(1025), 1.0)))),
    ("sampling.allowed_token_ids[1]", generation(sampling=pb.Sampling(allowed_token_ids=[1, 384]))),
    ("sampling.allowed_token_ids", generation(sampling=pb.Sampling(allowed_token_ids=[1] * 385))),
    ("sampling.allowed_token_ids", generation(sampling=pb.Sampling(allowed_token_ids=[1, 2], banned_token_ids=[2, 1]))),
    (
        "sampling.allowed_token_ids",
        generation(sampling=pb.Sampling(allowed_token_ids=[1, 2], banned_token_ids=[2]), stopping=ENDS_AT_1),
    ),
    ("sampling.banned_token_ids[0]", generation(sampling=pb.Sampling(banned_token_ids=[2**32 - 1]))),
    ("sampling.banned_token_ids", generation(sampling=pb.Sampling(banned_token_ids=[1] * 100_000))),
    ("sampling.bad_words", generation(sampling=pb.Sampling(bad_words=["x"] * 129))),
    ("sampling.bad_words[1]", generation(sampling=pb.Sampling(bad_words=["x", ""]))),
    ("sampling.bad_words[0]", generation(sampling=pb.Sampling(bad_words=["ü" * 129]))),
    ("stopping.min_tokens", generation(stopping=pb.Stopping(min_tokens=400))),
    ("stopping.min_tokens", generation(stopping=pb.Stopping(min_tokens=2**32 - 1))),
    ("stopping.min_tokens", generation(stopping=pb.Stopping(min_tokens=8, max_tokens=7))),
    ("output.num_candidates", generation(output=pb.Output(num_candidates=21))),
    ("output.num_candidates", generation(output=pb.Output(num_candidates=2**32 - 1))),
    ("output.num_prompt_candidates", generation(output=pb.Output(num_prompt_candidates=21))),
    ("output.logprob_token_ids", generation(output=pb.Output(logprob_token_ids=[1] * 129))),
    ("output.logprob_token_ids[1]", generation(output=pb.Output(logprob_token_ids=[1, 384]))),
    ("stopping.max_tokens", generation(stopping=pb.Stopping(max_tokens=0))),
    ("stopping.max_tokens", generation(stopping=pb.Stopping(max_tokens=400))),
    ("stopping.stop_strings", generation(stopping=pb.Stopping(stop_strings=["x"] * 17))),
    ("stopping.stop_strings[1]", generation(stopping=pb.Stopping(stop_strings=["x", ""]))),
    ("stopping.stop_strings[0]", generation(stopping=pb.Stopping(stop_strings=["ü" * 129]))),
    ("stopping.stop_token_ids", generation(stopping=pb.Stopping(stop_token_ids=[1] * 65))),
    ("stopping.stop_token_ids[0]", generation(stopping=pb.Stopping(stop_token_ids=[384]))),
    ("n", generation(n=0)),
    ("n", generation(n=5)),
    ("priority", generation(priority=101)),
    ("priority", generation(priority=-101)),
    ("cache_salt", generation(cache_salt="ü" * 129)),
    ("max_queue_time", generation(max_queue_time=Duration())),
    ("max_queue_time", generation(max_queue_time=Duration(seconds=-1))),
    ("max_queue_time", generation(max_queue_time=Duration(seconds=86400, nanos=1))),
    ("request_id", generation(request_id="")),
    ("request_id", generation(request_id="a b")),
    ("request_id", generation(request_id="x" * 129)),
    ("request_id", generation(request_id="tcp://10.0.0.1\n")),
    ("prompt.chat.messages", chat()),
    ("prompt.chat.messages", chat(*[user()] * 4097)),
    ("prompt.chat.messages[0].role", chat(user(role=pb.CHAT_ROLE_UNSPECIFIED))),
    ("prompt.chat.messages[1].role", chat(user(), user(role=17))),
    ("prompt.chat.messages[0].content", chat(pb.ChatMessage(role=pb.CHAT_ROLE_USER))),
    ("prompt.chat.messages[0].content", chat(pb.ChatMessage(role=pb.CHAT_ROLE_TOOL))),
    ("prompt.chat.messages[0].content", chat(pb.ChatMessage(role=pb.CHAT_ROLE_ASSISTANT))),
    ("prompt.chat.messages[0].tool_calls", chat(user(tool_calls=[pb.ToolCall(name="f")]))),
    ("prompt.chat.messages[0].tool_calls[0].name", chat(user(role=pb.CHAT_ROLE_ASSISTANT, tool_calls=[pb.ToolCall()]))),
    ("prompt.chat.messages[0].tool_call_id", chat(user(tool_call_id="x"))),
    ("prompt.chat.messages[0].reasoning_content", chat(user(reasoning_content="x"))),
    ("prompt.chat.tools[0].name", chat(user(), tools=[pb.Tool()])),
    ("prompt.chat", chat(user(), tools=[pb.Tool(name="f")] * (MAX_CHAT_PARTS + 1))),
    ("prompt.chat.tools[0].parameters", chat(user(), tools=[pb.Tool(name="f", parameters="x" * (MAX_JSON_BYTES + 1))])),
    ("prompt.chat.template_arguments", chat(user(), template_arguments="ü" * (MAX_JSON_BYTES // 2 + 1))),
]


@pytest.mark.parametrize(("field", "request_"), OUT_OF_RANGE)
def test_a_refusal_names_its_field(spec: ModelSpec, field: str, request_: pb.Generation) -> None:
    with pytest.raises(InvalidArgument) as refused:
        validate_generation(request_, spec, LIMITS)
    assert refused.value.field == f"generation.{field}"
    assert refused.value.message.startswith(refused.value.field)


def test_every_field_of_a_generation_is_read_or_refused(spec: ModelSpec) -> None:
    """A field that is added to the contract must come into this list, and so into a decision."""
    decided = {field.split(".")[0] for field, _ in OUT_OF_RANGE} | {"model", "sampling", "stopping", "output"}
    assert {field.name for field in pb.Generation.DESCRIPTOR.fields} == {name.split("[")[0] for name in decided}
    read = {
        "Sampling": {"temperature", "top_k", "top_p", "seed", "min_p"},
        "Stopping": {"max_tokens", "stop_strings", "stop_token_ids", "ignore_eos", "include_stop"},
        "Output": {"text", "token_ids", "skip_special_tokens", "processed_logprobs", "parts"},
    }
    needs_logits = {field.split(".")[1] for field, _ in NO_LOGITS if "." in field}
    for message in (pb.Sampling, pb.Stopping, pb.Output):
        names = {field.name for field in message.DESCRIPTOR.fields}
        assert names == read[message.DESCRIPTOR.name] | (names & needs_logits)
        assert not read[message.DESCRIPTOR.name] & needs_logits


@pytest.mark.parametrize(("field", "request_"), NO_LOGITS)
def test_a_device_without_logits_refuses_what_needs_them(spec: ModelSpec, field: str, request_: pb.Generation) -> None:
    validate_generation(request_, spec, LIMITS)
    with pytest.raises(InvalidArgument, match=WHY_NOT) as refused:
        validate_generation(request_, spec, dataclasses.replace(LIMITS, no_logits=WHY_NOT))
    assert refused.value.field == f"generation.{field}"


@pytest.mark.parametrize("device", ["cpu", "sim", "cuda"])
def test_a_model_s_default_that_needs_logits_is_dropped_without_them(
    spec: ModelSpec, run: Run, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        sampling = SamplingParams(repetition_penalty=1.5, top_k=5)
        async with running_frontend(msgspec.structs.replace(spec, sampling=sampling), device=device) as world:
            call = world.inference.StreamGenerate(ids_request())
            submit = await world.engine.act(Submit)
            call.cancel()
            kept = 1.0 if device == "sim" else 1.5
            assert (submit.sampling.repetition_penalty, submit.sampling.top_k) == (kept, 5)

    run(test())
    assert ("penalties are not applied" in caplog.text) == (device == "sim")


def test_values_that_ask_for_nothing_are_accepted(spec: ModelSpec) -> None:
    neutral = generation(
        model="tiny",
        sampling=pb.Sampling(
            min_p=0,
            presence_penalty=-0.0,
            frequency_penalty=0,
            repetition_penalty=1,
            top_k=10**9,
            top_p=1,
            logit_bias={3: 0.0, 4: -0.0},
        ),
        stopping=pb.Stopping(min_tokens=0, max_tokens=399, stop_strings=["x" * 256] * 16, stop_token_ids=[383] * 64),
        output=pb.Output(logprobs=False, num_candidates=0, prompt_logprobs=False, num_prompt_candidates=0),
        n=4,
        priority=-100,
        cache_salt="x" * 256,
        max_queue_time=Duration(seconds=86400),
        request_id="x" * 128,
    )
    valid = validate_generation(neutral, spec, LIMITS)
    assert (valid.n, valid.priority, valid.sampling.top_k, valid.max_tokens) == (4, -100, 0, 399)
    assert (valid.controls, valid.bad_words, valid.logprobs, valid.prompt_logprobs) == (None, (), None, None)
    assert not valid.sampling.needs_history
    assert math.copysign(1, valid.sampling.presence_penalty) == 1


def test_what_is_asked_of_logits_becomes_the_wire_s_record(spec: ModelSpec) -> None:
    valid = validate_generation(
        generation(
            sampling=pb.Sampling(
                repetition_penalty=0.01,
                presence_penalty=-2,
                frequency_penalty=2,
                logit_bias={383: 100, 9: -100, 11: 0},
                allowed_token_ids=[7, 5, 7],
                banned_token_ids=[383, 383],
                bad_words=["x" * 256] * 128,
            ),
            stopping=pb.Stopping(min_tokens=5, max_tokens=5, stop_token_ids=[8, 6]),
            output=pb.Output(num_candidates=20, logprob_token_ids=[383, 1, 383], processed_logprobs=True),
        ),
        spec,
        LIMITS,
    )
    controls = valid.controls
    assert controls is not None
    assert unpack(controls.bias_ids).tolist() == [9, 383]
    assert np.frombuffer(controls.bias_values, "<f4").tolist() == [-100, 100]
    assert unpack(controls.allowed_ids).tolist() == [5, 7]
    assert unpack(controls.banned_ids).tolist() == [383]
    assert (controls.min_tokens, unpack(controls.end_ids).tolist()) == (5, sorted({6, 8, *spec.eos_token_ids}))
    assert logits_problem(controls, valid.logprobs, valid.prompt_logprobs, LIMITS.vocab_size) is None
    assert valid.sampling.problem() is None
    assert valid.logprobs == LogprobsRequest(20, pack([383, 1, 383]), True)
    assert not valid.want_logprobs
    ignoring = generation(stopping=pb.Stopping(min_tokens=5, ignore_eos=True))
    assert validate_generation(ignoring, spec, LIMITS).controls is None, "nothing would end it"


def test_unset_fields_get_their_documented_defaults(spec: ModelSpec) -> None:
    valid = validate_generation(generation(), spec, LIMITS)
    assert (valid.sampling.temperature, valid.sampling.top_k, valid.sampling.top_p) == (1.0, 0, 1.0)
    assert (valid.n, valid.priority, valid.seed, valid.max_tokens) == (1, 0, None, None)
    assert (valid.want_text, valid.want_token_ids, valid.skip_special_tokens) == (True, True, True)
    assert (valid.ignore_eos, valid.include_stop, valid.cache_salt, valid.max_queue_time_s) == (
        False,
        False,
        None,
        None,
    )


def test_prompt_and_output_must_fit_together() -> None:
    assert resolve_max_tokens(None, 100, LIMITS) == 300
    assert resolve_max_tokens(300, 100, LIMITS) == 300
    with pytest.raises(InvalidArgument, match=r"is 301; with a prompt of 100 tokens at most 300 fit") as refused:
        resolve_max_tokens(301, 100, LIMITS)
    assert refused.value.field == "generation.stopping.max_tokens"


def test_another_models_name_is_not_found(spec: ModelSpec) -> None:
    with pytest.raises(NotFound, match="gpt"):
        validate_generation(generation(model="gpt"), spec, LIMITS)


def test_chat_becomes_the_variables_that_templates_expect(spec: ModelSpec) -> None:
    calling = pb.ChatMessage(role=pb.CHAT_ROLE_ASSISTANT)
    calling.tool_calls.add(id="1", name="get", arguments='{"days": 2}')
    calling.tool_calls.add(name="now")
    request = chat(
        user("", role=pb.CHAT_ROLE_SYSTEM),
        user("weather?", name="ann"),
        calling,
        user("", role=pb.CHAT_ROLE_TOOL, tool_call_id="1"),
        user("It rains.", role=pb.CHAT_ROLE_ASSISTANT, reasoning_content="hm"),
        tools=[pb.Tool(name="get", description="gets", parameters='{"type": "object", "a": [true, null]}')],
        template_arguments='{"enable_thinking": false}',
        add_generation_prompt=False,
    )
    prompt = validate_generation(request, spec, LIMITS).prompt
    assert isinstance(prompt, ChatPrompt)
    variables = next(TemplateForms(prompt.variables).forms(asks_for_none=True))
    calls = [
        {"id": "1", "type": "function", "function": {"name": "get", "arguments": {"days": 2}}},
        {"type": "function", "function": {"name": "now", "arguments": {}}},
    ]
    parameters = {"type": "object", "a": [True, None]}
    assert variables == {
        "messages": [
            {"role": "system", "content": ""},
            {"role": "user", "content": "weather?", "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "", "tool_call_id": "1"},
            {"thinking": "hm", "role": "assistant", "content": "It rains.", "reasoning_content": "hm"},
        ],
        "tools": [{"type": "function", "function": {"name": "get", "description": "gets", "parameters": parameters}}],
        "documents": None,
        "enable_thinking": False,
        "add_generation_prompt": False,
        "eos_token": "<|im_end|>",
    }


@pytest.mark.parametrize(
    ("path", "unknown"),
    [
        ("", b"\xfa\x01\x01x"),  # field 31
        ("generation", b"\xfa\x01\x01x"),
        ("generation.sampling", b"\xfa\x01\x01x"),
        ("generation.prompt.chat.messages[1]", b"\xfa\x01\x01x"),
    ],
)
def test_a_field_that_the_server_does_not_know_is_refused(path: str, unknown: bytes) -> None:
    request = inference_pb2.GenerateRequest(generation=chat(user(), user()))
    part: Any = request
    for name in filter(None, path.split(".")):
        part = getattr(part, name.removesuffix("[1]"))
        part = part[1] if name.endswith("]") else part
    refuse_unknown_fields(request)
    part.MergeFromString(unknown)
    with pytest.raises(InvalidArgument) as refused:
        refuse_unknown_fields(request)
    assert refused.value.field == f"{path}.31".removeprefix(".")


def test_a_field_that_nobody_knows_is_not_looked_for_through_a_million_messages() -> None:
    request = chat(*[user("")] * 300_000)
    request.prompt.chat.messages.add().MergeFromString(b"\xfa\x01\x01x")
    began_s = time.process_time()
    with pytest.raises(InvalidArgument) as refused:
        refuse_unknown_fields(request)
    assert refused.value.field == "the request"
    assert time.process_time() - began_s < 1  # 3 s where every message was walked


def test_refusals_over_grpc_disturb_no_other_stream(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            kept = world.inference.StreamGenerate(ids_request())
            submit = await world.engine.act(Submit)
            await world.engine.start(submit.handle)
            for field, request in NO_LOGITS:
                call = world.inference.StreamGenerate(inference_pb2.StreamGenerateRequest(generation=request))
                assert violated_field(await failure(call)) == f"generation.{field}"
            long = "x" * 3000
            error = await failure(world.inference.Generate(unary(ids_request(request_id=long, model=long))))
            assert error.code() is grpc.StatusCode.NOT_FOUND
            await world.engine.answer(submit.handle, [40])
            assert await kept.read() is not grpc.aio.EOF
            assert len(world.engine.submits) == 1

    run(test())


def test_prompts_that_leave_no_room_are_refused_with_the_numbers(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec, num_blocks=4, block_size=8) as world:  # 32 tokens of KV
            request = ids_request()
            request.generation.prompt.text = "abc " * 100
            error = await failure(world.inference.Generate(unary(request)))
            assert violated_field(error) == "generation.prompt.text"
            num_tokens = len(make_tokenizer().encode("abc " * 100).ids)
            assert f"gives {num_tokens} tokens" in (error.details() or "")
            assert "32 tokens" in (error.details() or "")
            request.generation.prompt.text = ""
            assert violated_field(await failure(world.inference.Generate(unary(request)))) == "generation.prompt.text"
            call = world.inference.StreamGenerate(ids_request(*[1] * 30))
            assert (await world.engine.act(Submit)).max_tokens == 2
            call.cancel()

    run(test())


def test_salts_differ_unless_tenant_and_salt_are_equal(spec: ModelSpec, run: Run, tmp_path: Any) -> None:
    async def test() -> None:
        keys = tmp_path / "keys"
        keys.write_text("# tenants\nann:0123456789abcdef\nbob:fedcba9876543210\n")
        async with running_frontend(spec, api_keys_file=str(keys)) as world:
            salts = []
            for tenant, key in (("ann", "0123456789abcdef"), ("bob", "fedcba9876543210")):
                for salt in (None, "", "x", "x"):
                    request = ids_request() if salt is None else ids_request(cache_salt=salt)
                    call = world.inference.StreamGenerate(request, metadata=[("authorization", f"Bearer {key}")])
                    submit = await world.engine.act(Submit)
                    assert unpack(submit.prompt).tolist() == [1, 2, 3]
                    salts.append(submit.salt)
                    assert submit.tenant == tenant
                    await world.engine.answer(submit.handle, [40])
                    while await call.read() is not grpc.aio.EOF:
                        pass
            assert {len(salt) for salt in salts} == {32}
            assert len(set(salts)) == 6
            assert salts[2] == salts[3]
            assert salts[6] == salts[7]

    run(test())


def test_a_value_just_outside_is_shown_as_such(spec: ModelSpec) -> None:
    with pytest.raises(InvalidArgument, match=r"is 1\.00000012; its range is 0 to 1"):
        validate_generation(generation(sampling=pb.Sampling(min_p=1.0000001)), spec, LIMITS)


def test_each_kind_of_constraint_becomes_a_language(spec: ModelSpec) -> None:
    def language(**kind: Any) -> object:
        return validate_generation(generation(constraint=pb.Constraint(**kind)), spec, LIMITS).language

    assert language(json_schema="{}") == JsonSchema("{}")
    assert language(json_object=pb.JsonObject()) == JsonObject()
    assert language(regex="") == Regex("")
    assert language(grammar="start: x") == Grammar("start: x")
    assert language(choice=pb.Choices(texts=["b", "a"])) == Choice(("b", "a"))
    named = [pb.StructuralTag(begin="<f=a>", regex="x", end="</f>"), pb.StructuralTag(begin="<g>", grammar="start: y")]
    assert language(structural_tags=pb.StructuralTags(tags=named, triggers=["<g", "<f=", "<f=a"])) == StructuralTags(
        (Tag("<f=", "<f=a>", Regex("x"), "</f>"), Tag("<g", "<g>", Grammar("start: y"), ""))
    )
    assert language(structural_tags=pb.StructuralTags(tags=named[1:])) == StructuralTags(
        (Tag("<g>", "<g>", Grammar("start: y"), ""),)
    )


@pytest.mark.parametrize("change", [{"tokenizer_file": None}, {"eos_token_ids": ()}])
def test_a_model_that_cannot_end_or_write_a_text_has_no_constraints(spec: ModelSpec, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        validate_generation(
            generation(constraint=pb.Constraint(regex="a")), msgspec.structs.replace(spec, **change), LIMITS
        )
    assert refused.value.field == "generation.constraint"
