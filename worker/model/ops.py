"""Operations between a decoder's linears, as a seam: norms, rotation with the KV write, the gated activation.

`TorchOps` is the definition: torch's operators on any device. Other kinds compute the same with other roundings.

The sum of the layers, x, belongs to the step's ops and stays in fp32: the norms need it so, and bf16 would round it
twice per layer. What goes into a linear is in the model's dtype.
"""

from typing import Protocol

import torch
import torch.nn.functional as F

from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.model.layers import Linear, RmsNorm
from pagewire.worker.model.rope import RotaryEmbedding


class StepOps(Protocol):
    """One step's operations, for all of its rows. A result is valid until the next call of any method.

    Kinds are derived from it: what runs before a linear, together with the linear, is defined here by the other methods
    and left so by all that have nothing faster."""

    def embed(self, rows_TE: torch.Tensor, norm: RmsNorm) -> torch.Tensor:
        """Starts x with every token's row of the embedding; returns x normalized, [T, E]."""

    def rotate_and_store(self, layer: int, qkv: torch.Tensor, qk_norm: RmsNorm | None) -> torch.Tensor:
        """Takes over qkv [T, (H + K + K) · D]: norm (where there is one) and rotation of q and k, keys and values to
        the cache at the batch's KV positions. Returns q [T, H, D], possibly a view of qkv."""

    def add_norm(self, delta_TE: torch.Tensor, norm: RmsNorm) -> torch.Tensor:
        """Adds a part to x; returns x normalized, [T, E]."""

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) · up of [T, 2F]: [T, F]."""

    def keep_sampled(self, rows_TA: torch.Tensor) -> torch.Tensor:
        """Leaves the rows that sample, of which there is at least one: x is theirs alone from here on, so T is S.
        Returns them of `rows_TA`, [S, A]."""

    def add_norm_linear(self, delta_TE: torch.Tensor, norm: RmsNorm, linear: Linear) -> torch.Tensor:
        """Adds a part to x; returns what the linear makes of x normalized."""
        return linear(self.add_norm(delta_TE, norm))

    def add_norm_gate_up(self, delta_TE: torch.Tensor, norm: RmsNorm, gate_up: Linear) -> torch.Tensor:
        """Adds a part to x; returns the gated activation of what [E] → [2F] makes of x normalized, [T, F]."""
        return self.silu_mul(gate_up(self.add_norm(delta_TE, norm)))


class DecoderOps(Protocol):
    """A kind of operations, chosen once at start."""

    @property
    def name(self) -> str:
        """The kind, for reports."""

    def begin(self, batch: Batch, kv: KVCache, rope: RotaryEmbedding) -> StepOps:
        """Prepares one step; it ends when the next begins."""


class TorchOps:
    """Torch's operators; holds no state."""

    name = "torch"

    def __init__(self, config: DecoderConfig) -> None:
        self._config = config

    def begin(self, batch: Batch, kv: KVCache, rope: RotaryEmbedding) -> "TorchStepOps":
        return TorchStepOps(self._config, batch, kv, rope)


class TorchStepOps(StepOps):
    """One step's `StepOps` by torch's operators."""

    def __init__(self, config: DecoderConfig, batch: Batch, kv: KVCache, rope: RotaryEmbedding) -> None:
        self._config = config
        self._batch = batch
        self._kv = kv
        # Heads that are normalized are fp32 at that point; others are turned in place in the model's dtype.
        self._rotation = rope.at(batch.positions_T, torch.float32 if config.qk_norm else kv.dtype)
        self._kv_rows = kv.row_index(batch.kv_positions_W)
        all_written = batch.write_rows_W.shape[0] == batch.input_ids_T.shape[0]
        self._write_rows_W = None if all_written else batch.write_rows_W
        self._x_TE = torch.empty(0)

    def embed(self, rows_TE: torch.Tensor, norm: RmsNorm) -> torch.Tensor:
        self._x_TE = rows_TE.to(torch.float32, copy=True)
        return norm(self._x_TE).to(self._kv.dtype)

    def rotate_and_store(self, layer: int, qkv: torch.Tensor, qk_norm: RmsNorm | None) -> torch.Tensor:
        c = self._config
        qkv = qkv.view(qkv.shape[0], c.num_heads + 2 * c.num_kv_heads, c.head_dim)
        # q and k are neighbours and get norm and rotation together; then k and v are, and are stored together.
        qk = qkv.narrow(1, 0, c.num_heads + c.num_kv_heads)
        if qk_norm is None:
            self._rotation.apply_(qk)
        else:
            normed = qk_norm(qk)
            self._rotation.apply_(normed)
            qk.copy_(normed)
        q_THD, kv_TJD = qkv.split_with_sizes((c.num_heads, 2 * c.num_kv_heads), dim=1)
        if self._write_rows_W is not None:
            kv_TJD = kv_TJD.index_select(0, self._write_rows_W)
        self._kv.write(layer, self._kv_rows, kv_TJD)
        return q_THD

    def add_norm(self, delta_TE: torch.Tensor, norm: RmsNorm) -> torch.Tensor:
        return norm(self._x_TE.add_(delta_TE)).to(self._kv.dtype)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate_TF, up_TF = gate_up.chunk(2, dim=-1)
        return F.silu(gate_TF).mul_(up_TF)

    def keep_sampled(self, rows_TA: torch.Tensor) -> torch.Tensor:
        if self._batch.all_rows_sample:
            return rows_TA
        self._x_TE = self._x_TE.index_select(0, self._batch.sample_rows_S)
        return rows_TA.index_select(0, self._batch.sample_rows_S)
