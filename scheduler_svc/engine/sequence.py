"""A sequence: one output being generated, from arrival to its single end.

Owns nothing but the record, and the rule by which a token ends it. Who may write which field is stated at the field
(DESIGN, section 4).
"""

import enum
from array import array
from dataclasses import dataclass, field

from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.wire.logits import LogitControls, LogprobsRequest
from pagewire.wire.requests import FinishKind
from pagewire.wire.sampling import SamplingParams

NO_SLOT = -1


class SequenceStatus(enum.Enum):
    """Where a sequence is. `FINISHED` is final."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    """Its reader is behind."""
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class SequenceKey:
    """Names a sequence: a frontend and that frontend's handle for it."""

    frontend: int
    handle: int


@dataclass(slots=True, eq=False)
class Sequence:
    """One output being generated. Compared by identity."""

    key: SequenceKey
    request_id: str
    tenant: str
    """Whose it is, and its `request_id`; empty where there are none."""
    sampling: SamplingParams
    prompt_len: int
    max_len: int
    """Prompt and output together end at this length."""
    stop_token_ids: frozenset[int]
    ignore_eos: bool
    priority: int
    salt: bytes
    arrived_s: float
    queue_deadline_s: float | None
    controls: LogitControls | None
    logprobs: LogprobsRequest | None
    cache_salt: str | None
    """The request's own part of `salt`, for whoever follows the cache."""
    prompt_logprobs: int | None
    """How many candidates come with each prompt token's log-probability; none where these are not asked for."""

    # Written by the Scheduler alone, but where another part of the engine is named.
    tokens: "array[int]"
    """Known token ids: the prompt, then received output up to the last flush of the slot's tail."""
    arrival: int = 0
    """Order of arrival; breaks ties of priority. Written by the OpenSequences, as is its status."""
    status: SequenceStatus = SequenceStatus.WAITING
    slot: int = NO_SLOT
    forecast_s: float | None = None
    """What its time to first token was forecast to be when it came; none where nothing was measured yet."""
    started: bool = False
    """Its first step has been planned; stays true through preemptions."""
    has_displaced: bool = False
    """Another has left its slot for it; written by Newcomers."""
    num_served: int = 0
    """How many of its tokens count as served to its tenant; written by the WaitQueue."""
    next_scored: int = 1
    """Position of the prompt token whose log-probability comes next, where they are asked for."""
    scores_prompt: bool = False
    """While it has a slot: whether it was admitted to have its prompt scored. Then nothing of it was cached."""

    # Written by Suspects alone.
    known_at_crash: int = -1
    """Length of `tokens` when a worker was last lost under it."""
    fruitless_crashes: int = 0
    """Workers lost under it in a row without a token of it between them."""
    close_crashes: int = 0
    """Workers lost under it in a row with few tokens of it between each two, or none."""
    lone_crashes: int = 0
    """Those of them under which it ran as a suspect with no other request; they begin anew once it is none."""

    # Written by the BlockManager alone.
    blocks: list[int] = field(default_factory=list)
    """Block table."""
    num_cached: int = 0
    """Leading tokens whose KV was already in the blocks at admission."""
    hashes: list[bytes] = field(default_factory=list)
    """Chained hash of each full block of `tokens`, as far as computed."""
    num_published: int = 0
    """Leading blocks that are in the prefix cache, or need not be since an equal block is."""

    @property
    def priority_key(self) -> tuple[int, int]:
        """The smallest runs first, the largest is preempted first."""
        return (-self.priority, self.arrival)

    @property
    def awaits_scores(self) -> bool:
        """Whether log-probabilities of its prompt are asked for and have not all come."""
        return self.prompt_logprobs is not None and self.next_scored < self.prompt_len

    def end_with(self, token: int, length: int, config: SchedulerConfig) -> FinishKind | None:
        """Why the sequence ends with this token, by which it came to this length; none where it goes on."""
        if not self.ignore_eos and token in config.eos_token_ids:
            return FinishKind.EOS
        if token in self.stop_token_ids:
            return FinishKind.STOP_TOKEN
        if length >= self.max_len:
            return FinishKind.LENGTH
        return FinishKind.NO_ROOM if length >= config.longest else None
