"""Paged attention by the native library: the cache is read in place, nothing is gathered or padded.

A step is cut once into items, shared by all layers: chunks of 256 tokens of a decoding sequence's context, and tiles of
64 query vectors of a prompt's chunk. An item and a KV head are one task, so that one long sequence occupies every
thread, and the query heads of a KV head share each read of it. The cut depends on a sequence's own length alone, so its
result depends neither on its company nor on the number of threads.

In bf16, products of q and k are exact in fp32 and so are sums. A prompt's weights are rounded to bf16 where the
processor multiplies pairs of bf16, as SDPA does; a decoding sequence's are not.
"""

import ctypes

import numpy as np
import torch

from pagewire.worker.batch import Batch
from pagewire.worker.kv_cache import KVCache
from pagewire.worker.native.library import CHUNK_TOKENS, AttentionArgs, NativeLibrary
from pagewire.worker.native.memory import Buffer, dtype_code

_ITEM_FIELDS = 5
_SPREAD_FROM_BYTES = 128 << 10
"""KV read per layer from which other threads are worth waking."""


class PagedNativeAttention:
    """An `AttentionBackend` that owns the scratch memory of its steps: one step at a time."""

    name = "paged-native"
    block_size_multiple = 1
    default_block_size = 32

    def __init__(self, library: NativeLibrary) -> None:
        self._library = library
        self._items = np.empty(0, np.int32)
        self._arrivals = np.zeros(0, np.int32)
        self._partials = Buffer(torch.float32)
        self._out: dict[torch.dtype, Buffer] = {}

    def begin(self, batch: Batch, kv: KVCache) -> "PagedNativeStep":
        num_rows = batch.input_ids_T.shape[0]
        num_items = num_rows + sum(context_len for _, _, context_len in batch.seq_rows) // CHUNK_TOKENS + len(
            batch.seq_rows
        )
        if len(self._items) < num_items * _ITEM_FIELDS:
            self._items = np.empty(num_items * _ITEM_FIELDS, np.int32)
        return PagedNativeStep(self, batch, kv)

    def plan(self, batch: Batch, group: int) -> tuple[int, int]:
        """Cuts the step: numbers of items and of partial results."""
        num_partials = ctypes.c_int64()
        num_items = self._library.plan_attention(
            batch.query_starts.data_ptr(),
            batch.context_lens_B.data_ptr(),
            len(batch.seq_rows),
            group,
            self._items.ctypes.data,
            ctypes.byref(num_partials),
        )
        return num_items, num_partials.value
