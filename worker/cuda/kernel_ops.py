"""Operations between a decoder's linears, by kernels over preallocated buffers: a
`pagewire.worker.model.ops.DecoderOps`.

Everything is computed in fp32 and rounded once, where it is stored. A step whose rows all sample allocates nothing and
reads nothing back, so it can be captured in a CUDA graph: graphs of all batch sizes share the buffers, whose first rows
they use. With the reference kernels in place of Triton's the same class runs on a CPU.

Before a `SkinnyLinear`, add and norm of a few rows are the linear's own: each of its programs reads all of x, so the
new x goes to a second buffer, and the two change places.
"""

from dataclasses import dataclass

import torch

from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.kernels.contract import MAX_SKINNY_ROWS, Kernels
from pagewire.worker.linears.skinny import SkinnyLinear
from pagewire.worker.model.layers import Linear, RmsNorm
from pagewire.worker.model.ops import StepOps
from pagewire.worker.model.rope import RotaryEmbedding


class KernelOps:
    """For one decoder; it runs one step at a time."""

    def __init__(
        self,
        config: DecoderConfig,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels,
        *,
        max_rows: int,
        max_positions: int,
    ) -> None:
        """config has this rank's numbers of heads and its part of intermediate_size. No step has more than max_rows
        rows, and no position reaches max_positions."""
        self.name = kernels.name
        self._config = config
        self._kernels = kernels
        self._max_rows = max_rows
        self._max_positions = max_positions
        self._rope: RotaryEmbedding | None = None
        self._cos_sin_PD = torch.empty(0)
        self._x_TE = torch.empty(max_rows, config.hidden_size, dtype=torch.float32, device=device)
        self._next_x_TE = torch.empty(MAX_SKINNY_ROWS, config.hidden_size, dtype=torch.float32, device=device)
        self._h_TE = torch.empty(max_rows, config.hidden_size, dtype=dtype, device=device)
        self._activation_TF = torch.empty(max_rows, config.intermediate_size, dtype=dtype, device=device)
        self._kv_positions_T = torch.empty(max_rows, dtype=torch.int64, device=device)

    def begin(self, batch: Batch, kv: KVCache, rope: RotaryEmbedding) -> "KernelStepOps":
        """Raises ValueError for a batch of more than max_rows rows. The first step with a rope makes its table, so
        that step cannot be captured; a capture is always preceded by a step that warms up."""
        num_rows = batch.input_ids_T.shape[0]
        if num_rows > self._max_rows:
            raise ValueError(f"a step of {num_rows} rows, where buffers hold {self._max_rows}")
        if self._rope is not rope:
            self._cos_sin_PD = rope.table(self._max_positions).to(self._x_TE.device)
            self._rope = rope
        return KernelStepOps(
            self._kernels,
            batch,
            kv,
            self._cos_sin_PD,
            self._kv_positions_of_rows(batch),
            OpsBuffers(
                x_TE=self._x_TE[:num_rows],
                next_x_TE=self._next_x_TE[:num_rows],
                h_TE=self._h_TE[:num_rows],
                activation_TF=self._activation_TF[:num_rows],
            ),
        )

    def _kv_positions_of_rows(self, batch: Batch) -> torch.Tensor:
        """int64 [T]: where each row's keys and values go; -1 for rows that are not written."""
        num_rows = batch.input_ids_T.shape[0]
        if batch.write_rows_W.shape[0] == num_rows:
            return batch.kv_positions_W  # rows are written in their order
        return self._kv_positions_T[:num_rows].fill_(-1).index_copy_(0, batch.write_rows_W, batch.kv_positions_W)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpsBuffers:
    """Where one step's results go."""

    x_TE: torch.Tensor
    """fp32: the sum of the layers so far."""
    next_x_TE: torch.Tensor
    """Of the same shape where rows are few; unused where they are many."""
    h_TE: torch.Tensor
    activation_TF: torch.Tensor


class KernelStepOps(StepOps):
    """One step's `StepOps`, over buffers that no other step uses meanwhile."""

    def __init__(
        self,
        kernels: Kernels,
        batch: Batch,
        kv: KVCache,
        cos_sin_PD: torch.Tensor,
        kv_positions_T: torch.Tensor,
        buffers: OpsBuffers,
    ) -> None:
        self._kernels = kernels
        self._batch = batch
        self._kv = kv
        self._cos_sin_PD = cos_sin_PD
        self._kv_positions_T = kv_positions_T
        self._x_TE, self._next_x_TE = buffers.x_TE, buffers.next_x_TE
        self._h_TE, self._activation_TF = buffers.h_TE, buffers.activation_TF

    def embed(self, rows_TE: torch.Tensor, norm: RmsNorm) -> torch.Tensor:
        self._kernels.start_rms_norm(rows_TE, self._x_TE, norm.scaled_weight, norm.squared_floor, self._h_TE)
        return self._h_TE

    def rotate_and_store(self, layer: int, qkv: torch.Tensor, qk_norm: RmsNorm | None) -> torch.Tensor:
        kv_layer = self._kv.layers[layer]
        self._kernels.rotate_and_store(
            qkv,
            None if qk_norm is None else qk_norm.scaled_weight,
            0.0 if qk_norm is None else qk_norm.squared_floor,
            self._cos_sin_PD,
            self._batch.positions_T,
            self._kv_positions_T,
            kv_layer,
        )
        _, _, num_kv_heads, _, head_dim = kv_layer.shape
        # A view that skips the keys and values of every row.
        return qkv.view(qkv.shape[0], qkv.shape[1] // head_dim, head_dim)[:, : -2 * num_kv_heads]

    def add_norm(self, delta_TE: torch.Tensor, norm: RmsNorm) -> torch.Tensor:
        self._kernels.add_rms_norm(self._x_TE, delta_TE, norm.scaled_weight, norm.squared_floor, self._h_TE)
        return self._h_TE

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        self._kernels.silu_mul(gate_up, self._activation_TF)
        return self._activation_TF

    def keep_sampled(self, rows_TA: torch.Tensor) -> torch.Tensor:
        if self._batch.all_rows_sample:
            return rows_TA
        rows_S = self._batch.sample_rows_S
        num_samples = rows_S.shape[0]
        self._x_TE = self._x_TE.index_select(0, rows_S)
        self._next_x_TE, self._h_TE = self._next_x_TE[:num_samples], self._h_TE[:num_samples]
        self._activation_TF = self._activation_TF[:num_samples]
        return rows_TA.index_select(0, rows_S)

    def add_norm_linear(self, delta_TE: torch.Tensor, norm: RmsNorm, linear: Linear) -> torch.Tensor:
        if not isinstance(linear, SkinnyLinear) or self._x_TE.shape[0] > linear.max_rows:
            return super().add_norm_linear(delta_TE, norm, linear)
        y = linear.of_sum(self._x_TE, delta_TE, norm, self._next_x_TE)
        self._x_TE, self._next_x_TE = self._next_x_TE, self._x_TE
        return y

    def add_norm_gate_up(self, delta_TE: torch.Tensor, norm: RmsNorm, gate_up: Linear) -> torch.Tensor:
        if not isinstance(gate_up, SkinnyLinear) or self._x_TE.shape[0] > gate_up.max_rows:
            return super().add_norm_gate_up(delta_TE, norm, gate_up)
        out_TF = self._activation_TF
        gate_up.gated_of_sum(self._x_TE, delta_TE, norm, self._next_x_TE, out_TF)
        self._x_TE, self._next_x_TE = self._next_x_TE, self._x_TE
        return out_TF
