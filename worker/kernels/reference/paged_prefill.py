"""Attention of prompt chunks over paged KV, written out: the definition of `Kernels.paged_prefill`.

One sequence at a time, with its whole matrix of scores: for tests and dry runs. It reads lengths on the host.
Shapes as in `pagewire.worker.attention.base`.
"""

import torch

from pagewire.worker.kernels.reference.paged_decode import gather_context


def paged_prefill(
    q_THD: torch.Tensor,
    kv_layer: torch.Tensor,
    block_tables_BM: torch.Tensor,
    query_starts: torch.Tensor,
    context_lens_B: torch.Tensor,
    out_THD: torch.Tensor,
    *,
    scale: float,
    max_query_len: int,
) -> None:
    """Fills out_THD with causal attention: the rows of a sequence are the last positions of its context.

    q_THD           [T, H, D], rows q_THD.stride(0) apart, each contiguous
    kv_layer        [2, N, K, P, D], contiguous, in q's dtype; what lies past a context may be anything, NaN included
    tables          int32 [B, M], rows stride(0) apart; entries past a context are not read
    query_starts    int32 [B + 1]: rows of sequence b are query_starts[b] … query_starts[b + 1] of q_THD and out_THD;
                    other rows are neither read nor written
    lengths         int32 [B], with this step's rows; 0 for a sequence that pads the batch: its rows' results are zero
    out_THD         [T, H, D], contiguous, in q's dtype
    scale           of scores, before softmax
    max_query_len   rows of the sequence that has most

    Raises ValueError where one has more rows than max_query_len; the Triton kernel, which reads nothing back, would
    leave the rest of its rows as they are.
    """
    _, H, D = q_THD.shape
    starts = query_starts.tolist()
    for b, (context_len, start, end) in enumerate(zip(context_lens_B.tolist(), starts[:-1], starts[1:], strict=True)):
        if end - start > max_query_len:
            raise ValueError(f"sequence {b} has {end - start} rows; max_query_len is {max_query_len}")
        if end == start:
            continue
        if context_len == 0:
            out_THD[start:end] = 0
            continue
        num_blocks = -(-context_len // kv_layer.shape[3])
        k_1KLD, v_1KLD = gather_context(kv_layer, block_tables_BM[b : b + 1, :num_blocks])
        k_KLD, v_KLD = k_1KLD[0, :, :context_len].float(), v_1KLD[0, :, :context_len].float()
        K = k_KLD.shape[0]
        q_TKGD = q_THD[start:end].reshape(end - start, K, H // K, D).float()
        scores = torch.einsum("tkgd,kld->tkgl", q_TKGD, k_KLD) * scale
        is_later_TL = torch.ones(end - start, context_len, dtype=torch.bool, device=q_THD.device)
        is_later_TL = is_later_TL.triu(context_len - (end - start) + 1)
        weights = scores.masked_fill(is_later_TL[:, None, None], float("-inf")).softmax(3)
        out_THD[start:end] = torch.einsum("tkgl,kld->tkgd", weights, v_KLD).reshape(end - start, H, D)
