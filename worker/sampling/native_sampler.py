"""The native library's sampler: a drop-in for `pagewire.worker.sampling.sampler.Sampler`, with the same
meaning.

Same randomness, same order of ids, same treatment of rows that are no distribution. Two things differ, and only where
a draw falls within a rounding error of an edge can the token: weights of all ids are summed in another order, and their
exponential is another approximation (within 2 units in the last place).
"""

import numpy as np
import torch

from pagewire.wire.columns import Int32Array, SamplingRows
from pagewire.worker.native.library import NativeLibrary
from pagewire.worker.native.memory import dtype_code
from pagewire.worker.sampling.sampler import check_rows
from pagewire.worker.sampling.uniform import uniform


class NativeSampler:
    """Holds scratch memory for one row per thread; no other state."""

    def __init__(self, library: NativeLibrary, vocab_size: int) -> None:
        self._library = library
        self._vocab_size = vocab_size
        self._scratch = np.empty(library.num_threads * library.sample_scratch_bytes(vocab_size), np.uint8)

    def sample(self, logits_SV: torch.Tensor, rows: SamplingRows, positions: Int32Array) -> Int32Array:
        """One token id, or NO_TOKEN, per row; see `check_rows`, whose error it raises. `logits_SV` is float32 or
        bfloat16 on the CPU, rows contiguous; it is only read."""
        check_rows(logits_SV, rows, positions, self._vocab_size)
        num_rows = logits_SV.shape[0]
        tokens = np.empty(num_rows, np.int32)
        rows = np.ascontiguousarray(rows)
        draws = uniform(rows["seed"], positions)
        self._library.sample(
            logits_SV.data_ptr(),
            num_rows,
            self._vocab_size,
            logits_SV.stride(0),
            dtype_code(logits_SV.dtype),
            rows.ctypes.data,
            draws.ctypes.data,
            tokens.ctypes.data,
            self._scratch.ctypes.data,
        )
        return tokens
