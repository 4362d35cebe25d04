"""CUDA's runner of steps, on a device that works while the host goes on: a `pagewire.worker.loop.Runner`.

    submit    check the plan against the host's columns, pack it, one copy, one scatter, then one launch of a step's
              graph (or, where chunks are mixed in, of its operations one by one), then what its special rows need,
              and one copy of the tokens back
    take      the oldest step's result, once the device is done with it

The host's columns are the authority on what a plan may do. The device's slots follow from the same plans, and from
tokens that never leave it for its sake. A step is launched whether or not the one before is over: the device runs them
in order.

Everything but events, page-locked memory and graphs works on a CPU as well, where a step is over when `submit` returns.
"""

from collections import deque
from collections.abc import Callable

from pagewire.wire.model import ModelSpec
from pagewire.wire.plan import StepPlan, StepResult
from pagewire.worker.cuda.graphs import StepGraphs
from pagewire.worker.cuda.in_flight import BuffersInFlight, HostBuffers, StepInFlight
from pagewire.worker.cuda.plan_packer import PackedPlan, PlanPacker, packed_capacity
from pagewire.worker.cuda.special_results import SpecialInFlight
from pagewire.worker.cuda.special_work import SpecialWork
from pagewire.worker.cuda.step_buffers import StepBuffers, StepShape
from pagewire.worker.cuda.step_work import StepLogits, StepWork
from pagewire.worker.cuda.timeline import StepTimes, Timeline
from pagewire.worker.grammar.constrained_rows import ConstrainedRows
from pagewire.worker.grammar.masks import StepMasks
from pagewire.worker.slots.columns import SlotLimits
from pagewire.worker.slots.state import Slots, Step

MAX_IN_FLIGHT = 2
"""Steps on the device: one that runs, and one that waits its turn."""


class CudaRunner:
    """Executes plans in order, with up to MAX_IN_FLIGHT of their steps on the device."""

    def __init__(
        self,
        *,
        limits: SlotLimits,
        buffers: StepBuffers,
        work: StepWork,
        special: SpecialWork,
        spec: ModelSpec | None,
        graphs: StepGraphs | None,
        timeline: Timeline,
        watch: Callable[[StepTimes], None],
    ) -> None:
        """Without `spec`, whose tokenizer grammars need, no plan has one. Without `graphs`, decode steps too are
        launched one operation after the other. `watch` is told of every step once it is launched, in order."""
        self._slots = Slots(limits)
        self._packer = PlanPacker(self._slots.columns, limits)
        self._buffers = buffers
        self._work = work
        self._special = special
        self._constrained = None if spec is None else ConstrainedRows(self._slots, spec, special.on_error)
        self._graphs = graphs
        self._timeline = timeline
        self._watch = watch
        words, is_pinned = packed_capacity(limits), buffers.packed.is_cuda
        self._in_flight = BuffersInFlight(
            [HostBuffers.allocate(words, limits.max_num_seqs, is_pinned) for _ in range(MAX_IN_FLIGHT)], self._slots
        )
        self._finished: deque[StepResult] = deque()
        """Popped to make room, and not yet taken."""

    def begin(self, epoch: int) -> None:
        """Open an epoch: every slot is empty. Waits for the steps in flight; their results are dropped."""
        self._drop_results()
        self._timeline.restart()
        self._slots.begin(epoch)

    def end_epoch(self) -> None:
        """Refuse every plan until the next `begin`. Waits as `begin` does."""
        self._drop_results()
        self._slots.end_epoch()

    def submit(self, plan: StepPlan) -> None:
        """Launch a plan's step. Waits for the oldest step where MAX_IN_FLIGHT are launched already. Raises PlanError,
        before anything is touched, for a wrong plan; whatever else is raised is final."""
        step = self._slots.apply(plan)
        if self._in_flight.is_full:
            self._finished.append(self._in_flight.pop())
        host = self._in_flight.next_free
        graphs = self._graphs if len(step.decode_slots) and not step.chunks else None
        num_seqs = len(step.decode_slots) + len(step.chunks)
        if graphs is not None:
            num_seqs = graphs.padded_size(num_seqs)
        packed = self._packer.pack(step, num_seqs, host.plan_np)
        self._bring(host, packed)
        if step.admitted and self._slots.special:
            self._special.admit(self._slots, step)
        times = self._timeline.begin()
        special = self._launch(step, graphs, num_seqs)
        num_tokens = len(step.sample_slots)
        if num_tokens:
            host.tokens[:num_tokens].copy_(self._buffers.tokens_S[:num_tokens], non_blocking=True)
        times.end()
        self._in_flight.push(StepInFlight(plan.epoch, plan.step_id, host, step, times, special))
        self._watch(times)

    def take(self) -> StepResult | None:
        """The oldest step's result; none at once where the device is not done with it, or nothing is in flight."""
        if self._finished:
            return self._finished.popleft()
        oldest = self._in_flight.oldest
        return self._in_flight.pop() if oldest is not None and oldest.times.is_over() else None

    def _launch(self, step: Step, graphs: StepGraphs | None, num_seqs: int) -> SpecialInFlight | None:
        if graphs is not None:
            logits_SV = graphs.launch(num_seqs)
            logits = StepLogits(logits_SV, logits_SV)
        elif num_seqs:
            logits = self._work.run(_shape(step), self._special.logit_rows(step))
        if not (step.special_rows or step.scored):
            return None
        return self._special.run(self._slots, step, logits, self._buffers.tokens_S, self._masks(step))

    def _masks(self, step: Step) -> StepMasks:
        """They follow from the tokens before, so these are waited for; the device is at the step's forward pass
        meanwhile."""
        if self._constrained is None or not self._constrained.rows(step):
            return StepMasks()
        while self._in_flight.oldest is not None:
            self._finished.append(self._in_flight.pop())
        masks = self._constrained.begin(step)
        return StepMasks() if masks is None else masks.result()

    def _bring(self, host: HostBuffers, packed: PackedPlan) -> None:
        if packed.num_words:
            words = slice(packed.num_words)
            self._buffers.packed[words].copy_(host.plan[words], non_blocking=True)
        if packed.num_changes:
            self._work.apply_changes(packed.changes_start, packed.num_changes)

    def _drop_results(self) -> None:
        while self._in_flight.oldest is not None:
            self._in_flight.pop()
        self._finished.clear()


def _shape(step: Step) -> StepShape:
    """Of a step as it is, without padding."""
    seq_rows = [(row, 1, position + 1) for row, position in enumerate(step.decode_positions.tolist())]
    first_row = len(seq_rows)
    for chunk in step.chunks:
        size = len(chunk.tokens)
        seq_rows.append((first_row, size, chunk.start + size))
        first_row += size
    return StepShape(tuple(seq_rows), len(step.decode_slots), len(step.sample_slots))
