"""Device memory that attention of decoding rows works in, and how a context is split between programs.

A context is split by its own length alone, so that a sequence's result does not depend on its company: into splits of
SPLIT_TOKENS while there are at most MAX_SPLITS of them, and past that into so many, each a multiple of SPLIT_TOKENS.
"""

from dataclasses import dataclass

import torch

SPLIT_TOKENS = 128
"""Tokens of a split of a short context. A split costs its partial result, written and read again: 8 · (D + 1) bytes per
query head against 4 · D per token of a KV head, so splits of 128 tokens cost 3% for two query heads per KV head and 13%
for eight, though what is read again is still in the second-level cache. Fewer tokens cost more; more leave one stream
at 1k context on fewer than half of an H200's multiprocessors."""

MAX_SPLITS = 32
"""Most splits of a context; past 32 × 128 tokens they grow instead. A model of eight KV heads then gives one stream 256
programs on 132 multiprocessors, and two KV heads still 64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeWorkspace:
    """Memory for partial results, allocated once: a graph's addresses must not change. One step at a time may use it;
    what it holds between launches is `arrivals` = 0."""

    partial_out: torch.Tensor
    """float32 [rows, K, S, G, D]: of each split, normalized."""
    partial_lse: torch.Tensor
    """float32 [rows, K, S, G]: base-2 logarithm of each split's sum of weights."""
    arrivals: torch.Tensor
    """int32 [rows, K]: programs that are done with their splits."""
    max_context: int
    num_sms: int
    """Multiprocessors of the device: how many programs it takes to occupy it."""

    @classmethod
    def allocate(
        cls,
        *,
        max_rows: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        max_context: int,
        num_sms: int,
        device: torch.device,
    ) -> "DecodeWorkspace":
        """For steps of up to max_rows decoding rows, none of a longer context than max_context."""
        # Not those of max_context itself: 4,097 tokens have 17 splits and 4,096 have 32.
        most_splits = min(MAX_SPLITS, -(-max_context // SPLIT_TOKENS))
        shape = (max_rows, num_kv_heads, most_splits, num_heads // num_kv_heads)
        return cls(
            partial_out=torch.empty((*shape, head_dim), dtype=torch.float32, device=device),
            partial_lse=torch.empty(shape, dtype=torch.float32, device=device),
            arrivals=torch.zeros((max_rows, num_kv_heads), dtype=torch.int32, device=device),
            max_context=max_context,
            num_sms=num_sms,
        )

    @property
    def max_rows(self) -> int:
        return self.arrivals.shape[0]

    @property
    def max_splits(self) -> int:
        """The most splits that a context of up to max_context tokens has."""
        return self.partial_lse.shape[2]

    @property
    def num_bytes(self) -> int:
        return self.partial_out.nbytes + self.partial_lse.nbytes + self.arrivals.nbytes

    def check(self, num_rows: int) -> None:
        """Raises ValueError where a step has more rows than there is room for."""
        if num_rows > self.max_rows:
            raise ValueError(f"{num_rows} rows decode; the workspace is for at most {self.max_rows}")
