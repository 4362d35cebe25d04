"""The boundary matrix: every field of sampling, stopping and output at its edges, just past them and far past them,
beside 64 streams that must not notice.

A real service over real gRPC. A value is among those accepted, or among those refused with the field's path. A field
that the contract gains must come into the table.
"""

import math
from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from support.bystanders import Bystanders
from support.checkpoints import Checkpoint, build_hf_model, save_checkpoint
from support.service import LIMIT_S, Service, generation, serve

from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2

pytestmark = pytest.mark.slow

VOCAB_SIZE = 256
MAX_LEN = 128
PROMPT = [1, 2, 3]
MOST = MAX_LEN - len(PROMPT)
HUGE = 3.4e38
NOT_NUMBERS = (math.nan, math.inf, -math.inf)
UINT32_MAX = 2**32 - 1
NUM_BYSTANDERS = 64
"""The model has no tokenizer: what fields of text do with one is tested elsewhere."""

ACCEPTED: dict[str, list[object]] = {
    "sampling.temperature": [0, 1e-45, 100, -0.0],
    "sampling.top_k": [0, 1, VOCAB_SIZE, UINT32_MAX],
    "sampling.top_p": [1e-45, 1],
    "sampling.min_p": [0, 1, -0.0],
    "sampling.presence_penalty": [-2, 2, 0, -0.0],
    "sampling.frequency_penalty": [-2, 2, 0, -0.0],
    "sampling.repetition_penalty": [0.01, 1, 100],
    "sampling.logit_bias": [{}, {0: -100}, {VOCAB_SIZE - 1: 100}, dict.fromkeys(range(VOCAB_SIZE), 0.5), {3: -0.0}],
    "sampling.seed": [0, 2**64 - 1],
    "sampling.allowed_token_ids": [[], [0], [VOCAB_SIZE - 1], list(range(VOCAB_SIZE)), [5] * VOCAB_SIZE],
    "sampling.banned_token_ids": [[], [0], list(range(VOCAB_SIZE - 1)), [5] * VOCAB_SIZE],
    "stopping.max_tokens": [1, MOST],
    "stopping.min_tokens": [0, 1, 8],
    "stopping.stop_token_ids": [[], [0], [VOCAB_SIZE - 1] * 64],
    "stopping.ignore_eos": [False, True],
    "stopping.include_stop": [False, True],
    "output.text": [False],
    "output.token_ids": [True, False],
    "output.logprobs": [False, True],
    "output.num_candidates": [0, 20],
    "output.prompt_logprobs": [False, True],
    "output.num_prompt_candidates": [0, 20],
    "output.skip_special_tokens": [False, True],
    "output.logprob_token_ids": [[], [0], [VOCAB_SIZE - 1] * 128],
    "output.processed_logprobs": [False, True],
    "output.parts": [False],
}
REFUSED: dict[str, list[object]] = {
    "sampling.temperature": [-1e-45, 100.00001, HUGE, -HUGE, *NOT_NUMBERS],
    "sampling.top_p": [0, -0.0, 1.0000001, -1, HUGE, *NOT_NUMBERS],
    "sampling.min_p": [-1e-45, 1.0000001, HUGE, *NOT_NUMBERS],
    "sampling.presence_penalty": [-2.000001, 2.000001, HUGE, *NOT_NUMBERS],
    "sampling.frequency_penalty": [-2.000001, 2.000001, HUGE, *NOT_NUMBERS],
    "sampling.repetition_penalty": [0.0099, 0, -0.0, -1, 100.00001, HUGE, *NOT_NUMBERS],
    "sampling.logit_bias": [
        {VOCAB_SIZE: 1},
        {UINT32_MAX: 1},
        {1: 100.00001},
        {1: -100.00001},
        {1: math.nan},
        {1: math.inf},
        dict.fromkeys(range(30_000), 1.0),
    ],
    "sampling.allowed_token_ids": [[VOCAB_SIZE], [0, UINT32_MAX], [1] * 100_000],
    "sampling.banned_token_ids": [[VOCAB_SIZE], [0, UINT32_MAX], [1] * 100_000],
    "sampling.bad_words": [["x"], [""], ["x" * 257], ["x"] * 129],
    "stopping.max_tokens": [0, MAX_LEN, UINT32_MAX],
    "stopping.min_tokens": [MOST + 3, UINT32_MAX],
    "stopping.stop_strings": [["x"], [""], ["x" * 257], ["x"] * 17],
    "stopping.stop_token_ids": [[VOCAB_SIZE], [1] * 65, [UINT32_MAX], [1] * 100_000],
    "output.text": [True],
    "output.parts": [True],
    "output.num_candidates": [21, UINT32_MAX],
    "output.num_prompt_candidates": [21, UINT32_MAX],
    "output.logprob_token_ids": [[VOCAB_SIZE], [1] * 129, [UINT32_MAX], [1] * 100_000],
}
MESSAGES = {"sampling": pb.Sampling, "stopping": pb.Stopping, "output": pb.Output}


def test_the_table_has_every_field() -> None:
    every = {f"{name}.{field.name}" for name, kind in MESSAGES.items() for field in kind.DESCRIPTOR.fields}
    assert every == set(ACCEPTED) | set(REFUSED)
    never_wrong = {"sampling.top_k", "sampling.seed"}
    for name, kind in MESSAGES.items():
        never_wrong |= {f"{name}.{field.name}" for field in kind.DESCRIPTOR.fields if field.type == field.TYPE_BOOL}
    assert every - set(REFUSED) <= never_wrong


def each_of(table: dict[str, list[object]]) -> Iterator[tuple[str, object]]:
    for field, values in table.items():
        for value in values:
            yield field, value


def message(field: str, value: object) -> pb.Generation:
    room, name = field.split(".")
    made = generation(PROMPT, sampling={"seed": 1}, stopping={"max_tokens": 8})
    part = getattr(made, room)
    part.MergeFrom(MESSAGES[room](**{name: value}))
    return made


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save_checkpoint(build_hf_model("qwen3-tied"), tmp_path_factory.mktemp("boundaries"))


@pytest.fixture(scope="module")
def service(checkpoint: Checkpoint) -> Iterator[Service]:
    with serve(
        model=str(checkpoint.directory), device="cpu", dtype="float32", max_model_len=MAX_LEN, max_num_seqs=96
    ) as running:
        yield running


def outcome(service: Service, request: pb.Generation) -> str | None:
    """The path that a refusal names; none for an answer. Anything else fails the test."""
    call = service.inference.Generate.future(inference_pb2.GenerateRequest(generation=request), timeout=LIMIT_S)
    if (error := call.exception()) is None:
        (output,) = call.result().outputs
        assert output.tokens
        return None
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in rpc_status.from_call(call).details)
    path: str = bad.field_violations[0].field
    return path


def test_every_boundary_gives_what_is_documented_and_disturbs_nobody(service: Service) -> None:
    bystanders = Bystanders(service, NUM_BYSTANDERS)
    pids = {role: process.pid for role, process in service.children().items()}
    complaints = []
    with bystanders.watching() as counts:
        for field, value in each_of(ACCEPTED):
            if (path := outcome(service, message(field, value))) is not None:
                complaints.append(f"{field} = {value!r:.60} was refused for {path}")
        for field, value in each_of(REFUSED):
            path = outcome(service, message(field, value))
            if path is None or not path.startswith(f"generation.{field}"):
                complaints.append(f"{field} = {value!r:.60} was not refused, but {path}")
    assert not complaints, "\n".join(complaints)
    assert not bystanders.wrong, "\n".join(bystanders.wrong)
    assert min(counts) > 0
    assert {role: process.pid for role, process in service.children().items()} == pids


def test_values_of_the_wrong_kind_are_refused_by_the_parser(service: Service) -> None:
    """A field's bytes with another wire type are an unknown field to protobuf; text that is no UTF-8 is no message."""
    made = generation(PROMPT, stopping={"max_tokens": 8})
    number = pb.Sampling.DESCRIPTOR.fields_by_name["temperature"].number
    made.sampling.MergeFromString(bytes([number << 3 | 0, 5]))  # a varint where a float should stand
    assert outcome(service, made) == f"generation.sampling.{number}"
    made = generation(PROMPT, stopping={"max_tokens": 8})
    made.stopping.MergeFromString(bytes([15 << 3, 1]))
    assert outcome(service, made) == "generation.stopping.15"


def test_a_request_whose_controls_leave_nothing_ends_alone(service: Service) -> None:
    banned = generation(PROMPT, sampling={"banned_token_ids": range(VOCAB_SIZE)}, stopping={"max_tokens": 8})
    assert outcome(service, banned) == "generation.sampling"
    assert outcome(service, message("sampling.top_k", 5)) is None
