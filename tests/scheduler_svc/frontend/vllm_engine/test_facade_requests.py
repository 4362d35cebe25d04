"""The facade's requests, field by field: each reaches a field of ours or is refused by its name."""

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from smg_grpc_proto import vllm_engine_pb2 as vllm

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.vllm_engine.request import (
    WITHOUT_EFFECT,
    generation_of,
    in_facades_words,
)
from pagewire.v1 import generation_pb2 as pb

NESTED = {
    "sampling_params": "SamplingParams",
    "tokenized": "TokenizedInput",
    "sampling_params.choice": "ChoiceConstraint",
}
"""Messages whose own fields are gone through."""
REFUSED = {
    "kv_transfer_params",
    "kv_transfer_params_json",
    "mm_inputs",
    "extra_mm_inputs",
    "media_refs",
    "data_parallel_rank",
    "sampling_params.truncate_prompt_tokens",
    "sampling_params.structural_tag",
}
"""All that a gateway may say and this server does not do."""


def fields(kind: str = "GenerateRequest", path: str = "") -> Iterator[tuple[str, FieldDescriptor]]:
    """Every field of the requests that the proto has today, with its path."""
    for field in vllm.DESCRIPTOR.message_types_by_name[kind].fields:
        name = f"{path}{field.name}"
        if name in NESTED:
            yield from fields(NESTED[name], f"{name}.")
        else:
            yield name, field


EVERY = dict(fields())


def set_field(message: Any, field: FieldDescriptor) -> None:
    """To something other than neutral."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value_type = field.message_type.fields_by_name["value"]
        assert value_type.message_type is None
        getattr(message, field.name)[5] = 2
    elif field.message_type is not None:
        at = getattr(message, field.name)
        if field.is_repeated:
            at.add()
        else:
            at.SetInParent()
    else:
        value: Any = 3
        if field.type == FieldDescriptor.TYPE_STRING:
            value = "x"
        elif field.type == FieldDescriptor.TYPE_BOOL:
            value = True
        elif field.type == FieldDescriptor.TYPE_FLOAT:
            value = 0.5
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)


def request_with(path: str, kind: Any = vllm.GenerateRequest) -> Any:
    request = kind()
    *rooms, _ = path.split(".")
    at = request
    for room in rooms:
        getattr(at, room).SetInParent()
        at = getattr(at, room)
    set_field(at, at.DESCRIPTOR.fields_by_name[path.rpartition(".")[2]])
    if not request.HasField("input"):
        request.text = "a"
    return request


@pytest.mark.parametrize("path", EVERY)
def test_every_field_reaches_one_of_ours_or_is_refused(path: str) -> None:
    request = request_with(path)
    neutral = type(request)()
    if request.WhichOneof("input") == "tokenized":
        neutral.tokenized.SetInParent()
    else:
        neutral.text = "a"
    if path.startswith("sampling_params.choice."):
        neutral.sampling_params.choice.SetInParent()
    if path == "text":
        neutral.text = "another"
    if path in REFUSED:
        with pytest.raises(InvalidArgument) as refused:
            generation_of(request)
        assert refused.value.field == path
        assert path not in WITHOUT_EFFECT
    elif path in WITHOUT_EFFECT:
        assert generation_of(request) == generation_of(neutral)
    else:
        assert generation_of(request) != generation_of(neutral)


def test_what_is_without_effect_is_a_field_of_today() -> None:
    assert set(WITHOUT_EFFECT) <= set(EVERY)


def test_fields_that_a_later_proto_brings_are_refused() -> None:
    pool = descriptor_pool.DescriptorPool()
    for dependency in (vllm.DESCRIPTOR.dependencies[0],):
        pool.Add(descriptor_pb2.FileDescriptorProto.FromString(dependency.serialized_pb))
    later = descriptor_pb2.FileDescriptorProto.FromString(vllm.DESCRIPTOR.serialized_pb)
    for kind in later.message_type:
        if kind.name in ("GenerateRequest", *NESTED.values()):
            kind.field.add(
                name="of_tomorrow",
                number=1000,
                type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
                label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
            )
    pool.Add(later)
    newer = message_factory.GetMessageClass(pool.FindMessageTypeByName("vllm.grpc.engine.GenerateRequest"))
    for path in ("of_tomorrow", *(f"{room}.of_tomorrow" for room in NESTED)):
        with pytest.raises(InvalidArgument) as refused:
            generation_of(request_with(path, newer))
        assert refused.value.field == path


def test_scalars_that_are_not_set_are_neutral_and_not_the_models_defaults() -> None:
    made = generation_of(vllm.GenerateRequest(text="a")).generation
    expected = pb.Sampling(temperature=1, top_k=0, top_p=1, min_p=0, repetition_penalty=1)
    assert made.sampling == expected
    assert made.output == pb.Output(text=False, skip_special_tokens=False)
    assert not made.HasField("stopping")
    assert not made.HasField("n")
    greedy = vllm.GenerateRequest(text="a", sampling_params=vllm.SamplingParams(temperature=0, max_tokens=0))
    made = generation_of(greedy).generation
    assert made.sampling.temperature == 0
    assert made.stopping.HasField("max_tokens")  # 0, which is refused as any other request's is


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"logprobs": -1}, "sampling_params.logprobs"),
        ({"prompt_logprobs": -1}, "sampling_params.prompt_logprobs"),
        ({"seed": -2}, "sampling_params.seed"),
        ({"logit_bias": {-1: 1.0}}, "sampling_params.logit_bias"),
        ({"json_object": False}, "sampling_params.json_object"),
    ],
)
def test_values_that_our_own_fields_cannot_say(params: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        generation_of(vllm.GenerateRequest(text="a", sampling_params=vllm.SamplingParams(**params)))
    assert refused.value.field == field


def test_values_that_say_nothing() -> None:
    plain = generation_of(vllm.GenerateRequest(text="a"))
    for request in (
        vllm.GenerateRequest(text="a", data_parallel_rank=0),
        vllm.GenerateRequest(text="a", sampling_params=vllm.SamplingParams(seed=-1)),
    ):
        assert generation_of(request) == plain


def test_a_prompt_is_required() -> None:
    with pytest.raises(InvalidArgument) as refused:
        generation_of(vllm.GenerateRequest(request_id="a"))
    assert refused.value.field == "input"


@pytest.mark.parametrize(
    ("ours", "facades"),
    [
        ("generation.sampling.temperature", "sampling_params.temperature"),
        ("generation.sampling", "sampling_params"),
        ("generation.stopping.max_tokens", "sampling_params.max_tokens"),
        ("generation.stopping.stop_strings[3]", "sampling_params.stop[3]"),
        ("generation.output.num_candidates", "sampling_params.logprobs"),
        ("generation.constraint", "sampling_params.constraint"),
        ("generation.constraint.json_schema", "sampling_params.json_schema"),
        ("generation.constraint.choice.texts[1]", "sampling_params.choice.choices[1]"),
        ("generation.prompt.token_ids.ids[2]", "tokenized.input_ids[2]"),
        ("generation.request_id", "request_id"),
        ("generation.n", "sampling_params.n"),
        ("the request", "the request"),
    ],
)
def test_errors_name_the_facades_fields(ours: str, facades: str) -> None:
    error = in_facades_words(InvalidArgument(ours, "is wrong"))
    assert (error.field, error.message) == (facades, f"{facades} is wrong")
