"""Fields are counted as protobuf's wire format has them, and what has too many is refused before it is decoded."""

import contextlib
import random
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import pytest
from support.frontend_world import failure, running_frontend, violated_field

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.limits import MAX_FIELDS
from pagewire.scheduler_svc.frontend.rpc import message_fields
from pagewire.scheduler_svc.frontend.rpc.message_fields import refuse_many_fields
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1.inference_pb2 import GenerateRequest
from pagewire.wire.model import ModelSpec

Run = Callable[[Coroutine[Any, Any, None]], None]


def within(number: int, content: bytes) -> bytes:
    """A field of bytes, or of a message."""
    size, written = len(content), b""
    while size >= 0x80:
        written, size = written + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + written + bytes([size]) + content


FLOODS = {
    "unknown numbers": within(1, b"\xf8\x3f\x01" * (MAX_FIELDS + 1)),
    "unknown groups": within(1, b"\xfb\x3f\xfc\x3f" * (MAX_FIELDS + 1)),
    "unknown bytes": within(1, b"\xfa\x3f\x00" * (MAX_FIELDS + 1)),
    "messages": within(1, within(2, within(3, b"\x0a\x00" * (MAX_FIELDS + 1)))),
    "tool calls": within(1, within(2, within(3, within(1, b"\x22\x00" * (MAX_FIELDS + 1))))),
    "stop strings": within(1, within(4, b"\x1a\x00" * (MAX_FIELDS + 1))),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_floods_of_small_fields_are_refused_before_they_are_decoded(spec: ModelSpec, run: Run, flood: str) -> None:
    async def test() -> None:
        async with running_frontend(spec, max_message_bytes=4 * 1024 * 1024) as world:
            call = world.channel.unary_unary("/pagewire.v1.InferenceService/Generate")
            error = await failure(call(FLOODS[flood]))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert violated_field(error) == "the request"
            assert f"has more than {MAX_FIELDS} fields" in str(error.details())

    run(test())


def test_the_largest_chat_of_the_contract_has_fewer() -> None:
    calls = [pb.ToolCall(id=f"call{i:05}", name="f" * 8, arguments="{}") for i in range(16384)]
    message = pb.ChatMessage(role=pb.CHAT_ROLE_ASSISTANT, content="", name="n", reasoning_content="r", tool_call_id="t")
    chat = pb.Chat(messages=[message] * 4095, template_arguments="{}", add_generation_prompt=True)
    chat.messages.add(role=pb.CHAT_ROLE_ASSISTANT, tool_calls=calls)
    request = GenerateRequest(generation=pb.Generation(prompt=pb.Prompt(chat=chat)))
    refuse_many_fields(request.SerializeToString(), GenerateRequest)


def test_a_field_is_a_field_at_any_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A map's entry is a message of two."""
    request = GenerateRequest(
        generation=pb.Generation(
            model="x" * 64,
            prompt=pb.Prompt(token_ids=pb.TokenIds(ids=range(1000))),
            sampling=pb.Sampling(temperature=0.5, logit_bias={5: 1.0, 300: 2.0}, seed=2**64 - 1),
            n=7,
        )
    )
    frame = request.SerializeToString()
    num_fields = 1 + (1 + (1 + (1 + 1)) + (1 + 1 + 2 * (1 + 2) + 1) + 1)
    monkeypatch.setattr(message_fields, "MAX_FIELDS", num_fields)
    refuse_many_fields(frame, GenerateRequest)
    monkeypatch.setattr(message_fields, "MAX_FIELDS", num_fields - 1)
    with pytest.raises(InvalidArgument, match=f"has more than {num_fields - 1} fields"):
        refuse_many_fields(frame, GenerateRequest)


def test_bytes_that_are_no_message_are_left_to_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_fields, "MAX_FIELDS", 30)
    draw = random.Random(0)
    whole = GenerateRequest(generation=pb.Generation(model="x" * 300, n=7)).SerializeToString()
    for _ in range(3000):
        frame = bytearray(whole)
        for _ in range(draw.randrange(1, 8)):
            frame[draw.randrange(len(frame))] = draw.randrange(256)
        frame = frame[: draw.randrange(len(frame) + 1)]
        with contextlib.suppress(InvalidArgument):  # nothing else comes
            refuse_many_fields(bytes(frame), GenerateRequest)
