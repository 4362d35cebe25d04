"""The synchronous client against a real server."""

from __future__ import annotations

import gc
import signal
import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from support.scripted_service import EOS, PROMPT_IDS, SEED, ScriptedService, status
from support.tcp_proxy import TcpProxy

from pagewire.client import (
    NO_RETRY,
    BatchError,
    Cancelled,
    Chat,
    Client,
    ContentPart,
    DeadlineExceeded,
    Delta,
    Event,
    Finished,
    FinishReason,
    HealthStatus,
    InvalidRequest,
    Message,
    NotFound,
    Overloaded,
    PagewireError,
    PromptTokens,
    ProtocolError,
    Result,
    RetryPolicy,
    Started,
    Stream,
    Tls,
    Tool,
    Unavailable,
    Usage,
)
from pagewire.client.transport import Transport
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2

ANSWER = "Hello, wörld €"


def test_generate(client: Client, service: ScriptedService) -> None:
    result = client.generate("hi", max_tokens=100)
    assert result.text == ANSWER
    assert result.token_ids == (*ANSWER.encode(), EOS)
    assert result.finish_reason is FinishReason.EOS
    assert result.outputs[0].matched == EOS
    assert result.seed == SEED
    assert result.request_id == "scripted"
    assert result.usage.prompt_tokens == len(PROMPT_IDS)
    assert result.usage.timings.prefill_s == pytest.approx(0.012)
    (request,) = service.requests(inference_pb2.GenerateRequest)
    assert request.generation == pb.Generation(prompt=pb.Prompt(text="hi"), stopping=pb.Stopping(max_tokens=100))


def test_several_outputs(client: Client) -> None:
    result = client.generate("hi", n=3, max_tokens=5)
    assert [output.text for output in result.outputs] == ["Hello"] * 3
    assert {output.finish_reason for output in result.outputs} == {FinishReason.LENGTH}


def test_chat(client: Client, service: ScriptedService) -> None:
    messages = [Message("system", "be brief"), Message("user", "hi")]
    result = client.chat(messages, tools=[Tool("t")], template_arguments={"a": 1}, temperature=0)
    assert result.text == ANSWER
    (request,) = service.requests(inference_pb2.GenerateRequest)
    assert [each.content for each in request.generation.prompt.chat.messages] == ["be brief", "hi"]
    assert request.generation.prompt.chat.tools[0].name == "t"
    assert request.generation.sampling.HasField("temperature")
    tool = {"type": "function", "function": {"name": "t"}}
    mappings = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert client.chat(mappings, tools=[tool], template_arguments='{"a": 1}', temperature=0).text == ANSWER
    _, again = service.requests(inference_pb2.GenerateRequest)
    assert again == request


def test_stream_gives_every_event_in_order(client: Client) -> None:
    events = list(client.stream("hi"))
    assert isinstance(events[0], Started)
    assert isinstance(events[-2], Finished)
    assert isinstance(events[-1], Usage)
    deltas = [event for event in events if isinstance(event, Delta)]
    assert len(deltas) == len(events) - 3
    assert "".join(delta.text for delta in deltas) == ANSWER


def test_text_of_a_stream_is_whole_characters(client: Client) -> None:
    assert list(client.stream("hi").text) == list(ANSWER)


def test_result_after_a_part_was_read(client: Client) -> None:
    stream = client.stream("hi")
    assert next(stream.text) == "H"
    assert stream.result().text == ANSWER
    assert list(stream) == []


def test_logprobs_and_candidates_belong_to_their_token(client: Client, service: ScriptedService) -> None:
    def script(_request: object, _context: object) -> list[inference_pb2.StreamGenerateResponse]:
        token = pb.Token(id=5, text=b"x", logprob=-0.5, candidates=[pb.Candidate(id=6, bytes=b"\xc3", logprob=-1.5)])
        prompt = [pb.Token(id=1000), pb.Token(id=1001, logprob=-2)]
        return [
            inference_pb2.StreamGenerateResponse(started=pb.Started(prompt_tokens=2)),
            *(inference_pb2.StreamGenerateResponse(prompt_tokens=pb.PromptTokens(tokens=[token])) for token in prompt),
            inference_pb2.StreamGenerateResponse(delta=pb.Delta(tokens=[token])),
            inference_pb2.StreamGenerateResponse(
                finished=pb.Finished(reason=pb.FINISH_REASON_STOP_TOKEN, stop_token_id=5)
            ),
            inference_pb2.StreamGenerateResponse(usage=pb.Usage()),
        ]

    service.streams = [script]  # type: ignore[list-item]
    result = client.stream("hi", logprobs=True).result()
    (token,) = result.outputs[0].tokens
    assert (token.logprob, token.candidates[0].bytes, token.candidates[0].logprob) == (-0.5, b"\xc3", -1.5)
    assert [each.logprob for each in result.prompt_tokens] == [None, -2]
    assert result.outputs[0].matched == 5


@pytest.mark.parametrize(("predicted", "seconds"), [(None, None), ("0s", 0.0), ("1.250s", 1.25)])
def test_a_predicted_time_to_first_token_is_seconds_or_nothing(
    client: Client, service: ScriptedService, predicted: str | None, seconds: float | None
) -> None:
    def script(_request: object, _context: object) -> list[inference_pb2.StreamGenerateResponse]:
        started = pb.Started(prompt_tokens=2)
        if predicted is not None:
            started.predicted_time_to_first_token.FromJsonString(predicted)
        return [
            inference_pb2.StreamGenerateResponse(started=started),
            inference_pb2.StreamGenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_EOS)),
            inference_pb2.StreamGenerateResponse(usage=pb.Usage()),
        ]

    service.streams = [script]  # type: ignore[list-item]
    started = next(iter(client.stream("hi")))
    assert isinstance(started, Started)
    assert started.predicted_time_to_first_token_s == seconds


def test_tokenize_one_and_several(client: Client, service: ScriptedService) -> None:
    one = client.tokenize("hi", add_special_tokens=False)
    assert (one.ids, one.text) == (tuple(PROMPT_IDS), "hi")
    assert service.seen[0].HasField("add_special_tokens")
    assert [each.text for each in client.tokenize(["a", "b", "c"])] == ["a", "b", "c"]


def test_detokenize(client: Client, service: ScriptedService) -> None:
    assert client.detokenize([104, 105], skip_special_tokens=False) == "hi"
    assert service.seen[0].HasField("skip_special_tokens")


def test_models(client: Client) -> None:
    (model,) = client.models()
    assert model == client.model() == client.model("scripted")
    assert (model.name, model.limits.max_model_len, model.capabilities.chat) == ("scripted", 4096, True)
    assert model.default_sampling.temperature == 1
    assert model.exact_continuation
    with pytest.raises(NotFound, match="other"):
        client.model("other")


def test_health_and_its_changes(client: Client, service: ScriptedService) -> None:
    assert client.health() is HealthStatus.SERVING
    watch = client.watch_health()
    assert next(watch) is HealthStatus.SERVING
    service.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert next(watch) is HealthStatus.NOT_SERVING
    watch.close()  # type: ignore[attr-defined]
    assert client.health() is HealthStatus.NOT_SERVING
    with pytest.raises(NotFound):
        client.health("nonsense")


def test_several_prompts_in_order(client: Client, service: ScriptedService) -> None:
    results = client.generate([f"prompt {i}" for i in range(20)], max_concurrency=4, max_tokens=3)
    assert [result.text for result in results] == ["Hel"] * 20
    assert {request.generation.prompt.text for request in service.seen} == {f"prompt {i}" for i in range(20)}


def test_several_prompts_run_at_once(service: ScriptedService) -> None:
    together = threading.Barrier(4)

    class Meeting(ScriptedService):
        def Generate(self, request: inference_pb2.GenerateRequest, context: grpc.ServicerContext) -> object:  # type: ignore[override]
            together.wait(10)
            return super().Generate(request, context)

    with Meeting() as meeting, Client(meeting.address) as client:
        assert len(client.generate(["a", "b", "c", "d"])) == 4


def test_one_failing_prompt_loses_no_other(client: Client) -> None:
    prompts = ["a", "\ud800", "c"]
    with pytest.raises(BatchError, match=r"1 of 3 prompts failed; the first, prompt 1: generation\.prompt") as caught:
        client.generate(prompts)
    first, second, third = caught.value.outcomes
    assert isinstance(first, Result)
    assert isinstance(second, InvalidRequest)
    assert isinstance(third, Result)
    outcomes = client.generate(prompts, return_exceptions=True)
    assert [isinstance(outcome, PagewireError) for outcome in outcomes] == [False, True, False]


def test_a_request_id_is_for_one(client: Client) -> None:
    assert client.generate("a", request_id="mine").request_id == "mine"
    with pytest.raises(InvalidRequest, match="request_id 'mine'"):
        client.generate(["a", "b"], request_id="mine")


def test_closing_a_stream_reaches_the_server(client: Client, service: ScriptedService) -> None:
    service.hang_after_started()
    with client.stream("hi") as stream:
        next(stream)
    assert service.ended.wait(10)
    assert list(stream) == []


def test_dropping_a_stream_reaches_the_server(client: Client, service: ScriptedService) -> None:
    service.hang_after_started()
    stream = client.stream("hi")
    next(stream)
    del stream
    gc.collect()
    assert service.ended.wait(10)


def test_dropping_the_text_of_a_stream_reaches_the_server(client: Client, service: ScriptedService) -> None:
    def script(_request: object, context: grpc.ServicerContext) -> object:
        service.watch(context)
        yield inference_pb2.StreamGenerateResponse(started=pb.Started(request_id="x", seed=1, prompt_tokens=3))
        yield inference_pb2.StreamGenerateResponse(delta=pb.Delta(tokens=[pb.Token(id=1, text=b"x")]))
        service.hang(context)

    service.streams = [script]  # type: ignore[list-item]
    for piece in client.stream("hi").text:
        assert piece == "x"
        break
    gc.collect()
    assert service.ended.wait(10)


def test_closing_from_another_thread_ends_the_wait(client: Client, service: ScriptedService) -> None:
    service.hang_after_started()
    stream = client.stream("hi")
    next(stream)
    outcome: list[object] = []

    def read() -> None:
        try:
            outcome.extend(stream)
        except Cancelled as error:
            outcome.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    assert service.hanging.wait(10)
    stream.close()
    reader.join(10)
    assert not reader.is_alive()
    assert all(isinstance(each, Cancelled) for each in outcome)


def test_closing_the_client_cancels_what_is_under_way(service: ScriptedService) -> None:
    service.hang_after_started()
    client = Client(service.address)
    stream = client.stream("hi")
    next(stream)
    client.close()
    with pytest.raises(Cancelled):
        next(stream)
    assert service.ended.wait(10)


def test_an_interrupt_cancels_all_prompts() -> None:
    class Hanging(ScriptedService):
        def Generate(self, request: inference_pb2.GenerateRequest, context: grpc.ServicerContext) -> object:  # type: ignore[override]
            self.hang(context)
            return inference_pb2.GenerateResponse()

    with Hanging() as hanging, Client(hanging.address) as client:
        interrupted = threading.Event()

        def interrupt() -> None:
            assert hanging.hanging.wait(10)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            while not interrupted.wait(2):  # CPython misses a signal that comes just before it begins to wait
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            client.generate(["a", "b", "c"], max_concurrency=2)
        interrupted.set()
        interrupting.join(10)
        assert hanging.ended.wait(10)


def test_a_deadline_ends_a_stream(client: Client, service: ScriptedService) -> None:
    service.hang_after_started()
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        client.stream("hi", timeout_s=0.2).result()
    assert time.monotonic() - began < 5
    assert service.ended.wait(10)


def test_a_deadline_spans_all_tries(service: ScriptedService) -> None:
    patient = RetryPolicy(max_attempts=1000, initial_backoff_s=0.05, max_backoff_s=0.05)
    began = time.monotonic()
    with Client("127.0.0.1:1", retry=patient) as client, pytest.raises((Unavailable, DeadlineExceeded)):
        client.generate("hi", timeout_s=0.3)
    assert time.monotonic() - began < 5


def test_overload_is_not_tried_again(client: Client, service: ScriptedService) -> None:
    service.failures = [status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")]
    with pytest.raises(Overloaded):
        client.generate("hi")
    assert len(service.seen) == 1


@pytest.mark.parametrize(
    "events",
    [
        [],
        [inference_pb2.StreamGenerateResponse()],
        [inference_pb2.StreamGenerateResponse(delta=pb.Delta())],
        [inference_pb2.StreamGenerateResponse(started=pb.Started())],
        [inference_pb2.StreamGenerateResponse(started=pb.Started())] * 2,
        [inference_pb2.StreamGenerateResponse(usage=pb.Usage())],
        [
            inference_pb2.StreamGenerateResponse(started=pb.Started()),
            inference_pb2.StreamGenerateResponse(delta=pb.Delta(output=1)),
        ],
        [
            inference_pb2.StreamGenerateResponse(started=pb.Started()),
            inference_pb2.StreamGenerateResponse(delta=pb.Delta(tokens=[pb.Token(id=1, text=b"\xc3")])),
        ],
        [
            inference_pb2.StreamGenerateResponse(started=pb.Started()),
            inference_pb2.StreamGenerateResponse(finished=pb.Finished(reason=77)),  # type: ignore[arg-type]
        ],
        [
            inference_pb2.StreamGenerateResponse(started=pb.Started()),
            inference_pb2.StreamGenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_EOS)),
            inference_pb2.StreamGenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_EOS)),
        ],
    ],
)
def test_a_stream_against_the_contract(
    client: Client, service: ScriptedService, events: list[inference_pb2.StreamGenerateResponse]
) -> None:
    service.streams = [lambda _request, _context: iter(events)]
    with pytest.raises(ProtocolError):
        client.stream("hi").result()


def test_the_key_travels_with_every_call_and_shows_in_no_log(service: ScriptedService) -> None:
    assert "a-long-enough-key" not in repr(Transport(api_key="a-long-enough-key"))
    with Client(service.address, api_key="a-long-enough-key") as client:
        client.generate("hi")
        client.stream("hi").result()
        client.models()
    assert [each["authorization"] for each in service.metadata] == ["Bearer a-long-enough-key"] * 3


def test_tls_files_are_named_when_they_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="ca_file"):
        Client("127.0.0.1:1", tls=Tls(ca_file=tmp_path / "none.pem"))
    with pytest.raises(InvalidRequest, match="certificate_file and key_file"):
        Client("127.0.0.1:1", tls=Tls(certificate_file=tmp_path / "none.pem"))


def test_events_are_a_closed_union(client: Client) -> None:
    kinds = {type(event) for event in client.stream("hi")}
    assert kinds | {PromptTokens} == set(Event.__args__)  # type: ignore[attr-defined]


def test_a_cut_connection_without_resumption(service: ScriptedService) -> None:
    service.hang_after_started()
    with TcpProxy(service.address) as proxy, Client(proxy.address, retry=NO_RETRY) as client:
        stream: Stream = client.stream("hi", resume=False)
        next(stream)
        proxy.cut()
        with pytest.raises(Unavailable) as caught:
            next(stream)
        assert caught.value.reason == ""
        assert service.ended.wait(10)


def test_a_conversation_can_be_streamed(client: Client, service: ScriptedService) -> None:
    assert "".join(client.stream(Chat([Message("user", "hi")])).text) == ANSWER
    assert service.seen[0].generation.prompt.chat.messages[0].content == "hi"
    stream = client.stream(Chat([Message("user", "hi")]))
    assert list(stream.parts) == [ContentPart(letter) for letter in ANSWER]
    assert stream.result().message == Message("assistant", ANSWER)
