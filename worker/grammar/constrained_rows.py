"""Constrained rows: a mask of what a sequence's grammar lets come next, for each row that samples.

Holds a matcher for every slot whose admission has a grammar. A matcher follows its sequence's own ids, and is made
again from the ids of an admission, so a preemption or a crash changes nothing. Masks are made on threads of this room's
own while the step's forward pass runs. It knows no logits and no device. A grammar that cannot go on (too much to do at
one place, say) is an error of its row alone.

The library is llguidance. Its masks cover the tokenizer's ids; what a model has beside those is never allowed.
"""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import llguidance
import numpy as np
import numpy.typing as npt

from pagewire.wire.grammar import GrammarTokenizer, parser_limits
from pagewire.wire.model import ModelSpec
from pagewire.wire.plan import Admit
from pagewire.worker.grammar.masks import StepMasks
from pagewire.worker.native.machine import usable_cores
from pagewire.worker.slots.state import Slots, Step

_MAX_PROTOTYPES = 16
"""Grammars that were compiled last; requests come with the same ones again and again. Each is 30 MB at its limit."""
_MAX_REASON = 400
_MAX_THREADS = 8
"""That fill masks."""


@dataclass(slots=True)
class _Matcher:
    admit: Admit
    matcher: llguidance.LLMatcher
    num_read: int
    """Of the sequence's ids, the prompt's included."""


class ConstrainedRows:
    """The matchers of one runner. Used between `Slots.apply` and `Slots.record`, when every earlier step is
    recorded."""

    def __init__(self, slots: Slots, spec: ModelSpec, on_error: Callable[[str, Exception], None]) -> None:
        """The tokenizer is read from now on, on a thread: a step must not wait for it. `on_error` is told what failed a
        row, for a log."""
        self._slots = slots
        self._spec = spec
        self._on_error = on_error
        self._executor = llguidance.LLExecutor(min(_MAX_THREADS, usable_cores()))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._tokenizer: Future[GrammarTokenizer] = self._thread.submit(
            GrammarTokenizer.read, spec.tokenizer_file, spec.eos_token_ids, spec.decoder.vocab_size
        )
        self._matchers: dict[int, _Matcher] = {}
        """By slot. Another admission is another object."""
        self._prototypes: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()

    def begin(self, step: Step) -> Future[StepMasks] | None:
        """Start on a step's masks, on a thread; none where no row is constrained. Only one step at a time."""
        rows = self.rows(step)
        return self._thread.submit(self._fill, step, rows) if rows else None

    def rows(self, step: Step) -> list[int]:
        """Those that are constrained."""
        special = self._slots.special
        return [row for row in step.special_rows if special[int(step.sample_slots[row])].has_grammar]

    def _fill(self, step: Step, rows: list[int]) -> StepMasks:
        found = StepMasks()
        self._forget_ended()
        try:
            tokenizer = self._tokenizer.result()
        except BaseException as error:
            self._on_error("the tokenizer for grammars", RuntimeError(repr(error)))
            found.failures.update(dict.fromkeys(rows, "the model's tokenizer cannot be used with a grammar"))
            return found
        ready: list[tuple[int, llguidance.LLMatcher]] = []
        for row in rows:
            try:
                matcher = self._matcher(tokenizer, step, row)
            except BaseException as error:  # a panic of the library's is no Exception; nothing else ends this thread
                self._fail(row, found, error)
                continue
            if matcher.is_error():
                found.failures[row] = _reason(matcher)
            else:
                ready.append((row, matcher))
        try:
            self._put_masks(tokenizer, ready, found)
        except BaseException:
            for each in ready:
                try:
                    self._put_masks(tokenizer, [each], found)
                except BaseException as error:
                    self._fail(each[0], found, error)
        return found

    def _fail(self, row: int, found: StepMasks, error: BaseException) -> None:
        self._on_error(f"row {row}'s grammar", RuntimeError(repr(error)))
        found.failures[row] = f"the grammar could not be followed: {type(error).__name__}"

    def _put_masks(
        self, tokenizer: GrammarTokenizer, ready: list[tuple[int, llguidance.LLMatcher]], found: StepMasks
    ) -> None:
        masks = self._masks(tokenizer, [matcher for _, matcher in ready])
        for (row, matcher), mask in zip(ready, masks, strict=True):
            if matcher.is_error():
                found.failures[row] = _reason(matcher)
            else:
                found.masks[row] = mask

    def _masks(self, tokenizer: GrammarTokenizer, matchers: list[llguidance.LLMatcher]) -> npt.NDArray[np.int32]:
        """[matchers, words of the vocabulary]."""
        vocab_size = self._spec.decoder.vocab_size
        masks = np.zeros((len(matchers), -(-tokenizer.num_ids // 32)), np.int32)
        if matchers:
            indexed = [(matcher, index) for index, matcher in enumerate(matchers)]
            self._executor.unsafe_compute_mask_ptr(indexed, masks.ctypes.data, masks.strides[0], len(masks))
        return np.ascontiguousarray(masks[:, : -(-vocab_size // 32)])

    def _matcher(self, tokenizer: GrammarTokenizer, step: Step, row: int) -> llguidance.LLMatcher:
        slot, length = int(step.sample_slots[row]), int(step.sample_positions[row])
        admit = self._slots.special[slot]
        held = self._matchers.get(slot)
        if held is None or held.admit is not admit:
            held = _Matcher(admit, self._prototype(tokenizer, admit).deep_copy(), admit.prompt_len)
            self._matchers[slot] = held
        ids = self._slots.columns.token_ids[slot, held.num_read : length].tolist()
        held.num_read = length
        if ids:
            held.matcher.consume_tokens(ids)
        return held.matcher

    def _prototype(self, tokenizer: GrammarTokenizer, admit: Admit) -> llguidance.LLMatcher:
        grammar = "" if admit.controls is None else admit.controls.grammar
        prototype = self._prototypes.get(grammar)
        if prototype is None:
            prototype = llguidance.LLMatcher(tokenizer.of_library, grammar, log_level=0, limits=parser_limits())
            self._prototypes[grammar] = prototype
            if len(self._prototypes) > _MAX_PROTOTYPES:
                self._prototypes.popitem(last=False)
        self._prototypes.move_to_end(grammar)
        return prototype

    def _forget_ended(self) -> None:
        for slot in [slot for slot in self._matchers if slot not in self._slots.special]:
            del self._matchers[slot]


def _reason(matcher: llguidance.LLMatcher) -> str:
    first_line = matcher.get_error().partition("\n")[0]
    return f"the request's constraint cannot go on: {first_line[:_MAX_REASON]}"
