"""Requests: from the facade's GenerateRequest to a `pagewire.v1.Generation`, and errors back to the facade's fields.

Every field reaches one of ours or is refused by name once it is set. What is set is asked of the message itself, so
that a field which a later version of the proto brings is refused, too, until somebody has read what it means. Ranges
are no matter of this module: `request/validate.py` holds what comes out to the same limits as every other request.

Scalars without presence mean nothing where they are 0, as vLLM's own server reads them: a sampling parameter is neutral
then, and `n` is 1. The model's own defaults are not applied: the gateway applies those of GetModelInfo itself.
"""

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2, model_pb2
from pagewire.wire.sampling import SamplingParams

_SAMPLING = "sampling_params"
_RANDOM_SEED = -1
_DEFAULTED = tuple(field.name for field in model_pb2.DefaultSampling.DESCRIPTOR.fields)
"""Sampling parameters that a model may have defaults of."""
_NEUTRAL = SamplingParams()

WITHOUT_EFFECT = {
    "tokenized.original_text": "for reference, as the proto says",
    "sampling_params.spaces_between_special_tokens": "no text is sent; fast tokenizers put no space there",
    "sampling_params.grammar_from_first_token": "a constraint always holds from the first token",
    "stream": "how the answer is sent; read by whoever sends it",
}
"""Fields that change no Generation, whatever they hold, and why."""

_REFUSED = {
    "kv_transfer_params": "prefill and decode on different servers are not supported",
    "kv_transfer_params_json": "prefill and decode on different servers are not supported",
    "mm_inputs": "images and other media are not supported",
    "extra_mm_inputs": "images and other media are not supported",
    "media_refs": "images and other media are not supported",
    "sampling_params.truncate_prompt_tokens": "a prompt is not cut; send the ids that count",
    "sampling_params.structural_tag": "use json_schema, regex or grammar",
}


def generation_of(request: Any) -> inference_pb2.StreamGenerateRequest:
    """A vllm.grpc.engine.GenerateRequest as ours. Raises InvalidArgument with the facade's field."""
    made = inference_pb2.StreamGenerateRequest()
    generation = made.generation
    _read(request, "", _REQUEST_FIELDS, generation)
    if not request.HasField("input"):
        raise InvalidArgument("input", "is not set: tokenized or text is required")
    if request.request_id:
        generation.request_id = request.request_id
    params = request.sampling_params
    # What has a meaning where it is not set.
    generation.output.text = False
    generation.output.skip_special_tokens = params.skip_special_tokens
    for name in _DEFAULTED:
        value = getattr(params, name)
        has_presence = params.DESCRIPTOR.fields_by_name[name].has_presence
        is_set = params.HasField(name) if has_presence else value != 0
        setattr(generation.sampling, name, value if is_set else getattr(_NEUTRAL, name))
    return made


def in_facades_words(error: InvalidArgument) -> InvalidArgument:
    """The same error with the field of the facade that the one of ours was made from."""
    if error.field == "generation.constraint":  # as a whole
        return InvalidArgument(f"{_SAMPLING}.constraint", error.problem)
    for ours, facades in _FIELDS:
        if error.field == ours or error.field.startswith((f"{ours}.", f"{ours}[")):
            return InvalidArgument(facades + error.field[len(ours) :], error.problem)
    return error


def refuse_set_fields(message: Message) -> None:
    """Raise InvalidArgument for the first field that is set. For requests that have none today."""
    for field, _ in message.ListFields():
        raise InvalidArgument(field.name, "is not supported by this server")


_Reader = Callable[[Any, pb.Generation], None]


def _read(message: Message, path: str, fields: dict[str, _Reader], generation: pb.Generation) -> None:
    for field, value in message.ListFields():
        name = f"{path}{field.name}"
        reader = fields.get(field.name)
        if reader is not None:
            reader(value, generation)
        elif name not in WITHOUT_EFFECT:
            raise InvalidArgument(name, f"is not supported: {_REFUSED.get(name, 'this server does not know it')}")


def _tokenized(value: Any, generation: pb.Generation) -> None:
    _read(value, "tokenized.", {"input_ids": _input_ids}, generation)
    generation.prompt.token_ids.SetInParent()


def _input_ids(ids: Any, generation: pb.Generation) -> None:
    generation.prompt.token_ids.ids.extend(ids)


def _text(text: str, generation: pb.Generation) -> None:
    generation.prompt.text = text


def _sampling_params(params: Any, generation: pb.Generation) -> None:
    _read(params, f"{_SAMPLING}.", _SAMPLING_FIELDS, generation)


def _data_parallel_rank(rank: int, _generation: pb.Generation) -> None:
    if rank != 0:
        raise InvalidArgument("data_parallel_rank", f"is {rank}; this server has one rank, 0")


def _nothing(_value: Any, _generation: pb.Generation) -> None:
    """Read by `generation_of`."""


def _sampling(name: str) -> _Reader:
    def read(value: Any, generation: pb.Generation) -> None:
        setattr(generation.sampling, name, value)

    return read


def _stopping(name: str) -> _Reader:
    def read(value: Any, generation: pb.Generation) -> None:
        setattr(generation.stopping, name, value)

    return read


def _seed(seed: int, generation: pb.Generation) -> None:
    if seed == _RANDOM_SEED:
        return
    if seed < 0:
        raise InvalidArgument(f"{_SAMPLING}.seed", f"is {seed}; its range is 0 to 2147483647, or -1 for a random one")
    generation.sampling.seed = seed


def _logit_bias(biases: Any, generation: pb.Generation) -> None:
    for token, bias in biases.items():
        if token < 0:
            raise InvalidArgument(f"{_SAMPLING}.logit_bias", f"has the token id {token}; ids begin at 0")
        generation.sampling.logit_bias[token] = bias


def _stop(stops: Any, generation: pb.Generation) -> None:
    generation.stopping.stop_strings.extend(stops)


def _stop_token_ids(ids: Any, generation: pb.Generation) -> None:
    generation.stopping.stop_token_ids.extend(ids)


def _n(n: int, generation: pb.Generation) -> None:
    generation.n = n


def _logprobs(number: int, generation: pb.Generation) -> None:
    generation.output.logprobs = True
    generation.output.num_candidates = _candidates("logprobs", number)


def _prompt_logprobs(number: int, generation: pb.Generation) -> None:
    generation.output.prompt_logprobs = True
    generation.output.num_prompt_candidates = _candidates("prompt_logprobs", number)


def _candidates(name: str, number: int) -> int:
    if number < 0:
        whole = ", the whole vocabulary, which is not sent" if number == -1 else ""
        raise InvalidArgument(f"{_SAMPLING}.{name}", f"is {number}{whole}; its range is 0 to 20")
    return number


def _constraint(name: str) -> _Reader:
    def read(value: str, generation: pb.Generation) -> None:
        setattr(generation.constraint, name, value)

    return read


def _json_object(wanted: bool, generation: pb.Generation) -> None:
    if not wanted:
        raise InvalidArgument(f"{_SAMPLING}.json_object", "is false, which constrains nothing; leave it unset")
    generation.constraint.json_object.SetInParent()


def _choice(choice: Any, generation: pb.Generation) -> None:
    generation.constraint.choice.SetInParent()
    _read(choice, f"{_SAMPLING}.choice.", {"choices": _choices}, generation)


def _choices(choices: Any, generation: pb.Generation) -> None:
    generation.constraint.choice.texts.extend(choices)


_REQUEST_FIELDS: dict[str, _Reader] = {
    "request_id": _nothing,
    "tokenized": _tokenized,
    "text": _text,
    "sampling_params": _sampling_params,
    "data_parallel_rank": _data_parallel_rank,
}
_SAMPLING_FIELDS: dict[str, _Reader] = {
    **dict.fromkeys(_DEFAULTED, _nothing),
    "skip_special_tokens": _nothing,
    "frequency_penalty": _sampling("frequency_penalty"),
    "presence_penalty": _sampling("presence_penalty"),
    "max_tokens": _stopping("max_tokens"),
    "min_tokens": _stopping("min_tokens"),
    "stop": _stop,
    "stop_token_ids": _stop_token_ids,
    "ignore_eos": _stopping("ignore_eos"),
    "include_stop_str_in_output": _stopping("include_stop"),
    "n": _n,
    "logprobs": _logprobs,
    "prompt_logprobs": _prompt_logprobs,
    "seed": _seed,
    "logit_bias": _logit_bias,
    "json_schema": _constraint("json_schema"),
    "regex": _constraint("regex"),
    "grammar": _constraint("grammar"),
    "json_object": _json_object,
    "choice": _choice,
}

_FIELDS = [
    ("generation.prompt.token_ids.ids", "tokenized.input_ids"),
    ("generation.prompt.token_ids", "tokenized.input_ids"),
    ("generation.prompt.text", "text"),
    ("generation.prompt", "input"),
    ("generation.request_id", "request_id"),
    ("generation.n", f"{_SAMPLING}.n"),
    ("generation.stopping.stop_strings", f"{_SAMPLING}.stop"),
    ("generation.stopping.include_stop", f"{_SAMPLING}.include_stop_str_in_output"),
    ("generation.stopping", _SAMPLING),
    ("generation.sampling", _SAMPLING),
    ("generation.output.num_candidates", f"{_SAMPLING}.logprobs"),
    ("generation.output.num_prompt_candidates", f"{_SAMPLING}.prompt_logprobs"),
    ("generation.output", _SAMPLING),
    ("generation.constraint.choice.texts", f"{_SAMPLING}.choice.choices"),
    ("generation.constraint", _SAMPLING),
]
"""Ours → the facade's; the first that begins a path counts."""
