"""vLLM's gRPC service, called with its own stock stub against real services: the same engine, in other words."""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from smg_grpc_proto import vllm_engine_pb2 as vllm
from smg_grpc_proto import vllm_engine_pb2_grpc
from smg_grpc_proto.generated import common_pb2
from support.service import LIMIT_S, Service, generation, serve

from pagewire.v1 import admin_pb2, inference_pb2, model_pb2, model_pb2_grpc
from pagewire.v1 import generation_pb2 as pb

pytestmark = pytest.mark.slow

PROMPT = "The capital of France is"
LONG = {"max_tokens": 3900, "ignore_eos": True}


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Service]:
    with serve(model="smollm2-135m", device="cpu", max_num_seqs=8, vllm_grpc=True) as service:
        yield service


@pytest.fixture(scope="module")
def sim() -> Iterator[Service]:
    with serve(vllm_grpc=True, sim_step_us=10_000) as service:
        yield service


def stub(service: Service) -> Any:
    return vllm_engine_pb2_grpc.VllmEngineStub(service.channel)


def request(*, stream: bool = True, ids: list[int] | None = None, name: str = "", **params: Any) -> Any:
    made = vllm.GenerateRequest(request_id=name, stream=stream, sampling_params=vllm.SamplingParams(**params))
    if ids is None:
        made.text = PROMPT
    else:
        made.tokenized.input_ids.extend(ids)
        made.tokenized.original_text = "for whoever debugs"
    return made


def answers(service: Service, asked: Any) -> list[Any]:
    return list(stub(service).Generate(asked, timeout=LIMIT_S))


def ours(service: Service, **fields: Any) -> inference_pb2.GenerateResponse:
    """The same by our own service."""
    asked = generation(text=PROMPT, **fields)
    answer: inference_pb2.GenerateResponse = service.inference.Generate(
        inference_pb2.GenerateRequest(generation=asked), timeout=LIMIT_S
    )
    return answer


def refusal(call: Any) -> tuple[grpc.StatusCode, str, str]:
    """The status of a call, the field that it names and its message."""
    with pytest.raises(grpc.RpcError) as failed:
        list(call) if hasattr(call, "__iter__") else call()
    status = rpc_status.from_call(failed.value)
    bad = error_details_pb2.BadRequest()
    is_told = status is not None and status.details and status.details[0].Unpack(bad)
    return failed.value.code(), bad.field_violations[0].field if is_told else "", failed.value.details()


@pytest.mark.model
@pytest.mark.parametrize("stream", [True, False])
def test_the_same_tokens_as_our_own_service(smollm2: Service, stream: bool) -> None:
    drawn = {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "min_p": 0.01, "seed": 7}
    penalized = {
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "repetition_penalty": 1.1,
        "logit_bias": {7042: -5.0},
    }
    for params in ({"temperature": 0.0}, drawn, drawn | penalized):
        expected = ours(smollm2, sampling=params, stopping={"max_tokens": 12})
        ids = [token.id for token in expected.outputs[0].tokens]
        got = answers(smollm2, request(stream=stream, max_tokens=12, **params))
        complete = got[-1].complete
        assert list(complete.output_ids) == ids
        assert (complete.completion_tokens, complete.prompt_tokens) == (len(ids), expected.usage.prompt_tokens)
        chunks = [each.chunk for each in got if each.HasField("chunk")]
        assert [each.WhichOneof("response") for each in got] == ["chunk"] * len(chunks) + ["complete"]
        assert bool(chunks) == stream
        if stream:
            assert [token for chunk in chunks for token in chunk.token_ids] == ids
            assert sum(chunk.completion_tokens for chunk in chunks) == len(ids)


@pytest.mark.model
def test_a_prompt_of_ids_is_the_prompt(smollm2: Service) -> None:
    tokenized = inference_pb2.TokenizeRequest(prompt=pb.Prompt(text=PROMPT))
    ids = list(smollm2.inference.Tokenize(tokenized).ids)
    by_text = answers(smollm2, request(temperature=0, max_tokens=5))[-1].complete
    by_ids = answers(smollm2, request(ids=ids, temperature=0, max_tokens=5))[-1].complete
    assert by_ids.output_ids == by_text.output_ids


@pytest.mark.model
def test_how_outputs_end(smollm2: Service) -> None:
    by_length = answers(smollm2, request(temperature=0, max_tokens=3))[-1].complete
    assert (by_length.finish_reason, by_length.WhichOneof("matched_stop")) == ("length", None)
    by_string = answers(smollm2, request(temperature=0, max_tokens=20, stop=["The"]))[-1].complete
    assert (by_string.finish_reason, by_string.matched_stop_str) == ("stop", "The")
    third = by_length.output_ids[2]
    by_id = answers(smollm2, request(temperature=0, max_tokens=20, stop_token_ids=[third]))[-1].complete
    assert (by_id.finish_reason, by_id.matched_token_id) == ("stop", third)
    assert list(by_id.output_ids) == list(by_length.output_ids)
    held = answers(smollm2, request(temperature=0, max_tokens=20, min_tokens=6, stop_token_ids=[third]))[-1].complete
    assert len(held.output_ids) >= 6
    chat = pb.Chat(messages=[pb.ChatMessage(role=pb.CHAT_ROLE_USER, content="What is the capital of France?")])
    ids = list(smollm2.inference.Tokenize(inference_pb2.TokenizeRequest(prompt=pb.Prompt(chat=chat))).ids)
    by_eos = answers(smollm2, request(ids=ids, temperature=0, max_tokens=30))[-1].complete
    assert (by_eos.finish_reason, by_eos.WhichOneof("matched_stop")) == ("stop", None)
    text = smollm2.inference.Detokenize(inference_pb2.DetokenizeRequest(ids=by_eos.output_ids)).text
    assert text == "The capital of France is Paris."


@pytest.mark.model
@pytest.mark.parametrize("stream", [True, False])
def test_log_probabilities(smollm2: Service, stream: bool) -> None:
    wanted = pb.Output(logprobs=True, num_candidates=3, prompt_logprobs=True, num_prompt_candidates=2)
    expected = ours(smollm2, sampling={"temperature": 0.0}, stopping={"max_tokens": 6}, output=wanted)
    got = answers(smollm2, request(stream=stream, temperature=0, max_tokens=6, logprobs=3, prompt_logprobs=2))
    parts = [each.chunk for each in got if each.HasField("chunk")] if stream else [got[-1].complete]
    tokens = expected.outputs[0].tokens
    reports = [part.output_logprobs for part in parts]
    assert [id_ for report in reports for id_ in report.token_ids] == [token.id for token in tokens]
    assert [value for report in reports for value in report.token_logprobs] == [token.logprob for token in tokens]
    top = [(list(each.token_ids), list(each.values)) for report in reports for each in report.top_logprobs]
    assert top == [([c.id for c in token.candidates], [c.logprob for c in token.candidates]) for token in tokens]
    prompt = parts[0].input_logprobs
    assert list(prompt.token_ids) == [token.id for token in expected.prompt_tokens]
    assert not prompt.token_logprobs[0].HasField("value")
    assert [each.value for each in prompt.token_logprobs[1:]] == [each.logprob for each in expected.prompt_tokens[1:]]
    assert [list(each.token_ids) for each in prompt.top_logprobs] == [
        [candidate.id for candidate in token.candidates] for token in expected.prompt_tokens
    ]
    assert not any(part.HasField("input_logprobs") for part in parts[1:])
    if stream:
        assert not got[-1].complete.HasField("output_logprobs")
    chosen_alone = answers(smollm2, request(stream=False, temperature=0, max_tokens=2, logprobs=0))[-1].complete
    assert len(chosen_alone.output_logprobs.token_logprobs) == 2
    assert not chosen_alone.output_logprobs.top_logprobs


@pytest.mark.model
@pytest.mark.parametrize("stream", [True, False])
def test_several_outputs(smollm2: Service, stream: bool) -> None:
    expected = ours(smollm2, n=3, sampling={"seed": 5, "temperature": 1.0}, stopping={"max_tokens": 6})
    got = answers(smollm2, request(stream=stream, n=3, seed=5, max_tokens=6))
    completes = {each.complete.index: list(each.complete.output_ids) for each in got if each.HasField("complete")}
    assert completes == {i: [token.id for token in output.tokens] for i, output in enumerate(expected.outputs)}
    for index in range(3 * stream):
        pieces = [each.chunk for each in got if each.HasField("chunk") and each.chunk.index == index]
        assert [token for piece in pieces for token in piece.token_ids] == completes[index]


@pytest.mark.model
@pytest.mark.parametrize(
    ("constraint", "possible"),
    [
        ({"choice": vllm.ChoiceConstraint(choices=["yes", "no"])}, {"yes", "no"}),
        ({"regex": "[ab]c"}, {"ac", "bc"}),
        ({"grammar": 'root ::= "x" | "y"'}, {"x", "y"}),
        ({"json_schema": '{"enum": [1, 2]}'}, {"1", "2"}),
    ],
)
def test_constraints(smollm2: Service, constraint: dict[str, Any], possible: set[str]) -> None:
    complete = answers(smollm2, request(temperature=0, max_tokens=16, grammar_from_first_token=True, **constraint))[-1]
    ids = complete.complete.output_ids
    assert smollm2.inference.Detokenize(inference_pb2.DetokenizeRequest(ids=ids)).text in possible


@pytest.mark.model
def test_a_json_object(smollm2: Service) -> None:
    first = answers(smollm2, request(temperature=0, max_tokens=4, json_object=True))[-1].complete.output_ids
    assert smollm2.inference.Detokenize(inference_pb2.DetokenizeRequest(ids=first)).text.lstrip().startswith("{")


@pytest.mark.model
def test_the_tokenizer_is_the_models(smollm2: Service) -> None:
    chunks = list(stub(smollm2).GetTokenizer(common_pb2.GetTokenizerRequest(), timeout=LIMIT_S))
    packed = b"".join(chunk.data for chunk in chunks)
    assert [chunk.sha256 for chunk in chunks] == [""] * (len(chunks) - 1) + [hashlib.sha256(packed).hexdigest()]
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        definition = archive.read("tokenizer.json")
    model = model_pb2_grpc.ModelServiceStub(smollm2.channel).GetModel(model_pb2.GetModelRequest()).model
    assert hashlib.sha256(definition).hexdigest() in model.tokenizer_digest


@pytest.mark.model
def test_what_it_says_of_the_model(smollm2: Service) -> None:
    info = stub(smollm2).GetModelInfo(vllm.GetModelInfoRequest(), timeout=LIMIT_S)
    assert (info.served_model_name, info.is_generation, info.model_type) == ("smollm2-135m", True, "llama")
    assert list(info.architectures) == ["LlamaForCausalLM"]
    assert (info.vocab_size, info.max_context_length, info.max_req_input_len) == (49152, 8192, 8191)
    assert info.eos_token_ids
    server = stub(smollm2).GetServerInfo(vllm.GetServerInfoRequest(), timeout=LIMIT_S)
    assert (server.max_num_seqs, server.block_size, server.data_parallel_size) == (8, 32, 1)
    assert server.constrained_decoding_start == "first_token"
    assert server.uptime_seconds > 0


def test_loads(sim: Service) -> None:
    call = stub(sim).Generate(request(ids=[1] * 100, **LONG))
    assert next(call).HasField("chunk")
    sim.wait_for_load(lambda load: load.running_sequences == 1)
    loads = stub(sim).GetLoads(vllm.GetLoadsRequest(include=["core"]), timeout=LIMIT_S)
    (load,) = loads.loads
    assert (loads.dp_rank_count, load.num_running_reqs, load.num_waiting_reqs) == (1, 1, 0)
    assert 0 < load.num_used_tokens <= load.max_total_num_tokens
    assert load.token_usage == load.num_used_tokens / load.max_total_num_tokens
    assert load.max_running_requests == 64
    assert stub(sim).GetServerInfo(vllm.GetServerInfoRequest()).active_requests == 1
    call.cancel()
    sim.wait_for_load(lambda load: load.running_sequences == 0)


def test_a_client_that_goes_away_ends_its_request(sim: Service) -> None:
    for stream in (True, False):
        call = stub(sim).Generate(request(ids=[1, 2, 3], stream=stream, **LONG))
        sim.wait_for_load(lambda load: load.running_sequences == 1)
        call.cancel()
        sim.wait_for_load(lambda load: load.running_sequences == 0)


def test_abort(sim: Service) -> None:
    call = stub(sim).Generate(request(ids=[1, 2, 3], name="one", **LONG))
    other = stub(sim).Generate(request(ids=[1, 2, 3], name="two", **LONG))
    assert next(call).HasField("chunk")
    assert next(other).HasField("chunk")
    stub(sim).Abort(vllm.AbortRequest(request_ids=["one", "never there"]), timeout=LIMIT_S)
    last = list(call)[-1].complete
    assert last.finish_reason == "abort"
    assert last.output_ids
    assert next(other).HasField("chunk")
    other.cancel()
    too_many = vllm.AbortRequest(request_ids=["x"] * 1025)
    assert refusal(lambda: stub(sim).Abort(too_many))[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "request_ids")


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"temperature": -1}, "sampling_params.temperature"),
        ({"max_tokens": 0}, "sampling_params.max_tokens"),
        ({"max_tokens": 4_000_000}, "sampling_params.max_tokens"),
        ({"stop": ["x"]}, "sampling_params.stop"),
        ({"n": 999}, "sampling_params.n"),
        ({"logprobs": 3}, "sampling_params.logprobs"),
        ({"frequency_penalty": 1}, "sampling_params.frequency_penalty"),
        ({"regex": "a"}, "sampling_params.constraint"),
        ({"structural_tag": "{}"}, "sampling_params.structural_tag"),
        ({"ids": [4_000_000]}, "tokenized.input_ids[0]"),
        ({"ids": []}, "tokenized.input_ids"),
        ({"name": "ä"}, "request_id"),
    ],
)
def test_errors_name_the_field(sim: Service, params: dict[str, Any], field: str) -> None:
    code, named, message = refusal(stub(sim).Generate(request(**{"ids": [1], **params}), timeout=LIMIT_S))
    assert (code, named) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert message.startswith(field)


def test_fields_that_nobody_knows_are_refused(sim: Service) -> None:
    unknown = vllm.GenerateRequest.FromString(request(ids=[1]).SerializeToString() + b"\xf8\x3f\x01")
    assert refusal(stub(sim).Generate(unknown))[0] is grpc.StatusCode.INVALID_ARGUMENT
    health = vllm.HealthCheckRequest.FromString(b"\x08\x01")
    assert refusal(lambda: stub(sim).HealthCheck(health))[0] is grpc.StatusCode.INVALID_ARGUMENT
    for loads in (vllm.GetLoadsRequest(dp_rank=1), vllm.GetLoadsRequest(include=["lora"])):
        assert refusal(lambda loads=loads: stub(sim).GetLoads(loads))[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_what_is_not_served_says_so(sim: Service) -> None:
    tokenized = vllm.TokenizedInput(input_ids=[1])
    calls = {
        "Embed": vllm.EmbedRequest(tokenized=tokenized),
        "FlushCache": common_pb2.FlushCacheRequest(),
        "StartProfile": common_pb2.StartProfileRequest(),
        "StopProfile": common_pb2.StopProfileRequest(),
    }
    for name, asked in calls.items():
        code, _, message = refusal(lambda name=name, asked=asked: getattr(stub(sim), name)(asked, timeout=LIMIT_S))
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert name in message
    events = stub(sim).SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest(), timeout=LIMIT_S)
    assert refusal(events)[0] is grpc.StatusCode.UNIMPLEMENTED
    no_text = stub(sim).GetTokenizer(common_pb2.GetTokenizerRequest(), timeout=LIMIT_S)
    assert refusal(no_text)[0] is grpc.StatusCode.NOT_FOUND


def test_it_is_off_unless_it_is_asked_for() -> None:
    with serve() as service:
        code, _, _ = refusal(lambda: stub(service).HealthCheck(vllm.HealthCheckRequest(), timeout=LIMIT_S))
        assert code is grpc.StatusCode.UNIMPLEMENTED


def test_health_before_and_while_draining() -> None:
    with serve(vllm_grpc=True, sim_step_us=10_000) as service:
        probe = health_pb2_grpc.HealthStub(service.channel)
        named = health_pb2.HealthCheckRequest(service="vllm.grpc.engine.VllmEngine")
        assert stub(service).HealthCheck(vllm.HealthCheckRequest(), timeout=LIMIT_S).healthy
        assert probe.Check(named).status == health_pb2.HealthCheckResponse.SERVING
        call = stub(service).Generate(request(ids=[1, 2, 3], **LONG))
        assert next(call).HasField("chunk")
        service.admin.Drain(admin_pb2.DrainRequest(), timeout=LIMIT_S)
        health = stub(service).HealthCheck(vllm.HealthCheckRequest(), timeout=LIMIT_S)
        assert (health.healthy, health.message) == (False, "not serving")
        assert next(call).HasField("chunk")  # what runs goes on
        call.cancel()
