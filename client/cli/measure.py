"""Timing of one generation: read to its end, with the times that its reader saw."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from pagewire.client.prompts import Message, ToolCall
from pagewire.client.sync_stream import Stream
from pagewire.client.types import Completion, Delta, Result, Token

_NO_PROBABILITY = -9999.0


@dataclass(frozen=True, slots=True)
class Measured:
    """A result, and seconds on this side's clock."""

    result: Result
    total_s: float
    ttft_s: float | None
    """Until the first token came; none where there was none."""
    decode_s: float
    """From the first token to the last."""

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Tokens after the first message that brought some, per second; none where one message brought all."""
        return self.later_tokens / self.decode_s if self.later_tokens and self.decode_s > 0 else None

    later_tokens: int = 0


def measure(
    stream: Stream, started_s: float, show: Callable[[Delta], None], clock: Callable[[], float] = time.monotonic
) -> Measured:
    """Read a stream to its end. `show` gets the first output's deltas as they come; `started_s` is when it was
    opened."""
    first: float | None = None
    last = started_s
    later_tokens = 0
    for event in stream:
        match event:
            case Delta():
                last = clock()
                if first is None:
                    first = last
                else:
                    later_tokens += len(event.tokens)
                if event.output == 0:
                    show(event)
    return Measured(
        result=stream.result(),
        total_s=clock() - started_s,
        ttft_s=None if first is None else first - started_s,
        decode_s=0.0 if first is None else last - first,
        later_tokens=later_tokens,
    )


def as_json(measured: Measured, model: str) -> dict[str, object]:
    """What a script reads; times in milliseconds. Several outputs stand in `outputs`, the first of them outside too."""
    result, timings = measured.result, measured.result.usage.timings
    rate = measured.decode_tokens_per_s
    shape: dict[str, object] = {
        "request_id": result.request_id,
        "model": model,
        "seed": result.seed,
        **_output_json(result.outputs[0]),
        "usage": {
            "prompt_tokens": result.usage.prompt_tokens,
            "cached_tokens": result.usage.cached_tokens,
            "completion_tokens": result.usage.completion_tokens,
        },
        "timings": {
            "queue_ms": _ms(timings.queue_s),
            "prefill_ms": _ms(timings.prefill_s),
            "decode_ms": _ms(timings.decode_s),
            "ttft_ms": None if measured.ttft_s is None else _ms(measured.ttft_s),
            "total_ms": _ms(measured.total_s),
            "decode_tokens_per_s": None if rate is None else round(rate, 2),
        },
    }
    if result.prompt_tokens:
        shape["prompt_tokens"] = [_token_json(token) for token in result.prompt_tokens]
    if len(result.outputs) > 1:
        shape["outputs"] = [_output_json(output) for output in result.outputs]
    return shape


def _output_json(output: Completion) -> dict[str, object]:
    shape: dict[str, object] = {
        "text": output.text,
        "token_ids": list(output.token_ids),
        "finish_reason": output.finish_reason.value,
        "matched": output.matched,
    }
    if output.message is not None:
        shape["message"] = _message_json(output.message)
    if output.malformed_calls:
        shape["malformed_calls"] = [{"text": each.text, "reason": each.reason} for each in output.malformed_calls]
    if any(has_logprobs(token) for token in output.tokens):
        shape["tokens"] = [_token_json(token) for token in output.tokens]
    return shape


def _message_json(message: Message) -> dict[str, object]:
    """In OpenAI's shape."""
    shape: dict[str, object] = {"role": message.role, "content": message.content}
    if message.reasoning_content is not None:
        shape["reasoning_content"] = message.reasoning_content
    calls = [call for call in message.tool_calls if isinstance(call, ToolCall)]
    if calls:
        shape["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return shape


def has_logprobs(token: Token) -> bool:
    """Whether any log-probability came with it."""
    return token.logprob is not None or bool(token.candidates) or bool(token.named)


def _token_json(token: Token) -> dict[str, object]:
    shape: dict[str, object] = {"id": token.id, "text": token.text, "logprob": _logprob(token.logprob)}
    for name, candidates in (("candidates", token.candidates), ("named", token.named)):
        if candidates:
            shape[name] = [
                {"id": each.id, "bytes": list(each.bytes), "logprob": _logprob(each.logprob)} for each in candidates
            ]
    return shape


def _logprob(value: float | None) -> float | None:
    """JSON has no infinity: OpenAI's services write -9999 for what has no probability, and so does this."""
    return _NO_PROBABILITY if value == -math.inf else value


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
