"""Streams whose connection breaks: what the reader gets is what it would have got without the break."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import pytest
from support.scripted_service import PROMPT_IDS, SEED, Responses, ScriptedService, Stream, overloaded, unavailable
from support.tcp_proxy import TcpProxy

from pagewire.client import (
    AsyncClient,
    Chat,
    Client,
    Event,
    Message,
    Overloaded,
    Parameters,
    Result,
    RetryPolicy,
    Started,
    Unavailable,
)
from pagewire.client.prompts import Prompt
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2

ANSWER = "Grüße aus 東京 und 😀 Zürich, with some more plain text to follow"
NUM_TOKENS = len(ANSWER.encode()) + 1

Read = Callable[[ScriptedService, RetryPolicy, Prompt, Parameters], tuple[list[Event], Result]]


def read_sync(
    service: ScriptedService, policy: RetryPolicy, prompt: Prompt, parameters: Parameters
) -> tuple[list[Event], Result]:
    with Client(service.address, retry=policy) as client, client.stream(prompt, **parameters) as stream:
        return list(stream), stream.result()


def read_async(
    service: ScriptedService, policy: RetryPolicy, prompt: Prompt, parameters: Parameters
) -> tuple[list[Event], Result]:
    async def read() -> tuple[list[Event], Result]:
        async with AsyncClient(service.address, retry=policy) as client, client.stream(prompt, **parameters) as stream:
            return [event async for event in stream], await stream.result()

    return asyncio.run(read())


@pytest.fixture(params=[read_sync, read_async], ids=["sync", "async"])
def read(request: pytest.FixtureRequest) -> Read:
    reader: Read = request.param
    return reader


def test_a_break_after_every_token(policy: RetryPolicy) -> None:
    """Among them breaks inside characters of 2, 3 and 4 bytes, before the first token, and after the last."""
    with ScriptedService(ANSWER) as service, Client(service.address, retry=policy) as client:
        whole = client.stream("hi")
        expected = list(whole)
        for tokens in range(NUM_TOKENS + 1):
            service.break_after = [tokens]
            stream = client.stream("hi")
            assert list(stream) == expected, f"broken after {tokens} tokens"
            assert stream.result() == whole.result()


def test_breaks_in_a_row(read: Read, policy: RetryPolicy) -> None:
    with ScriptedService(ANSWER) as service:
        service.break_after = [30, 3, 3, 5, 20]
        events, result = read(service, policy, "hi", {})
        assert result.text == ANSWER
        assert sum(isinstance(event, Started) for event in events) == 1
        assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (len(PROMPT_IDS), NUM_TOKENS)
        assert result.usage.cached_tokens == 0


def test_a_stream_that_was_accepted_waits_for_its_place(read: Read, policy: RetryPolicy) -> None:
    """Whoever took it meanwhile, or whatever its tenant has used."""
    with ScriptedService(ANSWER) as service:

        def breaks(request: inference_pb2.StreamGenerateRequest, context: grpc.ServicerContext) -> Responses:
            for number, event in enumerate(service._generate(request.generation)):
                if number == 40:
                    context.abort_with_status(unavailable())
                yield event

        def refused(_request: inference_pb2.StreamGenerateRequest, context: grpc.ServicerContext) -> Responses:
            yield from context.abort_with_status(overloaded(0.01))

        service.streams = [breaks, refused]
        events, result = read(service, policy, "hi", {})
        assert result.text == ANSWER
        assert sum(isinstance(event, Started) for event in events) == 1
        assert len(service.requests(inference_pb2.StreamGenerateRequest)) == 3


def test_a_stream_that_overload_breaks_is_not_tried_again(read: Read, policy: RetryPolicy) -> None:
    """As that of a reader who took nothing for too long."""
    with ScriptedService(ANSWER) as service:

        def ends(request: inference_pb2.StreamGenerateRequest, context: grpc.ServicerContext) -> Responses:
            for number, event in enumerate(service._generate(request.generation)):
                if number == 40:
                    context.abort_with_status(overloaded(0.01))
                yield event

        service.streams = [ends]
        with pytest.raises(Overloaded):
            read(service, policy, "hi", {})
        assert len(service.requests(inference_pb2.StreamGenerateRequest)) == 1


def test_the_seam_gives_what_was_received(read: Read, policy: RetryPolicy) -> None:
    with ScriptedService(ANSWER) as service:
        service.break_after = [40]
        _, result = read(
            service, policy, "hi", {"max_tokens": 60, "min_tokens": 50, "request_id": "mine", "priority": 3}
        )
        assert len(result.token_ids) == 60
        first, second = service.requests(inference_pb2.StreamGenerateRequest)
        given = list(second.generation.prompt.token_ids.ids)
        received = service.answer[:40]
        assert given[:3] == PROMPT_IDS
        num_given = len(given) - 3
        assert given[3:] == received[:num_given]
        assert 30 < num_given < 40
        assert second.generation.stopping.max_tokens == 60 - num_given
        assert second.generation.stopping.min_tokens == 50 - num_given
        assert second.generation.sampling.seed == SEED
        assert second.generation.request_id == "mine.1"
        assert second.generation.priority == 3
        assert first.generation.stopping.max_tokens == 60  # the caller's request is not touched
        assert result.request_id == "mine"


def test_token_prompts_are_not_tokenized_again(read: Read, policy: RetryPolicy) -> None:
    with ScriptedService(ANSWER) as service:
        service.break_after = [40]
        _, result = read(service, policy, PROMPT_IDS, {})
        assert result.text == ANSWER
        assert service.requests(inference_pb2.TokenizeRequest) == []


def test_a_conversation_is_tokenized_as_one(read: Read, policy: RetryPolicy) -> None:
    with ScriptedService(ANSWER) as service:
        service.break_after = [40]
        parameters: Parameters = {"model": "scripted", "return_parts": False}
        _, result = read(service, policy, Chat([Message("user", "hi")]), parameters)
        assert result.text == ANSWER
        (tokenize,) = service.requests(inference_pb2.TokenizeRequest)
        assert tokenize.prompt.chat.messages[0].content == "hi"
        assert tokenize.model == "scripted"


@pytest.mark.parametrize("tokens", range(20, 60))
def test_stop_strings_held_back_at_the_break(policy: RetryPolicy, tokens: int) -> None:
    with ScriptedService("a text that goes on and on until the STOP STOPPED it for good") as service:
        parameters: Parameters = {"stop": ["STOPPED", "until then", "on and off"]}
        service.break_after = [tokens]
        _, result = read_sync(service, policy, "hi", parameters)
        assert result.text == "a text that goes on and on until the STOP "
        assert result.outputs[0].matched == "STOPPED"


@pytest.mark.parametrize(
    "parameters",
    [
        {"n": 2},
        {"regex": ".*"},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -0.5},
    ],
    ids=lambda parameters: next(iter(parameters)),
)
def test_what_cannot_be_continued_is_repeated(read: Read, policy: RetryPolicy, parameters: Parameters) -> None:
    with ScriptedService(ANSWER) as service:
        service.break_after = [NUM_TOKENS + 10 if parameters.get("n") else 40]
        _, result = read(service, policy, "hi", parameters)
        assert [output.text for output in result.outputs] == [ANSWER] * (parameters.get("n") or 1)
        first, second = service.requests(inference_pb2.StreamGenerateRequest)
        assert second.generation.prompt == first.generation.prompt
        assert second.generation.sampling.seed == SEED
        assert result.usage.completion_tokens == NUM_TOKENS * (parameters.get("n") or 1)


def test_a_tokenizer_that_drops_the_first_space(read: Read, policy: RetryPolicy) -> None:
    """Continuing would lose the space before the first word after the seam: found by comparison, then repeated."""
    words = " one two three four five six seven eight nine ten"
    with ScriptedService(words) as service:
        service.strip_leading_space = True
        for tokens in range(20, len(words)):
            service.break_after = [tokens]
            _, result = read(service, policy, "hi", {})
            assert result.text == words.removeprefix(" "), f"broken after {tokens} tokens"


def test_another_prompt_than_the_server_had_is_not_continued(read: Read, policy: RetryPolicy) -> None:
    class Wrong(ScriptedService):
        def Tokenize(self, request: object, context: object) -> inference_pb2.TokenizeResponse:
            return inference_pb2.TokenizeResponse(ids=[1])

    with Wrong(ANSWER) as service:
        service.break_after = [40]
        _, result = read(service, policy, "hi", {})
        assert result.text == ANSWER
        assert service.requests(inference_pb2.StreamGenerateRequest)[1].generation.prompt.text == "hi"


def test_a_different_continuation_is_never_delivered(read: Read, policy: RetryPolicy) -> None:
    """A model that answers otherwise the second time: neither continued nor repeated."""
    with ScriptedService(ANSWER) as service:
        script = service._generate

        def other(request: inference_pb2.StreamGenerateRequest, _context: grpc.ServicerContext) -> object:
            service.answer = [*b"z" * NUM_TOKENS]
            return script(request.generation)

        def first(request: inference_pb2.StreamGenerateRequest, context: grpc.ServicerContext) -> object:
            for index, event in enumerate(script(request.generation)):
                if index == 41:
                    context.abort_with_status(unavailable())
                yield event

        service.streams = [first, other]  # type: ignore[list-item]
        with pytest.raises(Unavailable, match="differs: token 0 of output 0 is 122, not 71"):
            read(service, policy, "hi", {})
        assert len(service.requests(inference_pb2.StreamGenerateRequest)) == 3


@pytest.mark.parametrize(
    ("parameters", "reason"), [({}, "DRAINING"), ({"return_token_ids": False}, "")], ids=["draining", "no ids"]
)
def test_streams_that_are_not_resumed(read: Read, policy: RetryPolicy, parameters: Parameters, reason: str) -> None:
    with ScriptedService(ANSWER) as service:

        def script(_request: object, context: grpc.ServicerContext) -> object:
            yield inference_pb2.StreamGenerateResponse(started=pb.Started(seed=1, prompt_tokens=3))
            context.abort_with_status(unavailable(reason))

        service.streams = [script]  # type: ignore[list-item]
        with pytest.raises(Unavailable) as caught:
            read(service, policy, "hi", parameters)
        assert caught.value.reason == reason
        assert len(service.seen) == 1


def test_resumption_can_be_turned_off(policy: RetryPolicy) -> None:
    with ScriptedService(ANSWER) as service, Client(service.address, retry=policy) as client:
        service.break_after = [5]
        with pytest.raises(Unavailable):
            client.stream("hi", resume=False).result()
        assert len(service.seen) == 1


def test_the_policy_bounds_tries_without_progress(read: Read, policy: RetryPolicy) -> None:
    with ScriptedService(ANSWER) as service:
        service.break_after = [20] * 50
        with pytest.raises(Unavailable):
            read(service, policy, PROMPT_IDS, {"frequency_penalty": 1})
        assert len(service.seen) == policy.max_attempts


def test_a_break_while_asking_where_to_go_on(read: Read, policy: RetryPolicy) -> None:
    with ScriptedService(ANSWER) as service:

        def script(request: inference_pb2.StreamGenerateRequest, context: grpc.ServicerContext) -> object:
            for index, event in enumerate(service._generate(request.generation)):
                if index == 30:
                    service.failures = [unavailable(), unavailable()]  # for Detokenize
                    context.abort_with_status(unavailable())
                yield event

        service.streams = [script]  # type: ignore[list-item]
        slow = RetryPolicy(max_attempts=4, initial_backoff_s=0.001, max_backoff_s=0.002)
        _, result = read(service, slow, "hi", {})
        assert result.text == ANSWER


def test_a_cut_connection(policy: RetryPolicy) -> None:
    """The connection dies under the stream, as it does with a killed frontend."""
    with ScriptedService(ANSWER) as service:

        def script(request: inference_pb2.StreamGenerateRequest, context: grpc.ServicerContext) -> object:
            for index, event in enumerate(service._generate(request.generation)):
                if index == 40:
                    service.hang(context)
                yield event

        service.streams = [script]  # type: ignore[list-item]
        patient = RetryPolicy(max_attempts=20, initial_backoff_s=0.05)
        with TcpProxy(service.address) as proxy, Client(proxy.address, retry=patient) as client:
            stream = client.stream("hi")
            text = ""
            for piece in stream.text:
                text += piece
                if service.hanging.wait(0) or len(text) == 20:
                    proxy.cut()
            assert text == ANSWER
        assert len(service.requests(inference_pb2.StreamGenerateRequest)) > 1


def test_a_chat_that_breaks_after_every_token_is_told_once(policy: RetryPolicy) -> None:
    """Its parts are told again from the beginning, and delivered once."""
    with ScriptedService(ANSWER) as service, Client(service.address, retry=policy) as client:
        chat = Chat([Message("user", "hi")])
        whole = client.stream(chat)
        expected = list(whole)
        assert whole.result().message == Message("assistant", ANSWER)
        for tokens in range(0, NUM_TOKENS + 1, 3):
            service.break_after = [tokens]
            stream = client.stream(chat)
            assert list(stream) == expected, f"broken after {tokens} tokens"
            assert stream.result() == whole.result()
        assert service.requests(inference_pb2.TokenizeRequest) == []


def test_a_chat_whose_parts_differ_after_a_break_is_no_answer(read: Read, policy: RetryPolicy) -> None:
    def script(text: str, *, breaks: bool) -> Stream:
        def stream(_request: inference_pb2.StreamGenerateRequest, context: grpc.ServicerContext) -> Responses:
            yield inference_pb2.StreamGenerateResponse(started=pb.Started(request_id="x", seed=1, prompt_tokens=3))
            delta = pb.Delta(tokens=[pb.Token(id=1, text=b"?")], parts=[pb.Part(content=text)])
            yield inference_pb2.StreamGenerateResponse(delta=delta)
            if breaks:
                context.abort_with_status(unavailable())

        return stream

    with ScriptedService(ANSWER) as service:
        service.streams = [script("one", breaks=True), script("other", breaks=False)]
        with pytest.raises(Unavailable, match="differs"):
            read(service, policy, Chat([Message("user", "hi")]), {})
