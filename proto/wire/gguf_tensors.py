"""The tensors of a GGUF model's files under Hugging Face's names, with the bytes that each takes.

The supervisor reads them before it starts a process, a worker when it dequantizes. Block sizes are ggml's, as the gguf
package has them (a test compares the two); they stand here because importing that package takes 0.2 s and numpy.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pagewire.wire.gguf_header import GgufFormatError, GgufTensor, read_header
from pagewire.wire.tensors import ROPE_FACTORS, WeightsError

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


class BlockSize(NamedTuple):
    """Of a type: values are quantized together in blocks along a row."""

    values: int
    bytes: int


BLOCK_SIZES = {
    number: BlockSize(values, num_bytes)
    for number, values, num_bytes in (
        *((0, 1, 4), (1, 1, 2), (30, 1, 2), (28, 1, 8)),  # F32, F16, BF16, F64
        *((24, 1, 1), (25, 1, 2), (26, 1, 4), (27, 1, 8)),  # I8, I16, I32, I64
        *((2, 32, 18), (3, 32, 20), (6, 32, 22), (7, 32, 24), (8, 32, 34), (9, 32, 40)),  # Q4_0 … Q8_1
        *((10, 256, 84), (11, 256, 110), (12, 256, 144), (13, 256, 176), (14, 256, 210), (15, 256, 292)),  # Q2_K … Q8_K
        *((16, 256, 66), (17, 256, 74), (18, 256, 98), (19, 256, 50), (20, 32, 18), (21, 256, 110)),  # IQ2_XXS … IQ3_S
        *((22, 256, 82), (23, 256, 136), (29, 256, 56)),  # IQ2_S, IQ4_XS, IQ1_M
        *((34, 256, 54), (35, 256, 66), (39, 32, 17), (40, 64, 36), (41, 128, 18)),  # TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0
    )
}
"""By ggml's number of the type."""


class GgufDirectory:
    """Every tensor of one file, or of the parts of a model: a `pagewire.wire.tensors.TensorDirectory`."""

    def __init__(self, files: Sequence[str]) -> None:
        """Reads the files' directories. Raises WeightsError, which names file and tensor."""
        self._files = tuple(files)
        self._tensors: dict[str, GgufTensor] = {}
        self._file_of: dict[str, str] = {}
        for file in files:
            self._add(file)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    @property
    def description(self) -> str:
        """The files."""
        return ", ".join(self._files)

    def describe(self, name: str) -> str:
        """The tensor as its file calls it, and the file."""
        return f"tensor {self._tensors[name].name} in {self._file_of[name]}"

    def block_size(self, name: str) -> BlockSize:
        """Of the tensor's type."""
        return BLOCK_SIZES[self._tensors[name].type_id]

    def row_bytes(self, name: str) -> int:
        """Bytes of one row of the tensor, of which a vector is one."""
        block = self.block_size(name)
        return self._tensors[name].shape[-1] // block.values * block.bytes

    def num_rows(self, name: str) -> int:
        """Rows of the tensor, all dimensions but the last together."""
        rows = 1
        for size in self._tensors[name].shape[:-1]:
            rows *= size
        return rows

    def _add(self, file: str) -> None:
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
            self._check_size(name, size)

    def _check_size(self, name: str, file_bytes: int) -> None:
        tensor = self._tensors[name]
        if tensor.type_id not in BLOCK_SIZES:
            raise WeightsError(f"{self.describe(name)} has type number {tensor.type_id}: not supported")
        columns, block_values = tensor.shape[-1], self.block_size(name).values
        if columns % block_values:
            raise WeightsError(f"{self.describe(name)} has rows of {columns} values, not a multiple of {block_values}")
        if tensor.offset + self.row_bytes(name) * self.num_rows(name) > file_bytes:
            raise WeightsError(f"{self.describe(name)} ends past the end of the file")


def _translated(name: str) -> str:
    """Hugging Face's name for a GGUF tensor, or the name itself where there is none; it is then left over, and the
    check of a model's tensors says so."""
    if name in _TOP:
        return _TOP[name]
    match name.split("."):
        case ["blk", index, part, "weight" | "bias" as kind] if part in _IN_LAYER:
            return f"model.layers.{index}.{_IN_LAYER[part]}.{kind}"
    return name
