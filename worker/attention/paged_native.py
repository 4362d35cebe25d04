"""Paged attention by the native library: the cache is read in place, nothing is gathered or padded.

A step is cut once into items, shared by all layers: chunks of 256 tokens of a decoding sequence's context, and tiles of
128 query vectors of a prompt's chunk. An item and a KV head are one task, so that one long sequence occupies every
thread, and the query heads of a KV head share each read of it. The cut depends on a sequence's own length alone, so its
result depends neither on its company nor on the number of threads.

In bf16, products of q and k are exact in fp32 and so are sums. A prompt's weights are rounded to bf16 where the
processor multiplies pairs of bf16, as SDPA does; a decoding sequence's are not.
"""

import ctypes

import numpy as np
import torch

from pagewire.wire.model import DecoderConfig
from pagewire.worker.batch import Batch
from pagewire.worker.kv_cache import KVCache
from pagewire.worker.native.library import CHUNK_TOKENS, AttentionArgs, NativeLibrary
from pagewire.worker.native.memory import Buffer, dtype_code

_ITEM_FIELDS = 5
_SPREAD_FROM_BYTES = 512 << 10
"""KV read per layer from which other threads are worth waking."""


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
        self._items = np.empty(0, np.int32)
        self._arrivals = np.zeros(0, np.int32)
        self._partials = Buffer(torch.float32)
        self._out = Buffer(dtype)

    def begin(self, batch: Batch, kv: KVCache) -> "PagedNativeStep":
        _, _, num_kv_heads, block_size, head_dim = kv.layers[0].shape
        num_rows, num_seqs = batch.input_ids_T.shape[0], len(batch.seq_rows)
        num_tokens = sum(context_len for _, _, context_len in batch.seq_rows)
        most_items = num_rows + num_seqs + num_tokens // CHUNK_TOKENS
        if len(self._items) < most_items * _ITEM_FIELDS:
            self._items = np.empty(most_items * _ITEM_FIELDS, np.int32)
        num_partials = ctypes.c_int64()
        num_items = self._library.plan_attention(
            batch.query_starts.data_ptr(),
            batch.context_lens_B.data_ptr(),
            num_seqs,
            self._num_heads // num_kv_heads,
            self._items.ctypes.data,
            ctypes.byref(num_partials),
        )
        if len(self._arrivals) < num_partials.value * num_kv_heads:
            self._arrivals = np.zeros(num_partials.value * num_kv_heads, np.int32)
        partials = self._partials.take(num_partials.value * self._num_heads, head_dim + 2)
        out = self._out.take(num_rows, self._num_heads * head_dim).view(num_rows, self._num_heads, head_dim)
        args = AttentionArgs(
            out=out.data_ptr(),
            block_tables=batch.block_tables_BM.data_ptr(),
            query_starts=batch.query_starts.data_ptr(),
            context_lens=batch.context_lens_B.data_ptr(),
            items=self._items.ctypes.data,
            partials=partials.data_ptr(),
            arrivals=self._arrivals.ctypes.data,
            table_stride=batch.block_tables_BM.stride(0),
            num_items=num_items,
            num_heads=self._num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            block_size=block_size,
            dtype=self._dtype,
            scale=head_dim**-0.5,
        )
        # A row of a prompt is as much work as a sequence that decodes.
        read_bytes = 2 * num_kv_heads * head_dim * kv.dtype.itemsize * num_tokens
        work_bytes = read_bytes * max(1, num_rows // num_seqs)
        memory = (batch, self._items, self._arrivals, partials)
        return PagedNativeStep(self._library, kv, args, memory, out, work_bytes)


class PagedNativeStep:
    """One step's `AttentionStep`."""

    def __init__(
        self,
        library: NativeLibrary,
        kv: KVCache,
        args: AttentionArgs,
        memory: tuple[object, ...],
        out_THD: torch.Tensor,
        work_bytes: int,
    ) -> None:
        """`memory` owns what the addresses in `args` point to."""
        self._attend = library.attend
        self._kv = kv
        self._memory = memory
        self._args = args
        self._args_ref = ctypes.byref(args)
        self._out_THD = out_THD
        self._work_bytes = work_bytes

    def attend(self, layer: int, q_THD: torch.Tensor) -> torch.Tensor:
        args, kv_layer = self._args, self._kv.layers[layer]
        keys = kv_layer.data_ptr()
        args.q = q_THD.data_ptr()
        args.q_stride = q_THD.stride(0)
        args.k = keys
        args.v = keys + kv_layer.nbytes // 2
        self._attend(self._args_ref, self._work_bytes, _SPREAD_FROM_BYTES)
        return self._out_THD
