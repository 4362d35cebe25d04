"""Constrained outputs of a real model through the whole service, and what bad constraints are to everybody else."""

import json
import re
from collections.abc import Iterator

import grpc
import pytest
from support.service import LIMIT_S, Service, generation, serve, stream_request

from pagewire.client import Client, InvalidRequest, Tag
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2, model_pb2, model_pb2_grpc

pytestmark = [pytest.mark.slow, pytest.mark.model]

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
BAD = [
    pb.Constraint(json_schema="x"),
    pb.Constraint(json_schema='{"type": "nothing"}'),
    pb.Constraint(json_schema='{"a":' * 20_000 + "1" + "}" * 20_000),
    pb.Constraint(regex="("),
    pb.Constraint(regex="(" * 100_000),
    pb.Constraint(grammar="start: nowhere"),
    pb.Constraint(grammar="start: start"),
    pb.Constraint(grammar="root ::= " + "(" * 100_000),
    pb.Constraint(choice=pb.Choices()),
]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serve(model="smollm2-135m", device="cpu", max_model_len=512, max_num_seqs=64) as running:
        yield running


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[Client]:
    with Client(service.address) as client:
        yield client


def test_the_model_says_so(service: Service) -> None:
    stub = model_pb2_grpc.ModelServiceStub(service.channel)
    assert stub.GetModel(model_pb2.GetModelRequest(), timeout=LIMIT_S).model.capabilities.constraints


def test_json_of_a_schema(client: Client) -> None:
    for seed in range(8):
        result = client.generate("Someone: ", json_schema=SCHEMA, temperature=1, seed=seed, max_tokens=200)
        value = json.loads(result.text)
        assert result.finish_reason == "eos"
        assert list(value) == ["name", "age", "tags"]
        assert len(value["name"]) <= 12
        assert 0 <= value["age"] <= 120
        assert set(value["tags"]) <= {"red", "green"}


def test_every_other_kind(client: Client) -> None:
    def ask(**constraint: object) -> str:
        return client.generate("Say: ", temperature=1.2, seed=3, max_tokens=120, **constraint).text  # type: ignore[arg-type]

    assert ask(choice=["yes", "no, never"]) in ("yes", "no, never")
    assert re.fullmatch(r"[a-z]{3}-\d{2,4}", ask(regex=r"[a-z]{3}-\d{2,4}"))
    assert re.fullmatch(r"\d+(\+\d+)+", ask(grammar='start: N ("+" N)~1..3\nN: /[0-9]{1,3}/'))
    assert re.fullmatch(r"(ab){1,3}", ask(grammar='root ::= "ab" ("ab" "ab"?)?'))
    tags = [Tag("<age>", json_schema={"type": "integer"}, end="</age>"), Tag("<", regex="b>bold<", end="/b>")]
    text = ask(structural_tags=tags, logit_bias={44: 12.0})  # which is "<"
    assert "<" in text
    for part in re.findall(r"<.*?>", text)[:-1]:
        assert part in ("<age>", "</age>", "<b>", "</b>")


def test_several_outputs_and_log_probabilities(service: Service) -> None:
    request = generation(
        text="Someone: ",
        n=4,
        sampling={"temperature": 1, "seed": 1},
        stopping={"max_tokens": 200},
        constraint=pb.Constraint(json_schema=json.dumps(SCHEMA)),
        output=pb.Output(logprobs=True, num_candidates=3, processed_logprobs=True),
    )
    answer = service.inference.Generate(inference_pb2.GenerateRequest(generation=request), timeout=LIMIT_S)
    texts = [b"".join(token.text for token in output.tokens).decode() for output in answer.outputs]
    assert [list(json.loads(text)) for text in texts] == [["name", "age", "tags"]] * 4
    assert len(set(texts)) > 1
    first = answer.outputs[0].tokens[0]
    assert first.candidates[0].bytes.startswith(b"{")


def test_a_bad_one_is_refused_with_its_field_and_disturbs_nobody(service: Service) -> None:
    """Three rounds of every kind beside streams, half of them constrained, that are what they were alone."""

    def streams() -> list[inference_pb2.StreamGenerateRequest]:
        return [
            stream_request(
                text="Once upon a time",
                sampling={"temperature": 0},
                stopping={"max_tokens": 60},
                constraint=pb.Constraint(json_schema=json.dumps(SCHEMA)) if number % 2 else None,
            )
            for number in range(8)
        ]

    def texts(calls: list[Iterator[inference_pb2.StreamGenerateResponse]]) -> list[bytes]:
        return [b"".join(token.text for event in call for token in event.delta.tokens) for call in calls]

    def open_all() -> list[Iterator[inference_pb2.StreamGenerateResponse]]:
        return [service.inference.StreamGenerate(request, timeout=LIMIT_S) for request in streams()]

    alone = texts(open_all())
    calls = open_all()
    for bad in BAD * 3:
        request = generation(text="x", constraint=bad, stopping={"max_tokens": 5})
        with pytest.raises(grpc.RpcError) as refused:
            service.inference.Generate(inference_pb2.GenerateRequest(generation=request), timeout=LIMIT_S)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details().startswith(f"generation.constraint.{bad.WhichOneof('kind')}")
        assert len(refused.value.details()) < 1000
    assert texts(calls) == alone


def test_where_other_controls_leave_nothing_the_request_says_so(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="leave no token"):
        client.generate("x", choice=["yes"], min_tokens=20, max_tokens=40)


def test_an_output_that_ends_early_is_a_beginning(client: Client) -> None:
    result = client.generate("x", json_schema={"type": "string", "minLength": 200}, max_tokens=10)
    assert result.finish_reason == "length"
    assert result.text.startswith('"')
