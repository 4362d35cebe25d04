"""Attention of decoding rows over paged KV, written out: the definition of `Kernels.paged_decode`.

Gathers every sequence's whole table, so its cost follows the longest possible context: for tests and dry runs.
Shapes as in `pagewire.worker.attention.base`; here each row is a sequence, so rows are B, and G = H / K. S are splits.
"""

import torch

from pagewire.worker.kernels.workspaces import DecodeWorkspace


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
