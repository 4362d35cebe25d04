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
from google.protobuf.message import Message as PbMessage

from pagewire.client import openai_shapes
from pagewire.client.errors import BatchError, InvalidRequest, PagewireError, brief
from pagewire.client.json_text import to_json
from pagewire.client.prompts import Chat, Message, MessageLike, Parameters, Prompt, Prompts
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2

M = TypeVar("M", bound=PbMessage)
T = TypeVar("T")

_ROLES: Mapping[str, pb.ChatRole] = {
    "system": pb.CHAT_ROLE_SYSTEM,
    "user": pb.CHAT_ROLE_USER,
    "assistant": pb.CHAT_ROLE_ASSISTANT,
    "tool": pb.CHAT_ROLE_TOOL,
}
_SAMPLING = tuple(pb.Sampling.DESCRIPTOR.fields_by_name)
"""Parameters of the contract's own names."""
_CONSTRAINTS = ("json_schema", "regex", "grammar", "choice")


def generation(prompt: Prompt, parameters: Parameters) -> pb.Generation:
    """The message for one prompt. Raises InvalidRequest; an unknown parameter name is a TypeError, as in any call."""
    check_names(parameters)
    get = parameters.get
    stop = get("stop")
    sampling = _message(pb.Sampling, "generation.sampling", **{name: get(name) for name in _SAMPLING})
    stopping = _message(
        pb.Stopping,
        "generation.stopping",
        max_tokens=get("max_tokens"),
        min_tokens=get("min_tokens"),
        stop_strings=[stop] if isinstance(stop, str) else stop,
        stop_token_ids=get("stop_token_ids"),
        ignore_eos=get("ignore_eos"),
        include_stop=get("include_stop"),
    )
    response_options = _message(
        pb.Output,
        "generation.output",
        text=get("return_text"),
        token_ids=get("return_token_ids"),
        logprobs=get("logprobs"),
        num_candidates=get("num_candidates"),
        prompt_logprobs=get("prompt_logprobs"),
        num_prompt_candidates=get("num_prompt_candidates"),
        skip_special_tokens=get("skip_special_tokens"),
        logprob_token_ids=get("logprob_token_ids"),
        processed_logprobs=get("processed_logprobs"),
    )
    return _message(
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
        constraint=_constraint(parameters),
        max_queue_time=_duration(get("max_queue_time_s"), "generation.max_queue_time"),
        request_id=get("request_id"),
    )


def prompt_message(prompt: object, path: str) -> pb.Prompt:
    """The message for text, token ids or a conversation. `path` is where it stands, for errors."""
    match prompt:
        case str():
            return _message(pb.Prompt, path, text=prompt)
        case Chat():
            return pb.Prompt(chat=_chat(prompt, f"{path}.chat"))
        case [Message() | Mapping(), *_]:
            return pb.Prompt(chat=_chat(Chat(cast(Sequence[MessageLike], prompt)), f"{path}.chat"))
        case [int(), *_]:
            return pb.Prompt(token_ids=_message(pb.TokenIds, f"{path}.token_ids", ids=prompt))
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
    return _message(
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
    return _message(inference_pb2.DetokenizeRequest, "", model=model, ids=ids, skip_special_tokens=skip_special_tokens)


def _chat(chat: Chat, path: str) -> pb.Chat:
    messages = openai_shapes.items(chat.messages, f"{path}.messages")
    tools = openai_shapes.items(chat.tools, f"{path}.tools")
    return _message(
        pb.Chat,
        path,
        messages=[_chat_message(message, f"{path}.messages[{i}]") for i, message in enumerate(messages)],
        tools=[_tool(tool, f"{path}.tools[{i}]") for i, tool in enumerate(tools)],
        template_arguments=_json(chat.template_arguments, f"{path}.template_arguments"),
        add_generation_prompt=chat.add_generation_prompt,
    )


def _chat_message(given: object, path: str) -> pb.ChatMessage:
    message = openai_shapes.message(given, path)
    if message.role not in _ROLES:
        field = f"{path}.role"
        raise InvalidRequest(f"{field} is {brief(message.role)}; it must be one of {', '.join(_ROLES)}", field=field)
    return _message(
        pb.ChatMessage,
        path,
        role=_ROLES[message.role],
        content=message.content,
        name=message.name,
        tool_calls=[
            _tool_call(call, f"{path}.tool_calls[{i}]")
            for i, call in enumerate(openai_shapes.items(message.tool_calls, f"{path}.tool_calls"))
        ],
        tool_call_id=message.tool_call_id,
        reasoning_content=message.reasoning_content,
    )


def _tool_call(given: object, path: str) -> pb.ToolCall:
    call = openai_shapes.tool_call(given, path)
    return _message(pb.ToolCall, path, id=call.id, name=call.name, arguments=_json(call.arguments, f"{path}.arguments"))


def _tool(given: object, path: str) -> pb.Tool:
    tool = openai_shapes.tool(given, path)
    parameters = _json(tool.parameters, f"{path}.parameters")
    return _message(pb.Tool, path, name=tool.name, description=tool.description, parameters=parameters)


def _constraint(parameters: Parameters) -> pb.Constraint | None:
    given = [name for name in _CONSTRAINTS if parameters.get(name) is not None]
    if not given:
        return None
    path = "generation.constraint"
    if len(given) > 1:
        raise InvalidRequest(f"{path} takes one of {', '.join(_CONSTRAINTS)}, not {' and '.join(given)}", field=path)
    schema, choice = _json(parameters.get("json_schema"), f"{path}.json_schema"), parameters.get("choice")
    choices = None if choice is None else _message(pb.Choices, f"{path}.choice", texts=choice)
    return _message(
        pb.Constraint,
        path,
        json_schema=schema,
        regex=parameters.get("regex"),
        grammar=parameters.get("grammar"),
        choice=choices,
    )


def _json(value: Mapping[str, object] | str | None, path: str) -> str | None:
    return None if value is None else to_json(value, path)


def _duration(seconds: object, path: str) -> duration_pb2.Duration | None:
    if seconds is None:
        return None
    duration = duration_pb2.Duration()
    try:
        duration.FromTimedelta(timedelta(seconds=seconds))  # type: ignore[arg-type]  # a wrong type is caught
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"{path} is {seconds!r} seconds: {error}", field=path) from error
    return duration


def _message(cls: type[M], path: str, **fields: object) -> M:
    """Build a message; a field of None stays unset. An error names the field, which protobuf's own does not."""
    fields = {name: value for name, value in fields.items() if value is not None}
    try:
        return cls(**fields)
    except (TypeError, ValueError, OverflowError):
        for name, value in fields.items():
            try:
                cls(**{name: value})
            except (TypeError, ValueError, OverflowError) as error:
                field = f"{path}.{name}" if path else name
                raise InvalidRequest(f"{field} is {brief(value)}: {error}", field=field) from error
        raise
