"""Paged attention by the native library: the cache is read in place, nothing is gathered or padded.

A step is cut once into items, shared by all layers: chunks of 256 tokens of a decoding sequence's context, and tiles of
128 query vectors of a prompt's chunk. An item and a KV head are one task, so that one long sequence occupies every
thread, and the query heads of a KV head share each read of it. The cut depends on a sequence's own length alone, so its
result depends neither on its company nor on the number of threads.

A row of a prompt comes to the same bits as when it is decoded, in every dtype: a sequence that is computed again,
after a preemption or a crash or because its prefix was another's, goes on as if nothing had happened. Sums are fp32.
Where the processor multiplies pairs of bf16, weights are rounded to it, as SDPA does.
"""

import ctypes

import numpy as np
import torch

from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.native.library import CHUNK_TOKENS, AttentionArgs, AttentionPlan, NativeLibrary
from pagewire.worker.native.memory import Buffer, dtype_code

_ITEM_FIELDS = 5


class PagedNativeAttention:
    """An `AttentionBackend` that owns the scratch memory of its steps: one step at a time."""

    name = "paged-native"
    block_size_multiple = 1
    default_block_size = 32
    recomputes_exactly = True

    def __init__(self, library: NativeLibrary, config: DecoderConfig, dtype: torch.dtype) -> None:
        """Raises ValueError for a dtype that is neither float32 nor bfloat16."""
        self._library = library
        self._num_heads = config.num_heads
        self._dtype = dtype_code(dtype)
        self._plan = AttentionPlan()
        self._items = np.empty(0, np.int32)
        self._arrivals = np.zeros(0, np.int32)
        self._partials = Buffer(torch.float32)
        self._out = Buffer(dtype)

    def begin(self, batch: Batch, kv: KVCache) -> "PagedNativeStep":
        _, _, num_kv_heads, block_size, head_dim = kv.layers[0].shape
        tables_BM, num_rows = batch.block_tables_BM, batch.input_ids_T.shape[0]
        num_seqs = tables_BM.shape[0]
        # By the width of the tables, so that memory is the same in the steps until they grow.
        chunks = -(-tables_BM.shape[1] * block_size // CHUNK_TOKENS)
        most_partials = num_seqs * chunks if chunks > 1 else 0
        if len(self._arrivals) < most_partials * num_kv_heads:
            self._arrivals = np.zeros(most_partials * num_kv_heads, np.int32)
        partials = self._partials.take(most_partials * self._num_heads, head_dim + 2)
        out = self._out.take(num_rows, self._num_heads * head_dim).view(num_rows, self._num_heads, head_dim)
        self._plan_items(batch, num_rows + num_seqs * chunks, self._num_heads // num_kv_heads)
        args = AttentionArgs(
            out=out.data_ptr(),
            block_tables=tables_BM.data_ptr(),
            query_starts=batch.query_starts.data_ptr(),
            context_lens=batch.context_lens_B.data_ptr(),
            plan=ctypes.addressof(self._plan),
            partials=partials.data_ptr(),
            arrivals=self._arrivals.ctypes.data,
            table_stride=tables_BM.stride(0),
            num_heads=self._num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            block_size=block_size,
            dtype=self._dtype,
            scale=head_dim**-0.5,
        )
        return PagedNativeStep(self._library, kv, args, (self, batch), out)

    def _plan_items(self, batch: Batch, most_items: int, group: int) -> None:
        if len(self._items) < most_items * _ITEM_FIELDS:
            self._items = np.empty(most_items * _ITEM_FIELDS, np.int32)
        self._plan.items = self._items.ctypes.data
        self._library.plan_attention(
            batch.query_starts.data_ptr(),
            batch.context_lens_B.data_ptr(),
            batch.context_lens_B.shape[0],
            group,
            ctypes.byref(self._plan),
        )


class PagedNativeStep:
    """One step's `AttentionStep`."""

    def __init__(
        self,
        library: NativeLibrary,
        kv: KVCache,
        args: AttentionArgs,
        memory: tuple[object, ...],
        out_THD: torch.Tensor,
    ) -> None:
        """`memory` owns what the arguments point to."""
        self.arguments = bytes(args)
        """Steps that have these in common, and the cache, make the same calls for the same q."""
        self._attend = library.attend
        self._kv = kv
        self._args = args
        self._args_ref = ctypes.byref(args)
        self._memory = memory
        self._out_THD = out_THD

    def attend(self, layer: int, q_THD: torch.Tensor) -> torch.Tensor:
        kv_layer, args = self._kv.layers[layer], self._args
        keys = kv_layer.data_ptr()
        args.q = q_THD.data_ptr()
        args.q_stride = q_THD.stride(0)
        args.k = keys
        args.v = keys + kv_layer.nbytes // 2
        self._attend(self._args_ref)
        return self._out_THD
