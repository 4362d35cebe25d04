"""A captured decoder: its decode step is a graph of the native library's calls, replayed without Python between them.

A step makes some 250 calls of the library, and most of them take less time than Python does to make them. Which calls a
step makes follows from what it is: which rows belong to which sequence, which of them are written and which sample. In
a step in which every sequence decodes, that is the number of sequences. Two such steps whose block tables are as wide
make the same calls with the same addresses, and what differs lies in the memory behind them. So the first one is
captured, and those that follow are one call. Any other step in between drops the graph, because memory that grows for
it may move, and is itself neither captured nor replayed, whatever its arguments look like: a prompt's chunk of k tokens
has those of k sequences that decode, and samples one row.

One sequence, two Zen 4 cores, ms a step, in turns in one process: Qwen3-0.6B's shape 30.4 called and 28.9 replayed, in
int8 22.0 and 20.4, SmolLM2 8.8 and 7.9.
"""

from dataclasses import dataclass

import numpy as np
import torch

from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.attention.paged_native import PagedNativeStep
from pagewire.worker.cpu.native_ops import NativeStepOps
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.native.library import NativeLibrary

_CALLS_PER_LAYER = 9
_CALLS_AROUND_LAYERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _DecodeStep:
    """A step in which every sequence decodes. Equal ones make the same calls."""

    num_seqs: int
    kv: KVCache
    """Compared by identity."""
    arguments: bytes
    """Addresses of the step's memory, and the numbers that all of its calls of one kind share, the width of the block
    tables among them."""


class CapturedDecoder:
    """A `pagewire.worker.cpu.runner.Model`. Nobody else may run steps of the decoder from its first one on."""

    def __init__(self, decoder: Decoder, library: NativeLibrary) -> None:
        """All of the decoder must be the library's: its linears, what lies between them, and attention."""
        self._decoder = decoder
        self._library = library
        self._capacity = decoder.config.num_layers * _CALLS_PER_LAYER + _CALLS_AROUND_LAYERS
        self._calls = np.zeros(self._capacity * library.call_bytes(), np.uint8)
        self._num_calls = 0
        self._captured: _DecodeStep | None = None
        """The step whose calls are kept."""
        self._logits_SV = torch.empty(0)

    def forward(self, batch: Batch, kv: KVCache) -> torch.Tensor:
        """As `Decoder.forward`."""
        step = self._decoder.begin(batch, kv)
        if not batch.is_decode:
            self._captured = None
            return self._decoder.finish(step)
        assert isinstance(step.ops, NativeStepOps)
        assert isinstance(step.attention, PagedNativeStep)
        arguments = step.ops.arguments + step.attention.arguments
        wanted = _DecodeStep(num_seqs=len(batch.seq_rows), kv=kv, arguments=arguments)
        if wanted == self._captured:
            self._library.replay(self._calls.ctypes.data, self._num_calls)
            return self._logits_SV
        self._captured = None
        self._library.begin_capture(self._calls.ctypes.data, self._capacity)
        try:
            self._logits_SV = self._decoder.finish(step)
        finally:
            self._num_calls = self._library.end_capture()
        if self._num_calls <= self._capacity:
            self._captured = wanted
        return self._logits_SV
