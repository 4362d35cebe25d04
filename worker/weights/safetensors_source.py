"""Tensors from safetensors files, one or sharded.

The files are memory-mapped by the safetensors library. A mapping's pages count as the process's memory once they are
read, so a file is opened anew for every tensor and its pages go when the tensor is copied: 0.4 ms each, against the
whole model's size in peak memory.
"""

from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError, safe_open

from pagewire.worker.weights.source import Part, WeightsError

MAX_HEADER_BYTES = 1 << 24
"""Of the JSON that a file begins with: 90,000 tensors take 9 MB. The library reads up to 100 MB, and makes some times
as much of it."""

READABLE = ("BF16", "F16", "F32", "F64")


class SafetensorsSource:
    """A `TensorSource` over all shards of a checkpoint."""

    def __init__(self, files: Sequence[str]) -> None:
        """Reads the headers of all files. Raises WeightsError."""
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, str] = {}
        self._files = tuple(files)
        for file in files:
            self._read_header(file)

    def _read_header(self, file: str) -> None:
        try:
            with open(file, "rb") as stream:
                header_bytes = int.from_bytes(stream.read(8), "little")
            if header_bytes > MAX_HEADER_BYTES:
                raise WeightsError(
                    f"cannot read {file}: its header has {header_bytes} bytes; at most {MAX_HEADER_BYTES} are read"
                )
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 - not a dict
                    if name in self._file_of:
                        raise WeightsError(f"tensor {name} is in both {self._file_of[name]} and {file}")
                    entry = handle.get_slice(name)
                    if entry.get_dtype() not in READABLE:
                        raise WeightsError(
                            f"tensor {name} in {file} has type {entry.get_dtype()}; supported are {', '.join(READABLE)}"
                        )
                    self._shapes[name] = tuple(entry.get_shape())
                    self._file_of[name] = file
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"cannot read {file}: {error}") from error

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    @property
    def description(self) -> str:
        return ", ".join(self._files)

    def describe(self, name: str) -> str:
        return f"tensor {name} in {self._file_of[name]}"

    def copy_to(self, name: str, out: torch.Tensor, part: Part | None = None) -> None:
        file = self._file_of[name]
        try:
            with safe_open(file, framework="pt") as handle:
                out.copy_(handle.get_tensor(name) if part is None else handle.get_slice(name)[part.index])
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"cannot read {self.describe(name)}: {error}") from error
