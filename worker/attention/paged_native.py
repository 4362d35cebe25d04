"""Paged attention by the native library: the cache is read in place, nothing is gathered or padded.

A step is cut once into items, shared by all layers: chunks of 256 tokens of a decoding sequence's context, and tiles of
128 query vectors of a prompt's chunk. An item and a KV head are one task, so that one long sequence occupies every
thread, and the query heads of a KV head share each read of it. The cut depends on a sequence's own length alone, so its
result depends neither on its company nor on the number of threads.

In bf16, products of q and k are exact in fp32 and so are sums. A prompt's weights are rounded to bf16 where the
processor multiplies pairs of bf16, as SDPA does; a decoding sequence's are not. In fp32 every row of a prompt attends
as if it decoded: the kernel for tiles adds up in another order, and a sequence that is computed again, after a
preemption or a crash, must come to the same bits as when it was generated.
"""

import ctypes
from typing import NamedTuple

import numpy as np
import torch

from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.native.library import CHUNK_TOKENS, AttentionArgs, AttentionPlan, NativeLibrary
from pagewire.worker.native.memory import Buffer, dtype_code

_ITEM_FIELDS = 5


class _Sequences(NamedTuple):
    """What a step attends to, by sequences."""

    query_starts: torch.Tensor
    context_lens_B: torch.Tensor
    block_tables_BM: torch.Tensor

    @classmethod
    def of(cls, batch: Batch) -> "_Sequences":
        """The batch's own."""
        return cls(batch.query_starts, batch.context_lens_B, batch.block_tables_BM)

    @classmethod
    def of_rows(cls, batch: Batch) -> "_Sequences":
        """Every row as a sequence of its own, which ends with it."""
        num_rows = torch.diff(batch.query_starts).to(torch.int64)
        return cls(
            torch.arange(batch.input_ids_T.shape[0] + 1, dtype=torch.int32),
            (batch.positions_T + 1).to(torch.int32),
            batch.block_tables_BM.repeat_interleave(num_rows, dim=0),
        )


class PagedNativeAttention:
    """An `AttentionBackend` that owns the scratch memory of its steps: one step at a time."""

    name = "paged-native"
    block_size_multiple = 1
    default_block_size = 32

    def __init__(self, library: NativeLibrary, config: DecoderConfig, dtype: torch.dtype) -> None:
        """Raises ValueError for a dtype that is neither float32 nor bfloat16."""
        self._library = library
        self._num_heads = config.num_heads
        self._dtype = dtype_code(dtype)
        self._plan = AttentionPlan()
        self._plan_ref = ctypes.byref(self._plan)
        self._items = np.empty(0, np.int32)
        self._arrivals = np.zeros(0, np.int32)
        self._partials = Buffer(torch.float32)
        self._out = Buffer(dtype)
        self._attends_by_rows = dtype == torch.float32

    def begin(self, batch: Batch, kv: KVCache) -> "PagedNativeStep":
        _, _, num_kv_heads, block_size, head_dim = kv.layers[0].shape
        seqs = _Sequences.of(batch)
        if self._attends_by_rows and not batch.is_decode:
            seqs = _Sequences.of_rows(batch)
        num_rows, num_seqs = batch.input_ids_T.shape[0], seqs.context_lens_B.shape[0]
        # By the width of the tables, so that memory is the same in the steps until they grow.
        chunks = -(-seqs.block_tables_BM.shape[1] * block_size // CHUNK_TOKENS)
        most_items = num_rows + num_seqs * chunks
        most_partials = num_seqs * chunks if chunks > 1 else 0
        if len(self._items) < most_items * _ITEM_FIELDS:
            self._items = np.empty(most_items * _ITEM_FIELDS, np.int32)
        if len(self._arrivals) < most_partials * num_kv_heads:
            self._arrivals = np.zeros(most_partials * num_kv_heads, np.int32)
        partials = self._partials.take(most_partials * self._num_heads, head_dim + 2)
        out = self._out.take(num_rows, self._num_heads * head_dim).view(num_rows, self._num_heads, head_dim)
        self._plan.items = self._items.ctypes.data
        self._library.plan_attention(
            seqs.query_starts.data_ptr(),
            seqs.context_lens_B.data_ptr(),
            num_seqs,
            self._num_heads // num_kv_heads,
            self._plan_ref,
        )
        args = AttentionArgs(
            out=out.data_ptr(),
            block_tables=seqs.block_tables_BM.data_ptr(),
            query_starts=seqs.query_starts.data_ptr(),
            context_lens=seqs.context_lens_B.data_ptr(),
            plan=ctypes.addressof(self._plan),
            partials=partials.data_ptr(),
            arrivals=self._arrivals.ctypes.data,
            table_stride=seqs.block_tables_BM.stride(0),
            num_heads=self._num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            block_size=block_size,
            dtype=self._dtype,
            scale=head_dim**-0.5,
        )
        return PagedNativeStep(
            self._library, kv, args, (batch, seqs, self._plan, self._items, self._arrivals, partials), out
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
        """`memory` owns what the addresses in `args` point to."""
        self.arguments = bytes(args)
        """Steps that have these in common, and the cache, make the same calls for the same q."""
        self._attend = library.attend
        self._kv = kv
        self._memory = memory
        self._args = args
        self._args_ref = ctypes.byref(args)
        self._out_THD = out_THD

    def attend(self, layer: int, q_THD: torch.Tensor) -> torch.Tensor:
        args, kv_layer = self._args, self._kv.layers[layer]
        keys = kv_layer.data_ptr()
        args.q = q_THD.data_ptr()
        args.q_stride = q_THD.stride(0)
        args.k = keys
        args.v = keys + kv_layer.nbytes // 2
        self._attend(self._args_ref)
        return self._out_THD
