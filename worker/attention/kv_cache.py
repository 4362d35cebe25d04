"""The KV cache's memory: its layout, how big it may be, and the only place that writes it.

A layer is one tensor [2, N, K, P, D]: keys, then values; within each a block holds its KV heads one after the other, so
that a head's part of a block is contiguous.

    layer ─┬─ keys   ─┬─ block 0 ─┬─ head 0: P positions × D
           │          ├─ block 1  ├─ head 1: P positions × D
           └─ values   …           …

It does not know who owns a block; the engine does. On a CPU, memory is reserved at start; the operating system commits
it when a block is first written, or before, when the machine has time for that.
"""

import math

import torch

from pagewire.wire.model import DecoderConfig
from pagewire.worker.native.memory import HugePages

_CPU = torch.device("cpu")

DEFAULT_MAX_BYTES = 4 << 30
DEFAULT_SHARE = 0.25
"""Without `kv_cache_bytes` the cache takes at most this much, and this share of the memory that is available once the
weights are loaded: other processes of the service and the page cache need the rest. Where one sequence of
max_model_len needs more, it may take up to half."""


def bytes_per_block(config: DecoderConfig, block_size: int, dtype: torch.dtype) -> int:
    """Keys and values of one block in all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * block_size * dtype.itemsize


def plan_num_blocks(
    config: DecoderConfig,
    *,
    block_size: int,
    dtype: torch.dtype,
    max_num_seqs: int,
    max_model_len: int,
    kv_cache_bytes: int | None,
    available_bytes: int,
    earlier_num_blocks: int | None = None,
) -> int:
    """How many blocks to hold: as many as the budget pays for, and never more than max_num_seqs sequences of
    max_model_len need.

    The budget is kv_cache_bytes or, where that is none, derived from available_bytes (see DEFAULT_MAX_BYTES). Raises
    ValueError where it does not hold one sequence of max_model_len, because the server promises that length.

    A worker that is started again has earlier_num_blocks: it takes as many, if half of what is available pays for them,
    and else as many as that pays for, since a server that serves shorter sequences is better than none.
    """
    if kv_cache_bytes is not None:
        budget = kv_cache_bytes
        name = f"kv_cache_bytes {kv_cache_bytes}"
    elif earlier_num_blocks is not None:
        budget = available_bytes // 2
        name = f"half of the {available_bytes} bytes that are available"
    else:
        one_seq_bytes = -(-max_model_len // block_size) * bytes_per_block(config, block_size, dtype)
        budget = min(DEFAULT_MAX_BYTES, int(available_bytes * DEFAULT_SHARE))
        budget = max(budget, min(one_seq_bytes, available_bytes // 2))
        name = f"the default budget of {budget} bytes ({available_bytes} are available)"
    return num_blocks_within(
        budget,
        name,
        config,
        block_size=block_size,
        dtype=dtype,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        earlier_num_blocks=earlier_num_blocks,
    )


def num_blocks_within(
    budget: int,
    name: str,
    config: DecoderConfig,
    *,
    block_size: int,
    dtype: torch.dtype,
    max_num_seqs: int,
    max_model_len: int,
    earlier_num_blocks: int | None = None,
) -> int:
    """How many blocks `budget` bytes pay for, never more than can be used, nor than there were earlier. Raises
    ValueError, with the budget's name in its message, where it does not hold one sequence of max_model_len, or, where
    there were some earlier, not one block."""
    per_block = bytes_per_block(config, block_size, dtype)
    blocks_per_seq = -(-max_model_len // block_size)
    if earlier_num_blocks is not None:
        if budget < per_block:
            raise ValueError(f"{name} does not hold one block of KV, which is {per_block} bytes")
        return min(budget // per_block, earlier_num_blocks, max_num_seqs * blocks_per_seq)
    one_seq_bytes = blocks_per_seq * per_block
    if budget < one_seq_bytes:
        fitting = max(0, budget // per_block * block_size)
        raise ValueError(
            f"{name} holds {fitting} tokens of KV, fewer than one sequence of max_model_len {max_model_len}; "
            f"set kv_cache_bytes to at least {one_seq_bytes} or max_model_len to at most {fitting}"
        )
    return min(budget // per_block, max_num_seqs * blocks_per_seq)


class KVCache:
    """Keys and values of all blocks. The decoder's forward pass writes them, at the KV positions of a batch alone."""

    def __init__(
        self,
        config: DecoderConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device = _CPU,
    ) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks {num_blocks} and block_size {block_size} must be at least 1")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_kv_heads = config.num_kv_heads
        self._head_dim = config.head_dim
        self.dtype = dtype
        self.num_bytes = num_blocks * bytes_per_block(config, block_size, dtype)
        shape = (2, num_blocks, config.num_kv_heads, block_size, config.head_dim)
        self._memory = HugePages()
        self.layers = [_zeros(self._memory, shape, dtype, device) for _ in range(config.num_layers)]
        """Per layer [2, N, K, P, D]."""
        self._rows = [layer.view(-1, config.head_dim) for layer in self.layers]
        self._parts = [layer.view(-1, block_size * config.head_dim) for layer in self.layers]

    def commit_when_idle(self) -> None:
        """On a CPU: has the system give the whole cache's memory, when a core has nothing else to do."""
        self._memory.commit_when_idle()

    def row_index(self, kv_positions_W: torch.Tensor) -> torch.Tensor:
        """Where `write` puts W tokens whose KV positions (block id × P + offset) are given: int64 [W · 2K] row numbers
        of a layer seen as [2 · N · K · P, D]. Computed once per step, used in every layer."""
        K, P = self.num_kv_heads, self.block_size
        heads = torch.arange(2 * K, device=kv_positions_W.device)
        # Head j < K is a key; j ≥ K is a value, a whole half of the layer further on.
        heads = (heads % K) * P + (heads // K) * (self.num_blocks * K * P)
        first = torch.div(kv_positions_W, P, rounding_mode="floor") * (K * P) + kv_positions_W % P
        return (first[:, None] + heads).flatten()

    def write(self, layer: int, rows: torch.Tensor, kv_WJD: torch.Tensor) -> None:
        """Stores W tokens' keys and values; J = 2K: the K key heads, then the K value heads, in the cache's dtype."""
        self._rows[layer].index_copy_(0, rows, kv_WJD.reshape(rows.shape[0], self._head_dim))

    def gather_index(self, blocks_BM: torch.Tensor) -> torch.Tensor:
        """What `gather` needs for each row of a block table (int32): int64 [B, 2K, M] numbers of the parts of a layer
        seen as [2 · N · K, P · D]. Computed once per step, used in every layer."""
        K = self.num_kv_heads
        heads = torch.arange(2 * K, device=blocks_BM.device)
        heads = heads % K + (heads // K) * (self.num_blocks * K)
        return blocks_BM[:, None, :].to(torch.int64) * K + heads[:, None]

    def gather(self, layer: int, index: torch.Tensor, out: torch.Tensor) -> None:
        """Copies the blocks of a flattened index [2K · M] into out, [2K · M, P · D]: per KV head its keys of M blocks
        in order, then the same for values.

        A copy per block and head: 24 µs for 8 blocks of Qwen3-0.6B's (1 MB), where selecting from a transposed view
        took 38, and 28 against 52 for 16 blocks of half the size.
        """
        torch.index_select(self._parts[layer], 0, index, out=out)


def _zeros(memory: HugePages, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU from `memory`, because `torch.zeros` would touch every page at once."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return memory.take(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)
