"""Whole answers: one message from all those of a stream."""

from collections.abc import Sequence

from pagewire.scheduler_svc.frontend.streams.parts import join_parts
from pagewire.v1 import inference_pb2 as pb


def whole_answer(
    messages: Sequence[pb.StreamGenerateResponse], n: int, *, want_text: bool, has_parts: bool
) -> pb.GenerateResponse:
    """Of a stream of `n` outputs that ended well."""
    response = pb.GenerateResponse()
    completions = [response.outputs.add() for _ in range(n)]
    for message in messages:
        match message.WhichOneof("event"):
            case "started":
                response.started.CopyFrom(message.started)
            case "prompt_tokens":
                response.prompt_tokens.extend(message.prompt_tokens.tokens)
            case "delta":
                completions[message.delta.output].tokens.extend(message.delta.tokens)
            case "finished":
                completions[message.finished.output].finished.CopyFrom(message.finished)
            case "usage":
                response.usage.CopyFrom(message.usage)
    for index, completion in enumerate(completions):
        if want_text:
            completion.text = b"".join([token.text for token in completion.tokens]).decode()
        if has_parts:
            deltas = [message.delta for message in messages if message.HasField("delta")]
            join_parts([part for delta in deltas if delta.output == index for part in delta.parts], completion)
    return response
