"""Step plans and step results, engine ↔ worker.

A plan carries what changed and what to run. Both sides derive the rest from the same stream of plans, in this order:

1. `release`: these slots are empty from now on.
2. `admit`: these slots hold a new sequence.
3. `grow`: these blocks are appended to block tables.
4. the batch runs.

**The batch.** A slot is *prefilling* while not all its admitted tokens are computed, then *decoding*. A slot decodes
one token in every step that starts with it decoding, unless `idle` lists it. A prefilling slot computes as many
tokens as `chunks` says, or none.

    rows of the step   = decoding slots, ascending  +  chunks, in the order listed
    rows that sample   = decoding slots, ascending  +  chunks that end their slot's prefill, in the order listed
    rows that score    = of chunks of slots that ask for `prompt_logprobs`, in the order listed: every position whose
                         next one is the prompt's too; those chunks are `logits.MAX_SCORED_ROWS` tokens in all at most

A result carries the tokens of each row that samples, in that order: one each, unless `counts` says how many. The
sampled token is the slot's next input; it never makes a round trip. A row that failed has NO_TOKEN, and its reason
stands among the `failures`.

**A slot's positions.** A sequence of T known tokens of which C are cached starts computing at s = min(C, T-1):

    position        0 ........ s ....... C ........ T-1
    KV              already there |
    computed by us             [s, T)
    KV written                           [C, T)   blocks below C are shared: never written

so that a fully cached prompt still computes its last token, which yields the logits, without writing to a shared block.
`Admit` holds the ids of all T positions. A worker keeps them, and adds what it samples: whatever depends on a
sequence's own tokens is made again from them, after a preemption or a restart too.

A plan is only valid as the next `step_id` of its `epoch`; `Begin` opens an epoch and empties every slot. Reuse of a
slot or block by a later plan is safe because plans run in order.
"""

import msgspec

from pagewire.wire.codec import Count, Incarnation, PeerNumber, ShortText, ShortTexts, Total
from pagewire.wire.logits import LogitControls, LogprobsRequest
from pagewire.wire.sampling import SamplingParams

PROTOCOL_VERSION = 5
"""Both sides must have the same; a worker that says another is refused with both numbers in the message."""

NO_TOKEN = -1
"""In a result's tokens: this row failed, for the reason that `failures` gives. The engine ends that sequence and
releases its slot; the other rows are unharmed. Until the release, the slot goes on with token 0 as its input, so that a
plan already in flight stays valid."""

NOT_NUMBERS = "the model's logits for this request were not numbers"
"""The reason of a row whose logits have a NaN, an infinity, or nothing but minus infinity: there is nothing to draw
from."""

NOTHING_LEFT = "the request's own controls leave no token that may be generated here"
"""The reason of a row of which bias, bans and the like have taken everything out."""


class Admit(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A sequence enters a slot. See the drawing above."""

    slot: int
    tokens: bytes
    """int32 column: the ids of all T tokens that are known."""
    prompt_len: int
    """How many of them are the prompt; the others were generated before a preemption or a restart."""
    num_cached: int
    """C: how many leading positions have their KV in `blocks` already; at most T."""
    blocks: bytes
    """int32 column: the block table, long enough for T tokens."""
    sampling: SamplingParams
    controls: LogitControls | None = None
    logprobs: LogprobsRequest | None = None
    prompt_logprobs: int | None = None
    """How many of the likeliest ids come back with the log-probability of each prompt token but the first; nothing may
    be cached then. None: neither comes."""

    @property
    def changes_logits(self) -> bool:
        """Whether anything is done to the sequence's logits before a token is drawn."""
        return self.controls is not None or self.sampling.needs_history

    @property
    def has_grammar(self) -> bool:
        """Whether the output is constrained."""
        return self.controls is not None and self.controls.grammar != ""

    @property
    def needs_more_than_sampler(self) -> bool:
        """Whether anything is done to the sequence's logits, or asked of them, beside drawing."""
        return self.logprobs is not None or self.prompt_logprobs is not None or self.changes_logits


class StepPlan(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="plan"):
    """One step: what changed and what to run."""

    epoch: int
    step_id: int
    """Counts from 0 within its epoch."""
    release: bytes = b""
    """int32 column of slots."""
    admit: list[Admit] = []
    grow: bytes = b""
    """int32 pairs (slot, block id)."""
    chunks: bytes = b""
    """int32 pairs (slot, number of tokens)."""
    idle: bytes = b""
    """int32 column of decoding slots that sit this step out."""


class Begin(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="begin"):
    """Opens an epoch: every slot is empty, every block's content unknown, the next step id is 0."""

    epoch: int


ToWorker = StepPlan | Begin


class RowFailure(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A row that samples and has no token."""

    row: Count
    """Its index among the rows that sample."""
    reason: ShortText
    """For the client who asked."""
    by_request: bool = False
    """Whether the request itself left nothing to draw from, which is no fault of the model's or ours."""


class RowLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Log-probabilities of a row whose slot asks for them and which has a token."""

    row: Count
    """Its index among the rows that sample."""
    chosen: float
    """The token's."""
    ids: bytes
    """int32 column: as many of the likeliest as were asked for, NO_TOKEN past the last that has a probability; then the
    named ones."""
    values: bytes
    """float32 column, one for each of `ids`; minus infinity for what has no probability."""


class ChunkLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Log-probabilities of prompt tokens, from one chunk's rows that score."""

    chunk: Count
    """Its index in the plan's chunks."""
    position: Count
    """Where in the prompt the first of these tokens stands; the others follow."""
    chosen: bytes
    """float32 column: each token's, NaN where its row was no distribution."""
    ids: bytes
    """int32 column: of each token in turn as many of the likeliest as were asked for, NO_TOKEN where there is none."""
    values: bytes
    """float32 column, one for each of `ids`."""


class StepResult(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="result"):
    """What one step sampled."""

    epoch: int
    step_id: int
    tokens: bytes
    """int32 column: the tokens, or NO_TOKEN, of each row that samples, in the order above."""
    busy_us: int
    """Time that the device spent on this step."""
    idle_us: int
    """Time from the end of the step before, on the device, to the beginning of this one; 0 for an epoch's first."""
    counts: bytes = b""
    """int32 column: how many of the tokens each row has; absent: one each."""
    failures: list[RowFailure] = []
    """One for each NO_TOKEN, in the order of rows."""
    logprobs: list[RowLogprobs] = []
    """One for each row with a token whose slot asks for them, in the order of rows."""
    prompt_logprobs: list[ChunkLogprobs] = []
    """One for each chunk that has rows that score, in the order of chunks."""
    dropped_frames: Total = 0
    """Since the worker's start: frames of the engine's that it could not read."""


class DeviceMemory(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a device's memory went, beside weights and KV cache. Bytes; the sum over ranks where there are several."""

    total_bytes: Total
    """All that the device has."""
    before_model_bytes: Total
    """In use before the model was loaded: driver, context and libraries, other processes."""
    buffer_bytes: Total
    """Slots, inputs of a step and workspaces; allocated once."""
    activation_bytes: Total
    """What the worst step allocates and frees again, as profiled at start."""
    graph_bytes: Total
    """CUDA graphs."""
    free_bytes: Total
    """Free once everything was loaded. Activations come from it."""


class WorkerHello(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="hello"):
    """A worker's first message: it has loaded its model and waits for `Begin`."""

    protocol_version: int
    rank: PeerNumber
    incarnation: Incarnation
    """Counts the supervisor's starts of this rank; one that is lower than that of a peer within reach is a ghost and is
    ignored."""
    num_blocks: Count
    """Not always as many as the worker before had: see `pagewire.wire.launch.WorkerLaunch.earlier_num_blocks`."""
    block_size: Count
    max_num_seqs: Count
    max_model_len: Count
    vocab_size: Count
    weights_bytes: Total
    kv_cache_bytes: Total
    attention_backend: ShortText
    linear_backend: ShortText
    versions: ShortTexts
    terms_digest: ShortText = ""
    """`pagewire.wire.launch.terms_digest`: ranks that differ in it are no group."""
    device_memory: DeviceMemory | None = None
    """Of a worker on a CUDA device."""
    recomputes_exactly: bool = False
    """Whether a token's keys, values and logits are the same bits when they are computed again with others."""


class WorkerFailed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="failed"):
    """A worker met a plan it must not run, or a step raised; it ends after this message with a non-zero status."""

    message: str


FromWorker = StepResult | WorkerHello | WorkerFailed
