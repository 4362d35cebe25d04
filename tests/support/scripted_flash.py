"""FlashAttention's two packages as far as they are documented: the signatures, the checks that their C++ makes, and the
result, by torch's attention over gathered keys and values. One class per package, whose methods are its functions."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F


def attend(
    q_THD: torch.Tensor,
    starts: list[int],
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lens: list[int],
    tables: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Causal, aligned to the last row; rows without a key are zero."""
    out = torch.zeros(q_THD.shape, dtype=q_THD.dtype)
    group = q_THD.shape[1] // k_cache.shape[2]
    for start, end, length, table in zip(starts[:-1], starts[1:], lens, tables.long(), strict=True):
        if length == 0:
            continue
        k, v = (
            cache[table].flatten(0, 1)[:length].transpose(0, 1).repeat_interleave(group, 0).float()
            for cache in (k_cache, v_cache)
        )
        sees = torch.ones(end - start, length, dtype=torch.bool).tril(length - (end - start))
        result = F.scaled_dot_product_attention(
            q_THD[start:end].transpose(0, 1).float(), k, v, attn_mask=sees, scale=scale
        )
        out[start:end] = result.transpose(0, 1).to(out.dtype)
    return out


def check_cache(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, tables: torch.Tensor) -> None:
    assert q.stride(-1) == k_cache.stride(-1) == v_cache.stride(-1) == tables.stride(-1) == 1
    assert k_cache.shape == v_cache.shape
    assert k_cache.shape[3] == q.shape[-1]
    assert q.shape[-2] % k_cache.shape[2] == 0
    assert tables.dtype == torch.int32


def check_int32(tensor: torch.Tensor, size: int) -> None:
    assert tensor.dtype == torch.int32
    assert tensor.is_contiguous()
    assert tensor.shape == (size,)


class ScriptedFlash3:
    """`flash_attn_interface`. It keeps the arguments of every call."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self._planned: dict[int, dict[str, Any]] = {}

    def get_scheduler_metadata(
        self,
        batch_size,
        max_seqlen_q,
        max_seqlen_k,
        num_heads_q,
        num_heads_kv,
        headdim,
        cache_seqlens,
        qkv_dtype=torch.bfloat16,
        headdim_v=None,
        cu_seqlens_q=None,
        cu_seqlens_k_new=None,
        cache_leftpad=None,
        page_size=None,
        max_seqlen_k_new=0,
        causal=False,
        window_size=(-1, -1),
        attention_chunk=0,
        has_softcap=False,
        num_splits=0,
        pack_gqa=None,
        sm_margin=0,
    ) -> torch.Tensor:
        check_int32(cache_seqlens, batch_size)
        if cu_seqlens_q is not None:
            check_int32(cu_seqlens_q, batch_size + 1)
        key = len(self._planned)
        self._planned[key] = {
            "batch_size": batch_size,
            "max_seqlen_q": max_seqlen_q,
            "max_seqlen_k": max_seqlen_k,
            "heads": (num_heads_q, num_heads_kv, headdim),
            "dtype": qkv_dtype,
            "is_varlen_q": cu_seqlens_q is not None,
            "page_size": page_size,
            "causal": causal,
            "num_splits": num_splits,
        }
        return torch.tensor([key], dtype=torch.int32)

    def flash_attn_with_kvcache(
        self,
        q,
        k_cache,
        v_cache,
        k=None,
        v=None,
        qv=None,
        rotary_cos=None,
        rotary_sin=None,
        cache_seqlens=None,
        cache_batch_idx=None,
        cache_leftpad=None,
        page_table=None,
        cu_seqlens_q=None,
        cu_seqlens_k_new=None,
        max_seqlen_q=None,
        rotary_seqlens=None,
        q_descale=None,
        k_descale=None,
        v_descale=None,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        attention_chunk=0,
        softcap=0.0,
        rotary_interleaved=True,
        scheduler_metadata=None,
        num_splits=0,
        pack_gqa=None,
        sm_margin=0,
        return_softmax_lse=False,
    ) -> torch.Tensor:
        check_cache(q, k_cache, v_cache, page_table)
        batch_size = page_table.shape[0]
        check_int32(cache_seqlens, batch_size)
        if cu_seqlens_q is None:
            assert q.shape[0] == batch_size
            rows, starts = q.flatten(0, 1), [index * q.shape[1] for index in range(batch_size + 1)]
        else:
            check_int32(cu_seqlens_q, batch_size + 1)
            rows, starts = q, cu_seqlens_q.tolist()
            assert max_seqlen_q == max(end - start for start, end in pairwise(starts))
        # Metadata that was made for other arguments cuts the work wrongly.
        assert self._planned[int(scheduler_metadata)] == {
            "batch_size": batch_size,
            "max_seqlen_q": q.shape[1] if cu_seqlens_q is None else max_seqlen_q,
            "max_seqlen_k": page_table.shape[1] * k_cache.shape[1],
            "heads": (q.shape[-2], k_cache.shape[2], q.shape[-1]),
            "dtype": q.dtype,
            "is_varlen_q": cu_seqlens_q is not None,
            "page_size": k_cache.shape[1],
            "causal": causal,
            "num_splits": num_splits,
        }
        assert causal
        self.calls.append({"rows": rows.shape[0], "max_seqlen_q": max_seqlen_q, "num_splits": num_splits})
        out = attend(rows, starts, k_cache, v_cache, cache_seqlens.tolist(), page_table, softmax_scale)
        return out.view(q.shape)


class ScriptedFlash2:
    """`flash_attn`, 2.8."""

    __version__ = "2.8.3"

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def flash_attn_varlen_func(
        self,
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=False,
        return_attn_probs=False,
        block_table=None,
    ) -> torch.Tensor:
        check_cache(q, k, v, block_table)
        assert k.shape[1] % 256 == 0
        batch_size = block_table.shape[0]
        check_int32(cu_seqlens_q, batch_size + 1)
        check_int32(cu_seqlens_k, batch_size + 1)
        starts, k_starts = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
        lens = [end - start for start, end in pairwise(k_starts)]
        assert starts[0] == k_starts[0] == 0
        assert starts[-1] == q.shape[0]
        assert max_seqlen_q == max(end - start for start, end in pairwise(starts))
        assert max(lens) <= max_seqlen_k <= block_table.shape[1] * k.shape[1]
        assert causal
        self.calls.append({"rows": q.shape[0], "max_seqlen_q": max_seqlen_q})
        return attend(q, starts, k, v, lens, block_table, softmax_scale)
