"""Tensors from the files of a GGUF model, dequantized as they are read.

Types are the gguf package's, and so is the arithmetic of dequantizing. Names are translated to Hugging Face's. Files
of the llama architecture (Llama, Mistral) hold the rows of q and k in another order, for a rotary embedding that pairs
neighbours; they are put back, because ours pairs a head's halves.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from pagewire.wire.gguf_header import GgufFormatError, GgufTensor, read_header
from pagewire.wire.model import DecoderConfig
from pagewire.worker.weights.source import ROPE_FACTORS, Part, WeightsError

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    ROPE_FACTORS: ROPE_FACTORS,
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CHUNK_VALUES = 1 << 20
"""Values dequantized at a time, which bounds the temporary fp32 copies."""


class GgufSource:
    """A `TensorSource` over one file, or the parts of a model that was split."""

    def __init__(self, files: Sequence[str], config: DecoderConfig) -> None:
        """Reads the files' directories. Raises WeightsError."""
        self._files = tuple(files)
        self._config = config
        self._tensors: dict[str, GgufTensor] = {}
        self._file_of: dict[str, str] = {}
        for file in files:
            self._read_directory(file)

    def _read_directory(self, file: str) -> None:
        try:
            tensors = read_header(file, with_values=False).tensors
            with open(file, "rb") as handle:
                size = handle.seek(0, 2)
        except (OSError, GgufFormatError) as error:
            raise WeightsError(f"cannot read {file}: {error}") from error
        for tensor in tensors:
            name = _translated(tensor.name)
            if name in self._tensors:
                raise WeightsError(f"tensor {tensor.name} in {file} is in {self._file_of[name]} too")
            self._tensors[name] = tensor
            self._file_of[name] = file
            if tensor.offset + self._row_bytes(name) * _num_rows(tensor) > size:
                raise WeightsError(f"{self.describe(name)} ends past the end of the file")

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    @property
    def description(self) -> str:
        return ", ".join(self._files)

    def describe(self, name: str) -> str:
        return f"tensor {self._tensors[name].name} in {self._file_of[name]}"

    def copy_to(self, name: str, out: torch.Tensor, part: Part | None = None) -> None:
        """A part's rows of q and k are whole heads."""
        tensor = self._tensors[name]
        first, stop, columns = 0, _num_rows(tensor), slice(0, tensor.shape[-1])
        if part is not None and part.axis == 0 and len(tensor.shape) > 1:
            first, stop = part.start, part.stop
        elif part is not None:  # a vector is one row
            columns = slice(part.start, part.stop)
        # Columns are read in the blocks that they were quantized in.
        block_values, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type_id)]
        blocks = slice(columns.start // block_values, -(-columns.stop // block_values))
        wanted = slice(columns.start - blocks.start * block_values, columns.stop - blocks.start * block_values)
        row_bytes = self._row_bytes(name)
        # A mapping of its own, which goes with its pages when this tensor is done.
        # Seen as a plain array: the memmap class makes every slice cost Python time.
        offset = tensor.offset + first * row_bytes
        data = np.memmap(self._file_of[name], np.uint8, "r", offset, (stop - first, row_bytes)).view(np.ndarray)
        data = data[:, blocks.start * block_bytes : blocks.stop * block_bytes]
        # Whole heads per chunk, so that the rows of q and k can be put in order within one.
        head_dim = self._config.head_dim
        chunk_rows = max(1, _CHUNK_VALUES // (tensor.shape[-1] * head_dim)) * head_dim
        out_rows = out.view(out.shape[0], -1)
        for row in range(0, stop - first, chunk_rows):
            chunk = np.ascontiguousarray(data[row : row + chunk_rows])
            values = torch.from_numpy(self._dequantized(name, chunk))[:, wanted]
            if len(tensor.shape) == 1:
                values = values.reshape(-1, 1)
            if self._is_interleaved(name):
                values = values.view(-1, head_dim // 2, 2, values.shape[-1]).transpose(1, 2).flatten(0, 2)
            out_rows[row : row + len(values)] = values

    def _dequantized(self, name: str, rows: np.ndarray) -> np.ndarray:
        kind = GGMLQuantizationType(self._tensors[name].type_id)
        if kind == GGMLQuantizationType.F32:
            # A copy, because torch takes no read-only arrays.
            return rows.view(np.float32).copy()
        try:
            values: np.ndarray = dequantize(rows.view(np.float16) if kind == GGMLQuantizationType.F16 else rows, kind)
        except NotImplementedError as error:
            raise WeightsError(f"{self.describe(name)} has type {kind.name}: not supported") from error
        return values

    def _is_interleaved(self, name: str) -> bool:
        is_q_or_k = ".self_attn.q_proj." in name or ".self_attn.k_proj." in name
        return is_q_or_k and self._config.architecture in ("llama", "mistral")

    def _row_bytes(self, name: str) -> int:
        tensor = self._tensors[name]
        try:
            block_values, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type_id)]
        except (ValueError, KeyError) as error:
            raise WeightsError(f"{self.describe(name)} has type number {tensor.type_id}: not supported") from error
        columns = tensor.shape[-1]
        if columns % block_values:
            raise WeightsError(f"{self.describe(name)} has rows of {columns} values, not a multiple of {block_values}")
        return int(columns // block_values * block_bytes)


def _num_rows(tensor: GgufTensor) -> int:
    rows = 1
    for size in tensor.shape[:-1]:
        rows *= size
    return rows


def _translated(name: str) -> str:
    """Hugging Face's name for a GGUF tensor, or the name itself where there is none; it is then left over, and the
    check of a model's tensors says so."""
    if name in _TOP:
        return _TOP[name]
    match name.split("."):
        case ["blk", index, part, "weight" | "bias" as kind] if part in _IN_LAYER:
            return f"model.layers.{index}.{_IN_LAYER[part]}.{kind}"
    return name
