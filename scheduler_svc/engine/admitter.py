"""The admitter: which of those that wait get a slot in a step, in order of the queue or of a search for suspects.

A sequence is admitted where all of this is left for it, and else keeps its place, with everyone behind it:

    budget   of the step, after those that run: some of it, which its first chunk takes
    slot     one
    blocks   for all its known tokens but those of its cached prefix, and one more for each sequence that runs
    ids      of what one plan may carry, where others are admitted with it

While there are suspects only they are admitted, and each must have run before anybody else comes. So where one finds
no room, others give way to it, one a step: how long the search lasts hangs on nobody's length.

It owns nothing but these decisions. It knows neither plans nor results, and takes nobody's slot away itself.
"""

from pagewire.scheduler_svc.engine.events import Event
from pagewire.scheduler_svc.engine.open_sequences import OpenSequences
from pagewire.scheduler_svc.engine.running_batch import RunningBatch
from pagewire.scheduler_svc.engine.sequence import Sequence, SequenceStatus
from pagewire.scheduler_svc.engine.steps import Counters, StepChunks
from pagewire.scheduler_svc.engine.suspects import Suspects
from pagewire.wire.plan import Admit
from pagewire.wire.requests import SeqStarted

MAX_ADMITTED_IDS = 1 << 20
"""Token ids that one plan admits, of which the first sequence is one whatever its length: frames have a limit, and a
worker that decodes for others should not read for long."""


class Admitter:
    """Of one scheduler."""

    def __init__(self, sequences: OpenSequences, suspects: Suspects, counters: Counters) -> None:
        """`counters` are told of prompts that begin."""
        self._open = sequences
        self._suspects = suspects
        self._counters = counters
        self._refused: Sequence | None = None
        """Whom the last step had no slot or no blocks for."""

    def admit(
        self, batch: RunningBatch, chunks: StepChunks, now_s: float
    ) -> tuple[list[Admit], list[Event[SeqStarted]]]:
        """Admit waiting sequences in order until budget, slots or blocks run out; each gets its first chunk at once,
        but for those that must wait until another's prompt is scored."""
        admits: list[Admit] = []
        starts: list[Event[SeqStarted]] = []
        num_ids = 0
        self._refused = None
        while chunks.budget > 0 and (sequence := self._next(batch)) is not None:
            if not batch.slots.num_free:
                self._refused = sequence
                break
            num_ids += len(sequence.tokens)
            if sequence.controls is not None:
                num_ids += len(sequence.controls.grammar)  # a character is as much as an id, or less
            if admits and num_ids > MAX_ADMITTED_IDS:
                break
            # One block for each running sequence stays free: without it an admission would soon be undone.
            admit = batch.admit(sequence, reserve=self._open.num_running)
            if admit is None:
                self._refused = sequence
                break
            self._open.run(sequence)
            admits.append(admit)
            batch.advance_prefill(sequence, chunks)
            if not sequence.started:
                starts.append(self._start(sequence, now_s))
        return admits, starts

    def gives_way(self, batch: RunningBatch) -> Sequence | None:
        """Who is to leave its slot for a suspect that the last step had no room for: of those that run and are not on
        trial the last by priority. None where no suspect needs it, or nobody can."""
        if self._refused is None:
            return None
        trial = self._suspects.trial(batch.slots)
        if self._refused not in trial:  # it is nobody's, but the queue's first
            return None
        return batch.last_by_priority(but=trial)

    def _next(self, batch: RunningBatch) -> Sequence | None:
        """While somebody is suspected of ending workers, only suspects are admitted, and those of one group."""
        if trial := self._suspects.trial(batch.slots):
            return next((sequence for sequence in trial if sequence.status is SequenceStatus.WAITING), None)
        return self._open.waiting.peek() if batch.slots.num_free else None

    def _start(self, sequence: Sequence, now_s: float) -> Event[SeqStarted]:
        sequence.started = True
        self._counters.prompt_tokens += sequence.prompt_len
        cached = min(sequence.num_cached, sequence.prompt_len)
        self._counters.cached_prompt_tokens += cached
        started = SeqStarted(sequence.key.handle, cached, now_s - sequence.arrived_s, sequence.forecast_s)
        return Event(sequence.key.frontend, started)
