"""Logit processors on a CPU: what a sequence's own controls and penalties make of its logits, before a token is drawn.

One stage for both samplers, in numpy: it touches the ids that a control names and, but for a list of allowed ids, none
besides, so that nothing in it is worth a kernel. In float32, in transformers' order:

    bias          logit + bias
    repetition    of ids in prompt or output: logit · penalty where it is negative, else logit / penalty
    frequency     of ids in the output: logit - penalty · (times generated)
    presence      of ids in the output: logit - penalty
    then minus infinity for banned ids, for those that are not allowed, for the last id of a bad word whose others have
    just been written, for what ends the output before min_tokens, and for what a grammar does not let come next

The order of the last ones does not matter. Samplers take temperature and filters from there.
"""

import numpy as np

from pagewire.wire.columns import Float32Array, Int32Array, unpack, unpack_floats
from pagewire.wire.logits import LogitControls
from pagewire.wire.plan import Admit
from pagewire.worker.sampling.history import History


class Processors:
    """What one admission asks to be done to its logits."""

    def __init__(self, admit: Admit, vocab_size: int) -> None:
        controls = admit.controls or LogitControls()
        sampling = admit.sampling
        self._prompt_len = admit.prompt_len
        self._bias_ids = unpack(controls.bias_ids)
        self._bias = unpack_floats(controls.bias_values)
        self._allowed = unpack(controls.allowed_ids)
        self._end_ids = unpack(controls.end_ids)
        self._min_tokens = controls.min_tokens
        words = [unpack(word) for word in controls.bad_words]
        single = [word for word in words if len(word) == 1]
        self._banned = np.concatenate([unpack(controls.banned_ids), *single])
        self._bad_words = [(word[:-1], int(word[-1])) for word in words if len(word) > 1]
        self._repetition = np.float32(sampling.repetition_penalty)
        self._frequency = np.float32(sampling.frequency_penalty)
        self._presence = np.float32(sampling.presence_penalty)
        self._history = History(admit.prompt_len, vocab_size) if sampling.needs_history else None

    def apply(self, logits_V: Float32Array, ids: Int32Array) -> None:
        """Change a row in place; `ids` is the whole sequence so far."""
        if len(self._bias_ids):
            logits_V[self._bias_ids] += self._bias
        if self._history is not None:
            self._history.read(ids)
            self._penalize(logits_V, self._history)
        if len(self._allowed):
            kept = logits_V[self._allowed]
            logits_V.fill(-np.inf)
            logits_V[self._allowed] = kept
        if len(self._banned):
            logits_V[self._banned] = -np.inf
        for others, last in self._bad_words:
            if ids[-1] == others[-1] and np.array_equal(ids[-len(others) :], others):
                logits_V[last] = -np.inf
        if len(ids) - self._prompt_len < self._min_tokens:
            logits_V[self._end_ids] = -np.inf

    def _penalize(self, logits_V: Float32Array, history: History) -> None:
        if self._repetition != 1:
            known = history.known
            logits = logits_V[known]
            logits_V[known] = np.where(logits < 0, logits * self._repetition, logits / self._repetition)
        if self._frequency or self._presence:
            generated, counts = history.generated
            logits = logits_V[generated]
            if self._frequency:
                logits -= self._frequency * counts.astype(np.float32)
            if self._presence:
                logits -= self._presence
            logits_V[generated] = logits


def take_out(logits_V: Float32Array, mask: Int32Array) -> None:
    """Minus infinity, in place, for ids whose bits are 0; see `pagewire.worker.grammar.masks`."""
    bits = np.unpackbits(mask.view(np.uint8), count=len(logits_V), bitorder="little")
    np.copyto(logits_V, -np.inf, where=bits == 0)
