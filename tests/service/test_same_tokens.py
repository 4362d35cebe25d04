"""The same request with the same seed gives the same answer, whatever happens around it.

SmolLM2 in fp32 and in bf16 behind the whole service, with the native kernels. Every class of request is asked alone,
one after the other; then all at once in other orders; in memory so small that sequences are preempted; and while the
worker or the engine is killed. Tokens, texts, log-probabilities, parts of chats and ends must be equal to the last bit.
"""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from support.service import LIMIT_S, Service, generation, serve

from pagewire.scheduler_svc.frontend.streams.parts import join_parts
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2, inference_pb2_grpc

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(900)]

TEXTS = ["The capital of France is", "Once upon a time, in a village by the sea,", "Ein Rezept für Brot: 1. "]
MAX_TOKENS = 40
PENALTIES = {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.2}
BIAS = {284: 4.0, 253: -100.0, 30: 2.5}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "lines": {"type": "array", "items": {"type": "string", "maxLength": 30}, "minItems": 2},
    },
    "required": ["name", "lines"],
}
TOOLS = [pb.Tool(name="find", parameters=json.dumps(SCHEMA)), pb.Tool(name="now")]
CHAT: dict[str, Any] = {
    "messages": [pb.ChatMessage(role=pb.CHAT_ROLE_USER, content="Find it.")],
    "tools": TOOLS,
    "format": pb.ChatFormat(reasoning=pb.REASONING_FORMAT_THINK, tool_calls=pb.TOOL_CALL_FORMAT_QWEN3),
}
CLASSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "penalized": {"sampling": PENALTIES},
    "biased": {"sampling": {"logit_bias": BIAS, "banned_token_ids": [28, 198]}},
    "allowed": {"sampling": {"allowed_token_ids": list(range(200, 3000))}, "stopping": {"min_tokens": 12}},
    "stop text": {"stopping": {"stop_strings": [" the", "\n\n", ". T"], "min_tokens": 5}},
    "n": {"n": 4, "sampling": PENALTIES},
    "constrained": {"constraint": pb.Constraint(json_schema=json.dumps(SCHEMA)), "n": 2, "sampling": PENALTIES},
    "tools": {"chat": CHAT, "n": 2},
    "required tools": {
        "chat": {**CHAT, "tool_choice": pb.ToolChoice(required=pb.RequiredToolChoice())},
        "n": 2,
        "sampling": PENALTIES,
    },
    "log-probabilities": {
        "output": {"logprobs": True, "num_candidates": 5, "logprob_token_ids": [260, 7], "prompt_logprobs": True}
    },
    "everything": {
        "n": 2,
        "sampling": {**PENALTIES, "logit_bias": BIAS, "bad_words": ["the", "and a"], "min_p": 0.01, "top_p": 0.98},
        "stopping": {"min_tokens": 20, "stop_strings": ["was", ","], "stop_token_ids": [30]},
        "output": {"logprobs": True, "num_candidates": 20, "processed_logprobs": True, "num_prompt_candidates": 2},
    },
}


@dataclass(frozen=True)
class Asked:
    """One request, by its class; two of one class differ in text and seed."""

    kind: str
    number: int

    def message(self, priority: int = 0) -> inference_pb2.StreamGenerateRequest:
        asked = CLASSES[self.kind]
        sampling = {"temperature": 1.2, "seed": 1000 + self.number, **asked.get("sampling", {})}  # type: ignore[dict-item]
        stopping = {"max_tokens": MAX_TOKENS, **asked.get("stopping", {})}  # type: ignore[dict-item]
        return inference_pb2.StreamGenerateRequest(
            generation=generation(
                text=None if "chat" in asked else TEXTS[self.number % len(TEXTS)],
                chat=pb.Chat(**asked["chat"]) if "chat" in asked else None,  # type: ignore[arg-type]
                n=asked.get("n", 1),
                sampling=sampling,
                stopping=stopping,
                output=pb.Output(**asked.get("output", {})),  # type: ignore[arg-type]
                constraint=asked.get("constraint"),
                priority=priority,
            )
        )


ALL = [Asked(kind, number) for kind in CLASSES for number in range(4)]

Answer = tuple[tuple[object, ...], ...]
"""What a client has in the end: the prompt's tokens, and each output's tokens and end, as bytes."""


def read(call: Iterator[inference_pb2.StreamGenerateResponse]) -> Answer:
    prompt: list[bytes] = []
    outputs: dict[int, list[bytes]] = {}
    parts: dict[int, list[pb.Part]] = {}
    ends: dict[int, bytes] = {}
    for event in call:
        match event.WhichOneof("event"):
            case "prompt_tokens":
                prompt += [token.SerializeToString(deterministic=True) for token in event.prompt_tokens.tokens]
            case "delta":
                outputs.setdefault(event.delta.output, []).extend(
                    token.SerializeToString(deterministic=True) for token in event.delta.tokens
                )
                parts.setdefault(event.delta.output, []).extend(event.delta.parts)
            case "finished":
                assert event.finished.output not in ends, "an output ended twice"
                ends[event.finished.output] = event.finished.SerializeToString(deterministic=True)
    for index, told in parts.items():
        whole = inference_pb2.Completion()
        join_parts(told, whole)
        outputs[index].append(whole.SerializeToString(deterministic=True))
    return (tuple(prompt), *((tuple(outputs.get(index, ())), ends[index]) for index in sorted(ends)))


def smollm2(dtype: str, **settings: object) -> AbstractContextManager[Service]:
    return serve(model="smollm2-135m", device="cpu", dtype=dtype, max_model_len=256, **settings)


def ask_all(
    service: Service,
    requests: list[Asked],
    during: Callable[[], None] = lambda: None,
    draw: random.Random | None = None,
) -> dict[Asked, Answer]:
    """All at once, in this order, with priorities where they are drawn."""
    calls = {
        asked: service.inference.StreamGenerate(
            asked.message(0 if draw is None else draw.choice((0, 0, 5, -5))), timeout=5 * LIMIT_S
        )
        for asked in requests
    }
    during()
    return {asked: read(call) for asked, call in calls.items()}


def unlike(answers: dict[Asked, Answer], expected: dict[Asked, Answer]) -> list[str]:
    return [f"{asked.kind} {asked.number}" for asked, answer in answers.items() if answer != expected[asked]]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    named: str = request.param
    return named


@pytest.fixture(scope="module")
def service(dtype: str) -> Iterator[Service]:
    with smollm2(dtype, max_num_seqs=64) as running:
        yield running


@pytest.fixture(scope="module")
def alone(service: Service) -> dict[Asked, Answer]:
    """Every request by itself."""
    answers = {}
    for asked in ALL:
        answers |= ask_all(service, [asked])
    assert all(len(answer) - 1 == CLASSES[asked.kind].get("n", 1) for asked, answer in answers.items())
    return answers


def test_alone_and_again(service: Service, alone: dict[Asked, Answer]) -> None:
    again = {}
    for asked in reversed(ALL):
        again |= ask_all(service, [asked])
    assert unlike(again, alone) == []


@pytest.mark.parametrize("order", range(2))
def test_in_a_batch_in_any_order(service: Service, alone: dict[Asked, Answer], order: int) -> None:
    draw = random.Random(order)
    assert len(ALL) == 44
    assert unlike(ask_all(service, draw.sample(ALL, len(ALL)), draw=draw), alone) == []


def test_after_preemptions(dtype: str, alone: dict[Asked, Answer]) -> None:
    # 30 layers of 3 heads of 64 values, keys and values: 46 KB a token in fp32; a few hundred tokens in all.
    token_bytes = 46_080 if dtype == "float32" else 23_040
    with smollm2(dtype, max_num_seqs=32, kv_cache_bytes=token_bytes * 640, block_size=16, max_n=4) as small:
        answers = ask_all(small, random.Random(7).sample(ALL, len(ALL)))
        assert small.load().preemptions > 0
    assert unlike(answers, alone) == []


def test_read_late(dtype: str, alone: dict[Asked, Answer]) -> None:
    """Of every class, by clients that take nothing until their sequences are paused."""
    asked = [Asked(kind, 0) for kind in CLASSES]
    window = [("grpc.http2.lookahead_bytes", 64), ("grpc.http2.bdp_probe", 0)]
    with (
        smollm2(dtype, stream_buffer_tokens=16) as pausing,
        grpc.insecure_channel(pausing.address, options=window) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        calls = {each: stub.StreamGenerate(each.message(), timeout=5 * LIMIT_S) for each in asked}
        rests = pausing.wait_for_load(
            lambda load: load.output_tokens > 0 and load.running_sequences == load.waiting_sequences == 0
        )
        assert rests.paused_sequences > len(CLASSES) // 2, "few had more than 16 tokens unread"
        answers = {each: read(call) for each, call in calls.items()}
    assert unlike(answers, alone) == []


@pytest.mark.parametrize("role", ["worker", "engine"])
@pytest.mark.parametrize("num_tokens", [5, 300])
def test_after_a_kill(service: Service, alone: dict[Asked, Answer], role: str, num_tokens: int) -> None:
    def kill() -> None:
        """Once so many more tokens have been generated, by all of them together."""
        before = service.load().output_tokens
        service.wait_for_load(lambda load: load.output_tokens >= before + num_tokens)
        service.children()[role].kill()

    answers = ask_all(service, random.Random(num_tokens).sample(ALL, len(ALL)), kill)
    assert unlike(answers, alone) == []
