"""Submissions and token batches, frontend ↔ engine.

A frontend names each sequence with a `handle` of its own, never used twice while the sequence is open; the engine knows
a sequence as (frontend, handle). `n` outputs of one request are `n` sequences with the same request id.

For every Submit the engine answers exactly one terminal message about its handle: `Rejected`, or a `SeqFinished`
inside a `TokenBatch` — except where the frontend itself aborted the handle, after which the engine is silent about it.
A Submit that nobody could answer (no handle in it, or one that is open) is counted with the dropped frames.
"""

import enum
from typing import Annotated

import msgspec
from msgspec import Meta

from pagewire.wire.codec import (
    Count,
    Handle,
    HandleColumn,
    Incarnation,
    PeerNumber,
    Seconds,
    ShortCounts,
    ShortText,
    ShortTexts,
    Total,
)
from pagewire.wire.logits import LogitControls, LogprobsRequest
from pagewire.wire.plan import DeviceMemory
from pagewire.wire.sampling import SamplingParams

MAX_BLOCKS_READ = 8192
"""At once: about a millisecond of the engine's."""
CACHED_ALONE = 255
"""A block that only the prefix cache holds."""
MOST_HOLDERS = 254
"""Stands for more, too."""


class FinishKind(enum.IntEnum):
    """Why the engine ended a sequence. Stop strings are the frontend's: it sees text, and aborts."""

    EOS = 1
    LENGTH = 2
    STOP_TOKEN = 3
    ABORTED = 4
    FAILED = 5
    """A step failed it (`plan.RowFailure`), or it was found to end workers; the request fails with INTERNAL, others are
    unharmed."""
    NO_ROOM = 6
    """It came to what memory holds of one sequence, since a worker came back with less than it was accepted for; the
    request fails with RESOURCE_EXHAUSTED, others are unharmed."""
    NOTHING_LEFT = 7
    """Its own controls left no token to draw (`plan.RowFailure.by_request`); the request fails with INVALID_ARGUMENT,
    others are unharmed."""


class RejectKind(enum.IntEnum):
    """Why the engine did not take, or gave up, a sequence."""

    INVALID = 1
    """Can never fit; `field` names what is too large."""
    QUEUE_FULL = 2
    QUEUE_TIMEOUT = 3


class EngineState(enum.IntEnum):
    """What the engine can do now. Values are those of pagewire.v1.ServiceState."""

    LOADING = 1
    READY = 2
    RECOVERING = 3
    DRAINING = 4


class Register(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="register"):
    """A frontend's first message, answered with `EngineInfo` and from then on with `Load` at every interval.

    A frontend that was started again registers with a higher incarnation; the engine ends whatever the lower one left.
    """

    frontend: PeerNumber
    incarnation: Incarnation
    connection: Count = 0
    """How often this process has connected anew, each time under another name."""


class Submit(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="submit"):
    """Generate one sequence. Whatever is wrong with it beside its handle is answered with `Rejected`."""

    handle: Handle
    request_id: str
    prompt: bytes
    """int32 column of token ids, at least one."""
    generated: bytes
    """int32 column: tokens of the output that an earlier engine already delivered. They count towards max_tokens
    and are not delivered again. Usually empty."""
    sampling: SamplingParams
    max_tokens: int
    """Most tokens of output, `generated` included; prompt + max_tokens ≤ max_model_len."""
    stop_token_ids: Annotated[list[int], Meta(max_length=4096)]
    """End-of-sequence tokens are not among these; the engine knows the model's own."""
    ignore_eos: bool
    priority: int
    """Larger runs first."""
    salt: bytes
    """Root of the prefix-cache chain: made from the tenant and the request's salt."""
    max_queue_time_s: float | None
    controls: LogitControls | None = None
    logprobs: LogprobsRequest | None = None
    prompt_logprobs: int | None = None
    """As `plan.Admit.prompt_logprobs`; the prefix cache is not read for this sequence then."""
    cache_salt: str | None = None
    """The request's own part of `salt`, as it was sent; for KV events alone."""
    tenant: str = ""
    """Whose the request is: ids, bounds and turns of the queue are a tenant's own. Empty where there are none."""


class Abort(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="abort"):
    """End these sequences and say nothing more about them: the client went away, or a stop string matched."""

    handles: HandleColumn
    """int32 column. An unknown handle is no error: it may have ended a moment ago."""


class Pause(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="pause"):
    """Their client is behind: they give slot and blocks back and get no more tokens until `Resume`. Tokens that are
    under way still come; everything else about a sequence stays."""

    handles: HandleColumn
    """int32 column, as `Abort.handles`. One that is paused already stays so."""


class Resume(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="resume"):
    """They go on where they were paused; one that is not does nothing."""

    handles: HandleColumn
    """int32 column, as `Abort.handles`."""


class AbortRequest(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="abort_request"):
    """End a request of any frontend; answered with `Answer`, value the number of sequences ended."""

    query: int
    request_id: str
    tenant: str | None = None
    """Whose; none for all that have this id, whoever's they are."""


class FlushCache(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="flush"):
    """Forget cached blocks that no sequence holds; answered with `Answer`, value the number of blocks."""

    query: int


class ReadBlocks(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="read_blocks"):
    """What these blocks are used for; answered with `BlockUses`."""

    query: int
    first: Count
    count: Annotated[int, Meta(ge=0, le=MAX_BLOCKS_READ)]


FromFrontend = Register | Submit | Abort | Pause | Resume | AbortRequest | FlushCache | ReadBlocks


class SeqStarted(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A sequence's first step has been planned. Sent once per sequence, not again after a preemption."""

    handle: Handle
    cached_tokens: Count
    queue_s: Seconds
    forecast_s: Seconds | None = None
    """What the engine forecast for its first token when it came, from then on; none where it had no measure."""


class SeqFinished(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A sequence's end. The token that ended it (EOS, a stop token) is among its tokens, the last one."""

    handle: Handle
    kind: FinishKind
    limit: Count = 0
    """For NO_ROOM, how long a sequence can become now."""
    reason: ShortText = ""
    """For FAILED and NOTHING_LEFT, what happened."""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Log-probabilities of one of a batch's tokens."""

    index: Count
    """Of the token, in the batch."""
    chosen: float
    ids: bytes
    """As `plan.RowLogprobs.ids`."""
    values: bytes


class PromptLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Log-probabilities of some of a sequence's prompt, as `plan.ChunkLogprobs`. In order of positions, from 1 on; from
    there again after a preemption or a restart, with the same values."""

    handle: Handle
    position: Count
    chosen: bytes
    ids: bytes
    values: bytes


class TokenBatch(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="tokens"):
    """Everything that one step means to one frontend. Apply in order: started, prompt_logprobs, tokens, finished."""

    started: list[SeqStarted]
    handles: bytes
    """int32 column: a handle stands once per token."""
    tokens: bytes
    """int32 column, as long as `handles`: tokens[i] is the next token of handles[i]."""
    finished: list[SeqFinished]
    logprobs: list[TokenLogprobs] = []
    """In the order of tokens, for those whose sequences ask for them."""
    prompt_logprobs: list[PromptLogprobs] = []


class Rejected(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="rejected"):
    """A sequence that produced nothing and never will."""

    handle: Handle
    kind: RejectKind
    field: ShortText
    """Path of the offending field in pagewire.v1.Generation for INVALID, else empty."""
    message: ShortText
    retry_after_s: Seconds | None


class EngineInfo(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="info"):
    """What the engine learned from its worker; sent to each frontend on registering and after every change of state."""

    state: EngineState
    num_blocks: Count
    block_size: Count
    max_model_len: Count
    weights_bytes: Total
    kv_cache_bytes: Total
    attention_backend: ShortText
    linear_backend: ShortText
    versions: ShortTexts
    worker_restarts: Count
    device_memory: DeviceMemory | None = None
    """Of workers on CUDA devices, all together."""
    recomputes_exactly: bool = False
    """`pagewire.wire.plan.WorkerHello.recomputes_exactly` of the whole group."""


class Load(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="load"):
    """How busy the engine is; also its heartbeat. Counters run from the engine's start."""

    state: EngineState
    running: Count
    waiting: Count
    used_blocks: Count
    cached_blocks: Count
    total_blocks: Count
    prompt_tokens: Total
    cached_prompt_tokens: Total
    output_tokens: Total
    preemptions: Total
    steps: Total
    worker_busy_us: Total
    worker_idle_us: Total
    dropped_frames: Total
    paused: Count = 0
    """Sequences whose clients are behind; neither running nor waiting."""
    dropped: ShortCounts = {}
    """The dropped frames by border and kind, `frontends.stale`; and connections that were not let in,
    `workers.refused_connections`. What there was none of is not there."""
    arrivals: Total = 0
    """Sequences that were taken into the queue."""


class Answer(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="answer"):
    """Answers a query."""

    query: int
    value: int


class BlockUses(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="block_uses"):
    """Answers `ReadBlocks`."""

    query: int
    uses: Annotated[bytes, Meta(max_length=MAX_BLOCKS_READ)]
    """A byte each, for as many of the blocks as there are: 0 free, CACHED_ALONE, or how many sequences hold it."""
    num_blocks: Count
    """All of the engine's; 0 where it has no worker yet."""


ToFrontend = TokenBatch | Rejected | EngineInfo | Load | Answer | BlockUses
