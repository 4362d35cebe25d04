"""Answers: results and streams of this client, as OpenAI's endpoints have them.

A call of a tool is streamed once it is whole: what came of a malformed one is void, and OpenAI's shape cannot take
anything back.
Malformed calls are content, as they were written. Reasoning is `reasoning_content`, as other servers have it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pagewire.client.prompts import Message, ToolCall
from pagewire.client.types import (
    Completion,
    ContentPart,
    Delta,
    Finished,
    FinishReason,
    MalformedCall,
    Part,
    ReasoningPart,
    Result,
    Token,
    ToolCallPart,
    Usage,
)

_encoder = msgspec.json.Encoder()
"""A third of a microsecond an event, where `json` takes four."""
_NO_PROBABILITY = -9999.0
"""JSON has no infinity."""
_REASONS = {
    FinishReason.EOS: "stop",
    FinishReason.STOP_STRING: "stop",
    FinishReason.STOP_TOKEN: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.ABORTED: "abort",
}


def finish_reason(reason: FinishReason, *, has_calls: bool) -> str:
    """Why an answer ended; as vLLM has it where OpenAI has no word."""
    return "tool_calls" if has_calls and reason is FinishReason.EOS else _REASONS[reason]


def usage(spent: Iterable[Usage]) -> dict[str, Any]:
    """What it cost."""
    all_of_it = list(spent)
    prompt = sum(each.prompt_tokens for each in all_of_it)
    completion = sum(each.completion_tokens for each in all_of_it)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in all_of_it)},
    }


@dataclass(frozen=True, slots=True)
class Heading:
    """What every object of one answer begins with."""

    kind: str
    """`chat.completion` or `text_completion`."""
    model: str
    request_id: str
    created: int = field(default_factory=lambda: int(time.time()))

    def around(self, *, is_chunk: bool = False, **content: Any) -> dict[str, Any]:
        """An object of the answer."""
        is_chat = self.kind == "chat.completion"
        return {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{self.request_id}",
            "object": f"{self.kind}.chunk" if is_chunk and is_chat else self.kind,
            "created": self.created,
            "model": self.model,
            **content,
        }


def chat_answer(heading: Heading, result: Result, *, has_logprobs: bool) -> dict[str, Any]:
    """The whole answer to a chat."""
    choices = [_chat_choice(index, output, has_logprobs) for index, output in enumerate(result.outputs)]
    return heading.around(choices=choices, usage=usage([result.usage]))


def _chat_choice(index: int, output: Completion, has_logprobs: bool) -> dict[str, Any]:
    message = output.message or Message("assistant", output.text)
    malformed = "".join(each.text for each in output.malformed_calls)
    content = (message.content or "") + malformed if message.content or malformed else message.content
    said: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if message.reasoning_content is not None:
        said["reasoning_content"] = message.reasoning_content
    calls = [call for call in message.tool_calls if isinstance(call, ToolCall)]
    if calls:
        said["tool_calls"] = [_call(call.id, call.name, str(call.arguments)) for call in calls]
    return {
        "index": index,
        "message": said,
        "logprobs": {"content": _chat_logprobs(output.tokens), "refusal": None} if has_logprobs else None,
        "finish_reason": finish_reason(output.finish_reason, has_calls=bool(calls)),
    }


def _call(call_id: str | None, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def completion_answer(heading: Heading, results: Sequence[Result], *, has_logprobs: bool) -> dict[str, Any]:
    """The whole answer to texts: the outputs of each prompt in turn."""
    outputs = [output for result in results for output in result.outputs]
    choices = [
        {
            "index": index,
            "text": output.text or "",
            "logprobs": _completion_logprobs(output.tokens, 0) if has_logprobs else None,
            "finish_reason": finish_reason(output.finish_reason, has_calls=False),
        }
        for index, output in enumerate(outputs)
    ]
    return heading.around(choices=choices, usage=usage(result.usage for result in results))


def _chat_logprobs(tokens: Iterable[Token]) -> list[dict[str, Any]]:
    return [
        {
            "token": token.text or "",
            "logprob": _number(token.logprob),
            "bytes": list((token.text or "").encode()),
            "top_logprobs": [
                {
                    "token": each.bytes.decode(errors="replace"),
                    "logprob": _number(each.logprob),
                    "bytes": list(each.bytes),
                }
                for each in token.candidates
            ],
        }
        for token in tokens
    ]


def _completion_logprobs(tokens: Sequence[Token], offset: int) -> dict[str, Any]:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text or "")
    return {
        "tokens": [token.text or "" for token in tokens],
        "token_logprobs": [_number(token.logprob) for token in tokens],
        "top_logprobs": [
            {each.bytes.decode(errors="replace"): _number(each.logprob) for each in token.candidates}
            for token in tokens
        ],
        "text_offset": offsets,
    }


def _number(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, _NO_PROBABILITY)


class ChatChunks:
    """The chunks of one chat's stream, as its events come."""

    def __init__(self, heading: Heading, num_outputs: int, *, has_logprobs: bool, includes_usage: bool) -> None:
        self._heading = heading
        self._has_logprobs = has_logprobs
        self._includes_usage = includes_usage
        self._open: list[dict[int, list[str]]] = [{} for _ in range(num_outputs)]
        """Of each output's calls that are not whole, by index: id, name, and arguments."""
        self._num_calls = [0] * num_outputs

    def first(self) -> list[dict[str, Any]]:
        """Who speaks."""
        return [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(len(self._open))]

    def delta(self, event: Delta) -> list[dict[str, Any]]:
        """New parts, in as few chunks as keep their order."""
        said: list[dict[str, Any]] = []
        for part in event.parts:
            for new in self._said(event.output, part):
                if said and said[-1].keys() == new.keys() and "tool_calls" not in new:
                    said[-1] = {key: said[-1][key] + value for key, value in new.items()}
                else:
                    said.append(new)
        logprobs = _chat_logprobs(event.tokens) if self._has_logprobs else []
        if logprobs and not said:
            said = [{}]
        return [
            self._chunk(event.output, each, logprobs=logprobs if number == 0 else [])
            for number, each in enumerate(said)
        ]

    def _said(self, output: int, part: Part) -> list[dict[str, Any]]:
        match part:
            case ContentPart(text):
                return [{"content": text}]
            case ReasoningPart(text):
                return [{"reasoning_content": text}]
            case MalformedCall(text, _, index):
                if index is not None:
                    self._open[output].pop(index, None)
                return [{"content": text}]
            case ToolCallPart():
                call = self._open[output].setdefault(part.index, [part.id or "", part.name or ""])
                call.append(part.arguments)
                if not part.is_complete:
                    return []
                call_id, name, *arguments = self._open[output].pop(part.index)
                index = self._num_calls[output]
                self._num_calls[output] += 1
                return [{"tool_calls": [{"index": index, **_call(call_id, name, "".join(arguments))}]}]

    def finished(self, event: Finished) -> list[dict[str, Any]]:
        """The end of one output."""
        reason = finish_reason(event.reason, has_calls=bool(self._num_calls[event.output]))
        return [self._chunk(event.output, {}, reason)]

    def last(self, spent: Usage) -> list[dict[str, Any]]:
        """What it cost, where that was asked for."""
        if not self._includes_usage:
            return []
        return [self._heading.around(is_chunk=True, choices=[], usage=usage([spent]))]

    def _chunk(
        self, index: int, said: dict[str, Any], reason: str | None = None, logprobs: Sequence[dict[str, Any]] = ()
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "delta": said, "logprobs": None, "finish_reason": reason}
        if logprobs:
            choice["logprobs"] = {"content": list(logprobs), "refusal": None}
        return self._heading.around(is_chunk=True, choices=[choice])


class CompletionChunks:
    """The same of one text's stream."""

    def __init__(self, heading: Heading, num_outputs: int, *, has_logprobs: bool, includes_usage: bool) -> None:
        self._heading = heading
        self._has_logprobs = has_logprobs
        self._includes_usage = includes_usage
        self._offsets = [0] * num_outputs

    def first(self) -> list[dict[str, Any]]:
        """Nothing."""
        return []

    def delta(self, event: Delta) -> list[dict[str, Any]]:
        """New text."""
        text = event.text
        logprobs = _completion_logprobs(event.tokens, self._offsets[event.output]) if self._has_logprobs else None
        self._offsets[event.output] += len(text)
        return [self._chunk(event.output, text, None, logprobs)] if text or logprobs else []

    def finished(self, event: Finished) -> list[dict[str, Any]]:
        """The end of one output."""
        return [self._chunk(event.output, "", finish_reason(event.reason, has_calls=False), None)]

    def last(self, spent: Usage) -> list[dict[str, Any]]:
        """What it cost, where that was asked for."""
        if not self._includes_usage:
            return []
        return [self._heading.around(choices=[], usage=usage([spent]))]

    def _chunk(self, index: int, text: str, reason: str | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return self._heading.around(choices=[choice])


def event_line(chunk: dict[str, Any]) -> bytes:
    """A chunk as a server-sent event."""
    return b"data: " + _encoder.encode(chunk) + b"\n\n"


LAST_LINE = b"data: [DONE]\n\n"
