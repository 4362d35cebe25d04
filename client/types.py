"""Result types: what comes out of the client, as frozen values.

Knows nothing of gRPC or protobuf: `responses` translates. Durations are seconds; token texts are whole
characters, so that joining them is always valid.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from pagewire.client.prompts import ChatFormat, Message


class FinishReason(StrEnum):
    """Why an output ended."""

    EOS = "eos"
    LENGTH = "length"
    STOP_STRING = "stop_string"
    STOP_TOKEN = "stop_token"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could have stood at a position; its bytes need not be valid UTF-8."""

    id: int
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """One token. A part that was not asked for is None; `text` is empty where the token ends inside a character."""

    id: int | None
    text: str | None
    logprob: float | None = None
    candidates: tuple[Candidate, ...] = ()
    """The likeliest at its position, likeliest first."""
    named: tuple[Candidate, ...] = ()
    """Those of `logprob_token_ids`, in their order."""


@dataclass(frozen=True, slots=True)
class Started:
    """The request has been scheduled; the first event of a stream."""

    request_id: str
    seed: int
    prompt_tokens: int
    cached_tokens: int
    predicted_time_to_first_token_s: float | None = None
    """From the request's arrival at the engine, as predicted then; none where nothing was measured yet."""


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Tokens of the prompt with their log-probabilities, the first token without one; all in order, in one event or
    several. Only where `prompt_logprobs` was asked for."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class ContentPart:
    """More of what a chat's answer says."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningPart:
    """More of its reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """More of a call of a tool."""

    index: int
    """Which of the answer's calls, from 0."""
    id: str | None
    """With the call's first part alone, as the name."""
    name: str | None
    arguments: str
    """JSON text: an object once all of it has come."""
    is_complete: bool
    """The call is whole and well-formed: only now run it."""


@dataclass(frozen=True, slots=True)
class MalformedCall:
    """What was to be a call and is none: text, and why."""

    text: str
    reason: str
    index: int | None = None
    """The call that it was taken for, of which everything is void; None where nothing came of it."""


Part: TypeAlias = ContentPart | ReasoningPart | ToolCallPart | MalformedCall


@dataclass(frozen=True, slots=True)
class Delta:
    """New tokens of one output, and what they turn out to say; there may be parts without tokens at its end."""

    output: int
    tokens: tuple[Token, ...]
    parts: tuple[Part, ...] = ()
    """Of a chat, unless `return_parts` is false."""

    @property
    def text(self) -> str:
        """The new text, empty where none became complete."""
        return "".join(token.text or "" for token in self.tokens)


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of one output. `matched` is the stop string or the token id that ended it."""

    output: int
    reason: FinishReason
    matched: str | int | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went, on the server's clock; of a resumed stream, its last part's."""

    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What the request cost; the last event of a stream."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    timings: Timings


Event: TypeAlias = Started | PromptTokens | Delta | Finished | Usage


@dataclass(frozen=True, slots=True)
class Completion:
    """One whole output. `text` is None where no text was asked for."""

    text: str | None
    tokens: tuple[Token, ...]
    finish_reason: FinishReason
    matched: str | int | None = None
    message: Message | None = None
    """The answer of a chat, which may be put behind the others as it is. None where `return_parts` is false."""
    malformed_calls: tuple[MalformedCall, ...] = ()
    """What was to be a call of the message and is none."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids, empty where none were asked for."""
        return tuple(token.id for token in self.tokens if token.id is not None)


@dataclass(frozen=True, slots=True)
class Result:
    """One whole generation."""

    request_id: str
    seed: int
    outputs: tuple[Completion, ...]
    usage: Usage
    prompt_tokens: tuple[Token, ...] = ()
    """Empty unless `prompt_logprobs` was asked for."""

    @property
    def text(self) -> str:
        """The first output's text, empty where no text was asked for."""
        return self.outputs[0].text or ""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The first output's token ids."""
        return self.outputs[0].token_ids

    @property
    def message(self) -> Message:
        """The first output's answer to a chat. Raises ValueError where no parts came: it was no chat."""
        if self.outputs[0].message is None:
            raise ValueError("there is no message: the prompt was no chat, or return_parts is false")
        return self.outputs[0].message

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first output ended."""
        return self.outputs[0].finish_reason


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A prompt's token ids; `text` is what was tokenized, None for a prompt of token ids."""

    ids: tuple[int, ...]
    text: str | None


@dataclass(frozen=True, slots=True)
class Limits:
    """What requests must keep to; sizes in tokens, bytes where named so."""

    max_model_len: int
    vocab_size: int
    max_n: int
    max_queued: int
    max_stop_strings: int
    max_stop_string_bytes: int
    max_message_bytes: int
    max_kv_tokens: int
    max_logit_bias: int
    max_bad_words: int
    max_candidates: int
    max_logprob_token_ids: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What requests may ask of a model."""

    text: bool
    chat: bool
    logprobs: bool
    constraints: bool
    penalties: bool
    reasoning: bool
    tool_calls: bool


@dataclass(frozen=True, slots=True)
class DefaultSampling:
    """The sampling of a request that sets none; top_k 0, top_p 1 and min_p 0 keep every token, and a
    repetition_penalty of 1 changes none."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float


@dataclass(frozen=True, slots=True)
class Model:
    """A served model."""

    name: str
    architecture: str
    dtype: str
    limits: Limits
    capabilities: Capabilities
    tokenizer_digest: str
    weights_digest: str
    default_sampling: DefaultSampling
    eos_token_ids: tuple[int, ...]
    chat_format: ChatFormat | None = None
    """None for a model without a chat template."""
    exact_continuation: bool = False
    """Whether a stream that is computed again goes on to the bit as it would have."""


class HealthStatus(StrEnum):
    """Whether a service takes requests, as grpc.health.v1 says."""

    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    UNKNOWN = "UNKNOWN"
    SERVICE_UNKNOWN = "SERVICE_UNKNOWN"
