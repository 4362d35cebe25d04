"""Attention of decoding rows over paged KV, written out: the definition of the Triton kernel of the same name.

Gathers every sequence's whole table, so its cost follows the longest possible context: for tests and dry runs.
Shapes as in `pagewire.worker.attention.base`; here each row is a sequence, so rows are B, and G = H / K. S are splits.
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
        # Not split_count(max_context): 4,097 tokens have 17 splits and 4,096 have 32.
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


def tokens_per_split(context_len: int) -> int:
    """How many tokens of a context one split covers: a function of its length alone, so that a sequence's result does
    not depend on its company. A multiple of SPLIT_TOKENS."""
    return SPLIT_TOKENS * max(1, -(-context_len // (SPLIT_TOKENS * MAX_SPLITS)))


def split_count(context_len: int) -> int:
    """How many splits a context has."""
    return -(-context_len // tokens_per_split(context_len))


def paged_decode(
    q_BHD: torch.Tensor,
    kv_layer: torch.Tensor,
    block_tables_BM: torch.Tensor,
    context_lens_B: torch.Tensor,
    out_BHD: torch.Tensor,
    *,
    scale: float,
    workspace: DecodeWorkspace,
) -> None:
    """Fills out_BHD with the attention of one query row per sequence over its first context_len tokens.

    q_BHD      [B, H, D], rows q_BHD.stride(0) apart, each contiguous
    kv_layer   [2, N, K, P, D], contiguous, in q's dtype; what lies past a context may be anything, NaN included
    tables     int32 [B, M], rows stride(0) apart; entries past a context are not read
    lengths    int32 [B], at most workspace.max_context; a row of length 0 pads the batch: its result is zero
    out_BHD    [B, H, D], contiguous, in q's dtype
    scale      of scores, before softmax

    Raises ValueError where the workspace has too few rows.
    """
    workspace.check(q_BHD.shape[0])
    k_BKLD, v_BKLD = gather_context(kv_layer, block_tables_BM)
    B, H, D = q_BHD.shape
    K, L = k_BKLD.shape[1], k_BKLD.shape[2]
    is_context_BL = torch.arange(L, device=q_BHD.device) < context_lens_B[:, None]
    q_BKGD = q_BHD.reshape(B, K, H // K, D).float()
    scores = torch.einsum("bkgd,bkld->bkgl", q_BKGD, k_BKLD.float()) * scale
    weights = scores.masked_fill(~is_context_BL[:, None, None], float("-inf")).softmax(3)
    # NaN: the weights of an empty row. 0 · NaN: a value past the context.
    weights = weights.masked_fill(~is_context_BL[:, None, None], 0.0)
    v_BKLD = v_BKLD.float().masked_fill(~is_context_BL[:, None, :, None], 0.0)
    out_BHD.copy_(torch.einsum("bkgl,bkld->bkgd", weights, v_BKLD).reshape(B, H, D))


def gather_context(kv_layer: torch.Tensor, block_tables_BM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of whole block tables, in order: [B, K, M · P, D] each."""
    gathered = kv_layer[:, block_tables_BM.long()]  # [2, B, M, K, P, D]
    k, v = gathered.transpose(2, 3).flatten(3, 4)
    return k, v
