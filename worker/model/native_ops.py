"""What runs between a decoder's linears, by the native library: `pagewire.worker.model.ops.DecoderOps`.

Everything is computed in fp32 and rounded once, where it is stored; torch's operators round bf16 after every one of
theirs. Results go to buffers that the next call of the same method overwrites: large temporaries would fault pages in
every layer of every step.
"""

import ctypes

import torch

from pagewire.wire.model import DecoderConfig
from pagewire.worker.batch import Batch
from pagewire.worker.kv_cache import KVCache
from pagewire.worker.model.norm import RmsNorm
from pagewire.worker.model.ops import StepOps
from pagewire.worker.model.rope import RotaryEmbedding
from pagewire.worker.native.library import HEAD_DIM_MULTIPLE, MAX_HEAD_DIM, NativeLibrary, NormArgs, RotateArgs
from pagewire.worker.native.memory import Buffer, dtype_code


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

    def begin(self, batch: Batch, kv: KVCache, rope: RotaryEmbedding) -> "NativeStepOps":
        num_rows = batch.input_ids_T.shape[0]
        c = self._config
        return NativeStepOps(
            self._library,
            c,
            self._dtype,
            batch,
            kv,
            rope,
            self._x.take(num_rows, c.hidden_size),
            self._h.take(num_rows, c.hidden_size),
            self._activation.take(num_rows, c.intermediate_size),
        )


class NativeStepOps(StepOps):
    """For one step."""

    def __init__(
        self,
        library: NativeLibrary,
        config: DecoderConfig,
        dtype: int,
        batch: Batch,
        kv: KVCache,
        rope: RotaryEmbedding,
        x_TE: torch.Tensor,
        h_TE: torch.Tensor,
        activation_TF: torch.Tensor,
    ) -> None:
        self._library = library
        self._dtype = dtype
        self._batch = batch
        self._kv = kv
        self._x_TE = x_TE
        self._h_TE = h_TE
        self._activation_TF = activation_TF
        self._num_heads, self._head_dim = config.num_heads, config.head_dim
        num_rows = x_TE.shape[0]
        # The structures hold addresses alone: what they point to is kept here, for as long as the step lasts.
        self._rotation = rope.at(batch.positions_T, torch.float32)
        self._slots_T = _slots_of_rows(batch)
        head_bytes = torch.float32.itemsize * config.head_dim
        self._rotate = RotateArgs(
            cos=self._rotation.cos.data_ptr(),
            sin=self._rotation.sin.data_ptr() + head_bytes // 2,  # past the half that has -sin
            slots=self._slots_T.data_ptr(),
            sin_stride=config.head_dim,
            num_rows=num_rows,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            block_size=kv.block_size,
            dtype=dtype,
        )
        self._norm = NormArgs(
            x=x_TE.data_ptr(), out=h_TE.data_ptr(), num_rows=num_rows, width=config.hidden_size, dtype=dtype
        )
        self._rotate_ref, self._norm_ref = ctypes.byref(self._rotate), ctypes.byref(self._norm)

    def embed(self, rows_TE: torch.Tensor, norm: RmsNorm) -> torch.Tensor:
        self._x_TE.copy_(rows_TE)
        return self._normalize(None, norm)

    def add_norm(self, delta_TE: torch.Tensor, norm: RmsNorm) -> torch.Tensor:
        return self._normalize(delta_TE, norm)

    def add_norm_sampled(self, delta_TE: torch.Tensor, norm: RmsNorm) -> torch.Tensor:
        rows_S = self._batch.sample_rows_S
        self._norm.rows = rows_S.data_ptr()
        self._norm.num_rows = rows_S.shape[0]
        return self._normalize(delta_TE, norm)[: rows_S.shape[0]]

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
        num_rows, width = self._activation_TF.shape
        self._library.silu_mul(gate_up.data_ptr(), self._activation_TF.data_ptr(), num_rows, width, self._dtype)
        return self._activation_TF

    def _normalize(self, delta_TE: torch.Tensor | None, norm: RmsNorm) -> torch.Tensor:
        args = self._norm
        args.delta = None if delta_TE is None else delta_TE.data_ptr()
        args.weight = norm.scaled_weight.data_ptr()
        args.norm_floor = norm.squared_floor
        self._library.norm(self._norm_ref)
        return self._h_TE


def _slots_of_rows(batch: Batch) -> torch.Tensor:
    """int64 [T]: where each row's keys and values go; -1 for rows that are not written."""
    num_rows = batch.input_ids_T.shape[0]
    if batch.write_rows_W.shape[0] == num_rows:
        return batch.write_slots_W  # rows are written in their order
    slots = torch.full((num_rows,), -1, dtype=torch.int64)
    slots[batch.write_rows_W] = batch.write_slots_W
    return slots
