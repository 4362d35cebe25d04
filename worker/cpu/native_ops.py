"""Operations between a decoder's linears, by the native library: a `pagewire.worker.model.ops.DecoderOps`.

Everything is computed in fp32 and rounded once, where it is stored; torch's operators round bf16 after every one of
theirs. Results go to buffers that the next call of the same method overwrites: large temporaries would fault pages in
every layer of every step.
"""

import ctypes
from dataclasses import dataclass

import torch

from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.model.layers import RmsNorm
from pagewire.worker.model.ops import StepOps
from pagewire.worker.model.rope import RotaryEmbedding
from pagewire.worker.native.library import (
    HEAD_DIM_MULTIPLE,
    MAX_HEAD_DIM,
    NativeLibrary,
    NormArgs,
    RotateArgs,
    SiluMulArgs,
)
from pagewire.worker.native.memory import Buffer, dtype_code

_LEAST_POSITIONS = 1024
"""Of the table of rotations."""


def unsupported_shape(config: DecoderConfig) -> str | None:
    """Why the library cannot run a model of this shape; none where it can."""
    if config.head_dim % HEAD_DIM_MULTIPLE or config.head_dim > MAX_HEAD_DIM:
        return (
            f"head_dim is {config.head_dim}; the native kernels take multiples of {HEAD_DIM_MULTIPLE} up to "
            f"{MAX_HEAD_DIM}"
        )
    return None


class NativeOps:
    """For one decoder; it runs one step at a time."""

    name = "native"

    def __init__(self, library: NativeLibrary, config: DecoderConfig, dtype: torch.dtype) -> None:
        """Raises ValueError for a dtype that is neither float32 nor bfloat16."""
        self._library = library
        self._config = config
        self._dtype = dtype_code(dtype)
        self._x = Buffer(torch.float32)
        self._h = Buffer(dtype)
        self._activation = Buffer(dtype)
        self._rope: RotaryEmbedding | None = None
        self._cos_sin_PD = torch.empty(0, config.head_dim)

    def begin(self, batch: Batch, kv: KVCache, rope: RotaryEmbedding) -> "NativeStepOps":
        num_rows = batch.input_ids_T.shape[0]
        c = self._config
        longest = max(context_len for _, _, context_len in batch.seq_rows)
        if rope is not self._rope or longest > len(self._cos_sin_PD):
            # Seldom longer, so that its address seldom changes: 4 MB hold 8,192 positions of 128 values.
            num_positions = max(_LEAST_POSITIONS, 1 << (longest - 1).bit_length())
            self._rope, self._cos_sin_PD = rope, rope.table(num_positions)
        buffers = OpsBuffers(
            x_TE=self._x.take(num_rows, c.hidden_size),
            h_TE=self._h.take(num_rows, c.hidden_size),
            activation_TF=self._activation.take(num_rows, c.intermediate_size),
            cos_sin_PD=self._cos_sin_PD,
            kv_positions_T=_kv_positions_of_rows(batch),
        )
        return NativeStepOps(self._library, c, self._dtype, batch, kv, buffers)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpsBuffers:
    """What one step's calls point to; they hold addresses alone."""

    x_TE: torch.Tensor
    """fp32: the sum of the layers so far."""
    h_TE: torch.Tensor
    activation_TF: torch.Tensor
    cos_sin_PD: torch.Tensor
    """fp32: `RotaryEmbedding.table`."""
    kv_positions_T: torch.Tensor
    """int64: where each row's keys and values go; -1 for rows that are not written."""


class NativeStepOps(StepOps):
    """One step's `StepOps`: arguments of the library's functions, and the buffers that they point to."""

    def __init__(
        self,
        library: NativeLibrary,
        config: DecoderConfig,
        dtype: int,
        batch: Batch,
        kv: KVCache,
        buffers: OpsBuffers,
    ) -> None:
        self._library = library
        self._batch = batch
        self._kv = kv
        self._buffers = buffers
        self._x_TE, self._h_TE, self._activation_TF = buffers.x_TE, buffers.h_TE, buffers.activation_TF
        self._num_heads, self._head_dim = config.num_heads, config.head_dim
        num_rows = buffers.x_TE.shape[0]
        self._rotate = RotateArgs(
            cos_sin=buffers.cos_sin_PD.data_ptr(),
            positions=batch.positions_T.data_ptr(),
            kv_positions=buffers.kv_positions_T.data_ptr(),
            num_rows=num_rows,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            block_size=kv.block_size,
            dtype=dtype,
        )
        self._norm = NormArgs(
            x=buffers.x_TE.data_ptr(),
            out=buffers.h_TE.data_ptr(),
            num_rows=num_rows,
            width=config.hidden_size,
            dtype=dtype,
        )
        self._silu_mul = SiluMulArgs(
            out=buffers.activation_TF.data_ptr(), num_rows=num_rows, width=config.intermediate_size, dtype=dtype
        )
        self._rotate_ref, self._norm_ref = ctypes.byref(self._rotate), ctypes.byref(self._norm)
        self._silu_mul_ref = ctypes.byref(self._silu_mul)
        self.arguments = b"".join(map(bytes, (self._rotate, self._norm, self._silu_mul)))
        """Steps that have these in common, and the cache, make the same calls for the same weights."""

    def embed(self, rows_TE: torch.Tensor, norm: RmsNorm) -> torch.Tensor:
        self._x_TE.copy_(rows_TE)
        return self._normalize(None, norm)

    def add_norm(self, delta_TE: torch.Tensor, norm: RmsNorm) -> torch.Tensor:
        return self._normalize(delta_TE, norm)

    def keep_sampled(self, rows_TA: torch.Tensor) -> torch.Tensor:
        if self._batch.all_rows_sample:
            return rows_TA
        rows_S = self._batch.sample_rows_S
        num_samples = rows_S.shape[0]
        self._x_TE[:num_samples] = self._x_TE.index_select(0, rows_S)
        self._h_TE, self._activation_TF = self._h_TE[:num_samples], self._activation_TF[:num_samples]
        self._norm.num_rows = self._silu_mul.num_rows = num_samples
        return rows_TA.index_select(0, rows_S)

    def rotate_and_store(self, layer: int, qkv: torch.Tensor, qk_norm: RmsNorm | None) -> torch.Tensor:
        args, kv_layer = self._rotate, self._kv.layers[layer]
        args.qkv = qkv.data_ptr()
        args.qkv_stride = qkv.stride(0)
        args.k = kv_layer.data_ptr()
        args.v = args.k + kv_layer.nbytes // 2
        if qk_norm is not None:
            args.qk_norm = qk_norm.scaled_weight.data_ptr()
            args.norm_floor = qk_norm.squared_floor
        self._library.rotate_and_store(self._rotate_ref)
        # A view that skips the keys and values of every row.
        return qkv.as_strided((qkv.shape[0], self._num_heads, self._head_dim), (qkv.stride(0), self._head_dim, 1))

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        self._silu_mul.gate_up = gate_up.data_ptr()
        self._library.silu_mul(self._silu_mul_ref)
        return self._activation_TF

    def _normalize(self, delta_TE: torch.Tensor | None, norm: RmsNorm) -> torch.Tensor:
        args = self._norm
        args.delta = None if delta_TE is None else delta_TE.data_ptr()
        args.weight = norm.scaled_weight.data_ptr()
        args.norm_floor = norm.squared_floor
        self._library.norm(self._norm_ref)
        return self._h_TE


def _kv_positions_of_rows(batch: Batch) -> torch.Tensor:
    """int64 [T]: where each row's keys and values go; -1 for rows that are not written."""
    num_rows = batch.input_ids_T.shape[0]
    if batch.write_rows_W.shape[0] == num_rows:
        return batch.kv_positions_W  # rows are written in their order
    kv_positions_T = torch.full((num_rows,), -1, dtype=torch.int64)
    kv_positions_T[batch.write_rows_W] = batch.kv_positions_W
    return kv_positions_T
