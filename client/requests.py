"""Request building: the contract's messages from Python arguments, for both clients.

Checks what Python's types cannot carry over (a number that does not fit its field, a wrong type, a misspelled name)
and leaves ranges and meanings to the server, which alone knows the model. Every failure is an `InvalidRequest` that
names the field by its path in the contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TypeVar, cast

from google.protobuf import duration_pb2

from pagewire.client.chats import chat_message
from pagewire.client.constraints import constraint
from pagewire.client.errors import BatchError, InvalidRequest, PagewireError, brief
from pagewire.client.messages import build_message
from pagewire.client.prompts import Chat, Message, MessageLike, Parameters, Prompt, Prompts
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2

T = TypeVar("T")

_SAMPLING = tuple(pb.Sampling.DESCRIPTOR.fields_by_name)
"""Parameters of the contract's own names."""


def generation(prompt: Prompt, parameters: Parameters) -> pb.Generation:
    """The message for one prompt. Raises InvalidRequest; an unknown parameter name is a TypeError, as in any call."""
    check_names(parameters)
    get = parameters.get
    stop = get("stop")
    sampling = build_message(pb.Sampling, "generation.sampling", **{name: get(name) for name in _SAMPLING})
    stopping = build_message(
        pb.Stopping,
        "generation.stopping",
        max_tokens=get("max_tokens"),
        min_tokens=get("min_tokens"),
        stop_strings=[stop] if isinstance(stop, str) else stop,
        stop_token_ids=get("stop_token_ids"),
        ignore_eos=get("ignore_eos"),
        include_stop=get("include_stop"),
    )
    response_options = build_message(
        pb.Output,
        "generation.output",
        text=get("return_text"),
        token_ids=get("return_token_ids"),
        logprobs=get("logprobs"),
        num_candidates=get("num_candidates"),
        parts=get("return_parts"),
        prompt_logprobs=get("prompt_logprobs"),
        num_prompt_candidates=get("num_prompt_candidates"),
        skip_special_tokens=get("skip_special_tokens"),
        logprob_token_ids=get("logprob_token_ids"),
        processed_logprobs=get("processed_logprobs"),
    )
    return build_message(
        pb.Generation,
        "generation",
        model=get("model"),
        prompt=prompt_message(prompt, "generation.prompt"),
        sampling=sampling if sampling.ListFields() else None,
        stopping=stopping if stopping.ListFields() else None,
        output=response_options if response_options.ListFields() else None,
        n=get("n"),
        priority=get("priority"),
        cache_salt=get("cache_salt"),
        constraint=constraint(parameters),
        max_queue_time=_duration(get("max_queue_time_s"), "generation.max_queue_time"),
        request_id=get("request_id"),
    )


def prompt_message(prompt: object, path: str) -> pb.Prompt:
    """The message for text, token ids or a conversation. `path` is where it stands, for errors."""
    match prompt:
        case str():
            return build_message(pb.Prompt, path, text=prompt)
        case Chat():
            return pb.Prompt(chat=chat_message(prompt, f"{path}.chat"))
        case [Message() | Mapping(), *_]:
            return pb.Prompt(chat=chat_message(Chat(cast(Sequence[MessageLike], prompt)), f"{path}.chat"))
        case [int(), *_]:
            return pb.Prompt(token_ids=build_message(pb.TokenIds, f"{path}.token_ids", ids=prompt))
        case _:
            raise InvalidRequest(
                f"{path} must be text, a non-empty sequence of token ids, a non-empty sequence of messages, or a Chat, "
                f"not {brief(prompt)}",
                field=path,
            )


def several(prompts: object) -> Sequence[Prompt] | None:
    """The prompts where the argument holds several: elements that could be prompts. None where it is one prompt."""
    match prompts:
        case [str() | Chat() | list() | tuple(), *_]:
            return cast(Sequence[Prompt], prompts)
        case _:
            return None


def one(prompt: Prompt | Prompts) -> Prompt:
    """What `several` did not take for several: one prompt, which `prompt_message` checks."""
    return cast(Prompt, prompt)


def check_names(parameters: Parameters) -> None:
    """Raise TypeError for a name that is no parameter, as any call does."""
    unknown = sorted(set(parameters) - set(Parameters.__annotations__))
    if unknown:
        raise TypeError(f"unknown parameter {unknown[0]!r}")


def check_for_several(parameters: Parameters) -> None:
    """Refuse, before any prompt is under way, what holds for none of them or for one alone."""
    check_names(parameters)
    if parameters.get("request_id") is not None:
        raise InvalidRequest(
            f"request_id {parameters.get('request_id')!r} names one request, not each of several",
            field="generation.request_id",
        )


def all_or_raise(outcomes: Sequence[T | PagewireError]) -> list[T]:
    """The results of several prompts. Raises BatchError, which holds all outcomes, where some failed."""
    results = [outcome for outcome in outcomes if not isinstance(outcome, PagewireError)]
    if len(results) < len(outcomes):
        raise BatchError(outcomes)
    return results


def tokenize(prompt: Prompt, model: str | None, add_special_tokens: bool | None) -> inference_pb2.TokenizeRequest:
    """The message for Tokenize."""
    return build_message(
        inference_pb2.TokenizeRequest,
        "",
        model=model,
        prompt=prompt_message(prompt, "prompt"),
        add_special_tokens=add_special_tokens,
    )


def detokenize(
    ids: Sequence[int], model: str | None, skip_special_tokens: bool | None
) -> inference_pb2.DetokenizeRequest:
    """The message for Detokenize."""
    return build_message(
        inference_pb2.DetokenizeRequest, "", model=model, ids=ids, skip_special_tokens=skip_special_tokens
    )


def _duration(seconds: object, path: str) -> duration_pb2.Duration | None:
    if seconds is None:
        return None
    duration = duration_pb2.Duration()
    try:
        duration.FromTimedelta(timedelta(seconds=seconds))  # type: ignore[arg-type]  # a wrong type is caught
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"{path} is {seconds!r} seconds: {error}", field=path) from error
    return duration
