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

from pagewire.wire.columns import Int32Array
from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.native.library import CHUNK_TOKENS, AttentionArgs, AttentionPlan, NativeLibrary
from pagewire.worker.native.memory import Buffer, dtype_code

_ITEM_FIELDS = 5


_MAX_PARTIALS = 4096
"""Results of parts of contexts that one call puts together, where a prompt's rows attend one by one; else a chunk of
2,000 rows behind a context of 40,000 tokens would need gigabytes for them."""


class _Sequences(NamedTuple):
    """What one call attends to, by sequences."""

    query_starts: torch.Tensor
    context_lens_B: torch.Tensor
    block_tables_BM: torch.Tensor
    first_row: int
    """Of the batch's."""

    @classmethod
    def of_batch(cls, batch: Batch) -> "_Sequences":
        """As the batch has them."""
        return cls(batch.query_starts, batch.context_lens_B, batch.block_tables_BM, 0)

    @classmethod
    def of_rows(cls, batch: Batch, num_rows: int) -> list["_Sequences"]:
        """Every row as a sequence of its own, which ends with it; so many in a call."""
        seqs_T = torch.repeat_interleave(torch.diff(batch.query_starts).to(torch.int64))
        # How much more a sequence's rows see than their numbers in the batch.
        ahead_B = batch.context_lens_B - batch.query_starts[1:]
        context_lens_T = torch.arange(1, len(seqs_T) + 1, dtype=torch.int32) + ahead_B.index_select(0, seqs_T)
        calls = []
        for first in range(0, len(seqs_T), num_rows):
            seqs = seqs_T[first : first + num_rows]
            starts = torch.arange(len(seqs) + 1, dtype=torch.int32)
            tables = batch.block_tables_BM.index_select(0, seqs)
            calls.append(cls(starts, context_lens_T[first : first + num_rows], tables, first))
        return calls


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
        self._plans: list[tuple[AttentionPlan, Int32Array]] = []
        """Of each call of a step, with the memory of its items."""
        self._arrivals = np.zeros(0, np.int32)
        self._partials = Buffer(torch.float32)
        self._out = Buffer(dtype)
        self._attends_by_rows = dtype == torch.float32

    def begin(self, batch: Batch, kv: KVCache) -> "PagedNativeStep":
        block_size = kv.layers[0].shape[3]
        # By the width of the tables, so that memory is the same in the steps until they grow.
        chunks = -(-batch.block_tables_BM.shape[1] * block_size // CHUNK_TOKENS)
        num_rows, head_dim = batch.input_ids_T.shape[0], kv.layers[0].shape[4]
        out = self._out.take(num_rows, self._num_heads * head_dim).view(num_rows, self._num_heads, head_dim)
        if self._attends_by_rows and not batch.is_decode:
            calls = _Sequences.of_rows(batch, num_rows if chunks == 1 else max(1, _MAX_PARTIALS // chunks))
        else:
            calls = [_Sequences.of_batch(batch)]
        args = [self._arguments(index, seqs, chunks, kv, out) for index, seqs in enumerate(calls)]
        return PagedNativeStep(self._library, kv, args, (self, batch, calls), out)

    def _arguments(
        self, index: int, seqs: _Sequences, chunks: int, kv: KVCache, out_THD: torch.Tensor
    ) -> tuple[AttentionArgs, int]:
        """Of one call, and its first row. Calls come one after the other, so that they share all memory but items."""
        _, _, num_kv_heads, block_size, head_dim = kv.layers[0].shape
        num_seqs = seqs.context_lens_B.shape[0]
        most_partials = num_seqs * chunks if chunks > 1 else 0
        if len(self._arrivals) < most_partials * num_kv_heads:
            self._arrivals = np.zeros(most_partials * num_kv_heads, np.int32)
        partials = self._partials.take(most_partials * self._num_heads, head_dim + 2)
        plan = self._plan(index, out_THD.shape[0] + num_seqs * chunks)
        self._library.plan_attention(
            seqs.query_starts.data_ptr(),
            seqs.context_lens_B.data_ptr(),
            num_seqs,
            self._num_heads // num_kv_heads,
            ctypes.byref(plan),
        )
        args = AttentionArgs(
            out=out_THD[seqs.first_row :].data_ptr(),
            block_tables=seqs.block_tables_BM.data_ptr(),
            query_starts=seqs.query_starts.data_ptr(),
            context_lens=seqs.context_lens_B.data_ptr(),
            plan=ctypes.addressof(plan),
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
        return args, seqs.first_row

    def _plan(self, index: int, most_items: int) -> AttentionPlan:
        if index == len(self._plans):
            self._plans.append((AttentionPlan(), np.empty(0, np.int32)))
        plan, items = self._plans[index]
        if len(items) < most_items * _ITEM_FIELDS:
            items = np.empty(most_items * _ITEM_FIELDS, np.int32)
            self._plans[index] = (plan, items)
        plan.items = items.ctypes.data
        return plan


class PagedNativeStep:
    """One step's `AttentionStep`."""

    def __init__(
        self,
        library: NativeLibrary,
        kv: KVCache,
        calls: list[tuple[AttentionArgs, int]],
        memory: tuple[object, ...],
        out_THD: torch.Tensor,
    ) -> None:
        """`calls` are arguments and the first row of each; `memory` owns what they point to."""
        self.arguments = b"".join(bytes(args) for args, _ in calls)
        """Steps that have these in common, and the cache, make the same calls for the same q."""
        self._attend = library.attend
        self._kv = kv
        self._memory = memory
        self._calls = [(args, ctypes.byref(args), first_row) for args, first_row in calls]
        self._out_THD = out_THD

    def attend(self, layer: int, q_THD: torch.Tensor) -> torch.Tensor:
        kv_layer = self._kv.layers[layer]
        keys, stride = kv_layer.data_ptr(), q_THD.stride(0)
        for args, args_ref, first_row in self._calls:
            args.q = q_THD.data_ptr() + first_row * stride * q_THD.element_size()
            args.q_stride = stride
            args.k = keys
            args.v = keys + kv_layer.nbytes // 2
            self._attend(args_ref)
        return self._out_THD
