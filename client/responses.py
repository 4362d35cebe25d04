"""Response reading: the contract's messages become the client's values.

Raises ProtocolError for what the contract does not allow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields

from google.protobuf import duration_pb2
from grpc_health.v1 import health_pb2

from pagewire.client.chat_formats import format_value
from pagewire.client.errors import ProtocolError
from pagewire.client.prompts import Message, ToolCall
from pagewire.client.types import (
    Candidate,
    Capabilities,
    Completion,
    ContentPart,
    DefaultSampling,
    Delta,
    Event,
    Finished,
    FinishReason,
    HealthStatus,
    Limits,
    MalformedCall,
    Model,
    Part,
    PromptTokens,
    ReasoningPart,
    Result,
    Started,
    Timings,
    Token,
    Tokenized,
    ToolCallPart,
    Usage,
)
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2, model_pb2

_REASONS: Mapping[int, FinishReason] = {
    pb.FINISH_REASON_EOS: FinishReason.EOS,
    pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    pb.FINISH_REASON_STOP_STRING: FinishReason.STOP_STRING,
    pb.FINISH_REASON_STOP_TOKEN: FinishReason.STOP_TOKEN,
    pb.FINISH_REASON_ABORTED: FinishReason.ABORTED,
}


def event(message: inference_pb2.StreamGenerateResponse) -> Event:
    """One event of a stream."""
    match message.WhichOneof("event"):
        case "started":
            return started(message.started)
        case "prompt_tokens":
            return PromptTokens(_tokens(message.prompt_tokens.tokens))
        case "delta":
            parts = tuple(map(_part, message.delta.parts))
            return Delta(message.delta.output, _tokens(message.delta.tokens), parts)
        case "finished":
            return finished(message.finished)
        case "usage":
            return usage(message.usage)
        case _:
            raise ProtocolError("the stream has an event that this client does not know")


def started(message: pb.Started) -> Started:
    """The first event."""
    predicted_s = None
    if message.HasField("predicted_time_to_first_token"):
        predicted_s = _seconds(message.predicted_time_to_first_token)
    return Started(message.request_id, message.seed, message.prompt_tokens, message.cached_tokens, predicted_s)


def finished(message: pb.Finished) -> Finished:
    """The end of one output."""
    if message.reason not in _REASONS:
        raise ProtocolError(f"the finish reason {message.reason} is not one that this client knows")
    matched: str | int | None = None
    match message.WhichOneof("matched"):
        case "stop_string":
            matched = message.stop_string
        case "stop_token_id":
            matched = message.stop_token_id
    return Finished(message.output, _REASONS[message.reason], matched)


def usage(message: pb.Usage) -> Usage:
    """The last event."""
    timings = Timings(
        _seconds(message.timings.queue), _seconds(message.timings.prefill), _seconds(message.timings.decode)
    )
    return Usage(message.prompt_tokens, message.cached_tokens, message.completion_tokens, timings)


def result(message: inference_pb2.GenerateResponse) -> Result:
    """The answer of Generate."""
    outputs = []
    for output in message.outputs:
        end = finished(output.finished)
        text = output.text if output.HasField("text") else None
        answer = _message(output.message) if output.HasField("message") else None
        malformed = tuple(map(_malformed, output.malformed_calls))
        outputs.append(Completion(text, _tokens(output.tokens), end.reason, end.matched, answer, malformed))
    if not outputs:
        raise ProtocolError("the answer has no output")
    start = started(message.started)
    return Result(start.request_id, start.seed, tuple(outputs), usage(message.usage), _tokens(message.prompt_tokens))


def model(message: model_pb2.Model) -> Model:
    """A served model."""
    limits, can, sampling = message.limits, message.capabilities, message.default_sampling
    return Model(
        name=message.name,
        architecture=message.architecture,
        dtype=message.dtype,
        limits=Limits(**{each.name: getattr(limits, each.name) for each in fields(Limits)}),
        capabilities=Capabilities(**{each.name: getattr(can, each.name) for each in fields(Capabilities)}),
        tokenizer_digest=message.tokenizer_digest,
        weights_digest=message.weights_digest,
        default_sampling=DefaultSampling(
            **{each.name: getattr(sampling, each.name) for each in fields(DefaultSampling)}
        ),
        eos_token_ids=tuple(message.eos_token_ids),
        chat_format=format_value(message.chat_format) if message.HasField("chat_format") else None,
        exact_continuation=message.exact_continuation,
    )


def tokenized(message: inference_pb2.TokenizeResponse) -> Tokenized:
    """The answer of Tokenize."""
    return Tokenized(tuple(message.ids), message.text if message.HasField("text") else None)


def health(message: health_pb2.HealthCheckResponse) -> HealthStatus:
    """The answer of grpc.health.v1."""
    return HealthStatus(health_pb2.HealthCheckResponse.ServingStatus.Name(message.status))


def _part(message: pb.Part) -> Part:
    match message.WhichOneof("kind"):
        case "content":
            return ContentPart(message.content)
        case "reasoning":
            return ReasoningPart(message.reasoning)
        case "tool_call":
            call = message.tool_call
            return ToolCallPart(
                call.index,
                call.id if call.HasField("id") else None,
                call.name if call.HasField("name") else None,
                call.arguments,
                call.is_complete,
            )
        case "malformed_call":
            return _malformed(message.malformed_call)
        case _:
            raise ProtocolError("the stream has a part that this client does not know")


def _malformed(message: pb.MalformedCall) -> MalformedCall:
    return MalformedCall(message.text, message.reason, message.index if message.HasField("index") else None)


def _message(message: pb.ChatMessage) -> Message:
    """An assistant's."""
    return Message(
        role="assistant",
        content=message.content if message.HasField("content") else None,
        tool_calls=tuple(ToolCall(call.id, call.name, call.arguments) for call in message.tool_calls),
        reasoning_content=message.reasoning_content if message.HasField("reasoning_content") else None,
    )


def _tokens(messages: Iterable[pb.Token]) -> tuple[Token, ...]:
    return tuple(_token(message) for message in messages)


def _token(message: pb.Token) -> Token:
    try:
        text = message.text.decode() if message.HasField("text") else None
    except UnicodeDecodeError as error:
        raise ProtocolError(f"a token's text splits a character: {message.text!r}") from error
    return Token(
        message.id if message.HasField("id") else None,
        text,
        message.logprob if message.HasField("logprob") else None,
        tuple(Candidate(each.id, each.bytes, each.logprob) for each in message.candidates),
        tuple(Candidate(each.id, each.bytes, each.logprob) for each in message.named),
    )


def _seconds(duration: duration_pb2.Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
