"""Tensors from the files of a GGUF model, dequantized as they are read.

Which there are is read by `pagewire.wire.gguf_tensors`; the arithmetic of dequantizing is the gguf package's. Files of
the llama architecture (Llama, Mistral) hold the rows of q and k in another order, for a rotary embedding that pairs
neighbours; they are put back, because ours pairs a head's halves.
"""

from collections.abc import Sequence

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from pagewire.wire.gguf_tensors import GgufDirectory
from pagewire.wire.model import DecoderConfig
from pagewire.wire.tensors import WeightsError
from pagewire.worker.weights.source import Part

_CHUNK_VALUES = 1 << 20
"""Values dequantized at a time, which bounds the temporary fp32 copies."""


class GgufSource(GgufDirectory):
    """A `TensorSource` over one file, or the parts of a model that was split."""

    def __init__(self, files: Sequence[str], config: DecoderConfig) -> None:
        """Reads the files' directories. Raises WeightsError."""
        super().__init__(files)
        self._config = config

    def copy_to(self, name: str, out: torch.Tensor, part: Part | None = None) -> None:
        """A part's rows of q and k are whole heads."""
        tensor = self._tensors[name]
        first, stop, columns = 0, self.num_rows(name), slice(0, tensor.shape[-1])
        if part is not None and part.axis == 0 and len(tensor.shape) > 1:
            first, stop = part.start, part.stop
        elif part is not None:  # a vector is one row
            columns = slice(part.start, part.stop)
        # Columns are read in the blocks that they were quantized in.
        block_values, block_bytes = self.block_size(name)
        blocks = slice(columns.start // block_values, -(-columns.stop // block_values))
        wanted = slice(columns.start - blocks.start * block_values, columns.stop - blocks.start * block_values)
        row_bytes = self.row_bytes(name)
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
