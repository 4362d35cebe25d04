"""A client of Pagewire on a bare gRPC stub: grpcio, what protoc makes of the contract, and nothing of Pagewire's own.

    PYTHONPATH=build python client.py ADDRESS stream|reasoning|cancel|deadline|retry|errors|tools|balance

prints one line of JSON per event. `pagewire.client` does all of this and goes on where a stream broke; this is what a
caller writes who wants the stub alone.
"""

import itertools
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2, inference_pb2_grpc

SERVICE_CONFIG = Path(__file__).parents[1] / "service_config.json"
DEADLINE_S = 30.0

WEATHER = pb.Tool(
    name="get_weather",
    description="The weather of a city",
    parameters=json.dumps(
        {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        }
    ),
)


def say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}, ensure_ascii=False), flush=True)


def chat(text: str, **fields: Any) -> pb.Prompt:
    return pb.Prompt(chat=pb.Chat(messages=[pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=text)], **fields))


def show(events: Iterable[inference_pb2.StreamGenerateResponse]) -> None:
    """Each event has one kind, and each part of a delta has one: a caller looks at that, never at the text."""
    calls: dict[int, dict[str, str]] = {}
    for event in events:
        match event.WhichOneof("event"):
            case "started":
                say("started", prompt_tokens=event.started.prompt_tokens)
            case "delta":
                for part in event.delta.parts:
                    show_part(part, calls)
            case "finished":
                say("finished", reason=pb.FinishReason.Name(event.finished.reason))
            case "usage":
                say("usage", completion_tokens=event.usage.completion_tokens)


def show_part(part: pb.Part, calls: dict[int, dict[str, str]]) -> None:
    """Pieces of a call are joined by its index; only the piece that says so makes it whole."""
    match part.WhichOneof("kind"):
        case "content":
            say("content", text=part.content)
        case "reasoning":
            say("reasoning", text=part.reasoning)
        case "tool_call":
            piece = part.tool_call
            call = calls.setdefault(piece.index, {"id": piece.id, "name": piece.name, "arguments": ""})
            call["arguments"] += piece.arguments
            say("tool_call", index=piece.index, arguments=piece.arguments)
            if piece.is_complete:
                say("call", **call)
        case "malformed_call":
            say("malformed_call", text=part.malformed_call.text, reason=part.malformed_call.reason)


def show_error(error: Any) -> None:
    """A status, and the google.rpc details behind it: which field was wrong, or a reason that a program can read."""
    details: dict[str, Any] = {}
    status = rpc_status.from_call(error)  # none where the status is the client's own, as of a deadline
    for packed in status.details if status is not None else ():
        refused, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
        if packed.Unpack(refused):
            details["violations"] = [
                {"field": each.field, "description": each.description} for each in refused.field_violations
            ]
        elif packed.Unpack(info):
            details |= {"reason": info.reason, "domain": info.domain}
    say("error", code=error.code().name, message=error.details(), **details)


def request(command: str) -> pb.Generation:
    generation = pb.Generation(
        prompt=chat("Why is the sky blue?"),
        sampling=pb.Sampling(temperature=0),
        stopping=pb.Stopping(max_tokens=24),
    )
    match command:
        case "reasoning":
            # Both are for models whose template has reasoning (GetModel's capabilities).
            thinking = json.dumps({"enable_thinking": True})
            generation.prompt.CopyFrom(chat("Why?", template_arguments=thinking, max_reasoning_tokens=12))
        case "cancel" | "deadline":
            generation.stopping.CopyFrom(pb.Stopping(ignore_eos=True))  # an answer as long as the context
        case "errors":
            generation.sampling.temperature = 1000
        case "tools":
            asked = chat(
                "What is the weather in Köln?",
                tools=[WEATHER],
                tool_choice=pb.ToolChoice(required=pb.RequiredToolChoice()),
                parallel_tool_calls=False,
                # A model whose template shows how it writes calls needs no format; SmolLM2's shows none.
                format=pb.ChatFormat(tool_calls=pb.TOOL_CALL_FORMAT_QWEN3),
            )
            generation.prompt.CopyFrom(asked)
            generation.stopping.max_tokens = 200
        case "balance":
            generation.prompt.CopyFrom(pb.Prompt(token_ids=pb.TokenIds(ids=[1, 2, 3])))
    return generation


def stream(stub: inference_pb2_grpc.InferenceServiceStub, command: str) -> None:
    deadline_s = 0.3 if command == "deadline" else DEADLINE_S
    events: Any = stub.StreamGenerate(
        inference_pb2.StreamGenerateRequest(generation=request(command)), timeout=deadline_s
    )
    if command == "cancel":
        show(itertools.islice(events, 4))
        events.cancel()  # the server ends the generation and frees its memory
    show(events)


def generate(stub: inference_pb2_grpc.InferenceServiceStub, command: str) -> Any:
    return stub.Generate(inference_pb2.GenerateRequest(generation=request(command)), timeout=DEADLINE_S)


def main(address: str, command: str) -> None:
    # The service config says what is tried again, and which server gets a call where an address has several.
    options = [("grpc.service_config", SERVICE_CONFIG.read_text())]
    with grpc.insecure_channel(address, options=options) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        try:
            match command:
                case "retry":
                    say("answer", text=generate(stub, command).outputs[0].message.content)
                case "balance":
                    for _ in sys.stdin:  # a call for each line
                        say("answer", tokens=len(generate(stub, command).outputs[0].tokens))
                case _:
                    stream(stub, command)
        except grpc.RpcError as error:
            show_error(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
