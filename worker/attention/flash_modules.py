"""What is used of the FlashAttention packages: their functions' arguments as documented, by name.

Sources: hopper/flash_attn_interface.py, flash_attn/flash_attn_interface.py and the files flash_api.cpp of each in
Dao-AILab/flash-attention.
"""

from typing import Protocol

import torch


class FlashAttention3Module(Protocol):
    """What is used of `flash_attn_interface`."""

    def flash_attn_with_kvcache(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        *,
        cache_seqlens: torch.Tensor,
        page_table: torch.Tensor,
        cu_seqlens_q: torch.Tensor | None,
        max_seqlen_q: int,
        softmax_scale: float,
        causal: bool,
        scheduler_metadata: torch.Tensor,
        num_splits: int,
    ) -> torch.Tensor:
        """q [B, 1, H, D] or, with cu_seqlens_q, [T, H, D]; returns the like."""

    def get_scheduler_metadata(
        self,
        *,
        batch_size: int,
        max_seqlen_q: int,
        max_seqlen_k: int,
        num_heads_q: int,
        num_heads_kv: int,
        headdim: int,
        cache_seqlens: torch.Tensor,
        qkv_dtype: torch.dtype,
        cu_seqlens_q: torch.Tensor | None,
        page_size: int,
        causal: bool,
        num_splits: int,
    ) -> torch.Tensor:
        """How a call with the same arguments is cut into tiles, worked out by the device: int32."""


class FlashAttention2Module(Protocol):
    """What is used of `flash_attn`."""

    def flash_attn_varlen_func(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float,
        causal: bool,
        block_table: torch.Tensor,
    ) -> torch.Tensor:
        """q [T, H, D]; returns the like."""
