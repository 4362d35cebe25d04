"""Device memory that sampling works in, allocated once, so that a step allocates nothing and can be captured.

A row of logits is handled in chunks by programs that know nothing of each other; what they find goes here.
"""

from dataclasses import dataclass

import torch

from pagewire.wire.columns import ROW_WORDS, first_word
from pagewire.wire.sampling import PARAMETERS

CHUNK = 2048
"""Ids per program. One row of Qwen3 is 75 chunks, so that a single stream still occupies more than half of an H200's
132 multiprocessors with a program each, and a program of 4 warps reads 16 values per thread."""
NUM_BINS = 256
"""Into which the logits of a row are counted, to find the few that top-k and top-p need to look at."""
MAX_CANDIDATES = 4096
"""Ids per row that are written down for top-k and top-p, a power of two; a row with more of them is searched in
place."""
MAX_VOCAB_SIZE = 1 << 20
"""Probabilities are summed as integers below 2^42 (`pagewire.worker.kernels.reference.sampling`): so many fit 63
bits."""
MAX_TOP_LOGPROBS = 20


_TORCH_DTYPES = {"<f4": torch.float32, "<i4": torch.int32, "<u8": torch.int64}


def parameter_S(sampling_SP: torch.Tensor, name: str) -> torch.Tensor:
    """A sampling parameter of each row of `pagewire.wire.columns.ROW`, as a view; of a seed the 64 bits as int64."""
    dtype = _TORCH_DTYPES[PARAMETERS[name].dtype]
    return sampling_SP.view(dtype)[:, first_word(name) * 4 // dtype.itemsize]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingWorkspace:
    """For steps of up to max_rows rows, one step at a time. C chunks."""

    max_rows: int
    vocab_size: int
    chunk: int
    """Ids per chunk, a power of two. A row's token does not depend on it."""
    chunk_max_SC: torch.Tensor
    """float32: the largest logit of the chunk; infinity where one is NaN."""
    chunk_best_SC: torch.Tensor
    """int32: its id; the lowest of equals."""
    chunk_mass_SC: torch.Tensor
    """int64: sum of the chunk's weights."""
    bins_SN: torch.Tensor
    """int32 [S, NUM_BINS]: how many logits lie in each bin."""
    num_candidates_S: torch.Tensor
    """int32."""
    candidates_SN: torch.Tensor
    """int32 [S, max_candidates]: ids, in no order."""

    @classmethod
    def allocate(
        cls,
        max_rows: int,
        vocab_size: int,
        device: torch.device,
        *,
        chunk: int = CHUNK,
        max_candidates: int = MAX_CANDIDATES,
    ) -> "SamplingWorkspace":
        """Raises ValueError for a vocabulary that is too large."""
        if not 1 <= vocab_size <= MAX_VOCAB_SIZE:
            raise ValueError(f"vocab_size is {vocab_size}; sampling takes 1 to {MAX_VOCAB_SIZE}")
        num_chunks = -(-vocab_size // chunk)

        def empty(width: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(max_rows, width, dtype=dtype, device=device)

        return cls(
            max_rows=max_rows,
            vocab_size=vocab_size,
            chunk=chunk,
            chunk_max_SC=empty(num_chunks, torch.float32),
            chunk_best_SC=empty(num_chunks, torch.int32),
            chunk_mass_SC=empty(num_chunks, torch.int64),
            bins_SN=empty(NUM_BINS, torch.int32),
            num_candidates_S=torch.empty(max_rows, dtype=torch.int32, device=device),
            candidates_SN=empty(max_candidates, torch.int32),
        )

    def check(self, logits_SV: torch.Tensor, sampling: torch.Tensor, **columns_S: torch.Tensor) -> None:
        """Raises ValueError unless the logits are of this vocabulary, no more rows than fit, and every column has one
        entry for each: kernels read and write at addresses, and would go on past a column's end."""
        _check(self.max_rows, self.vocab_size, logits_SV, {"sampling": sampling, **columns_S})
        if sampling.shape[1:] != (ROW_WORDS,) or sampling.dtype != torch.int32 or not sampling.is_contiguous():
            raise ValueError(
                f"sampling is {sampling.dtype} {tuple(sampling.shape)}; its rows are {ROW_WORDS} int32, contiguous"
            )

    @property
    def num_bytes(self) -> int:
        """Device memory that it takes: 19 kB a row for Qwen3."""
        w = self
        return sum(
            part.nbytes
            for part in (
                w.chunk_max_SC,
                w.chunk_best_SC,
                w.chunk_mass_SC,
                w.bins_SN,
                w.num_candidates_S,
                w.candidates_SN,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobsWorkspace:
    """For log-probabilities of up to max_rows rows."""

    max_rows: int
    vocab_size: int
    chunk: int
    chunk_max_SC: torch.Tensor
    """float32, as above."""
    chunk_sum_SC: torch.Tensor
    """float32: sum over the chunk of exp(logit - chunk_max)."""
    chunk_top_SCN: torch.Tensor
    """int64, room for [S, C, MAX_TOP_LOGPROBS]: the chunk's likeliest ids, as numbers that order as (logit, -id) do."""

    @classmethod
    def allocate(
        cls, max_rows: int, vocab_size: int, device: torch.device, *, chunk: int = CHUNK
    ) -> "LogprobsWorkspace":
        num_chunks = -(-vocab_size // chunk)
        return cls(
            max_rows=max_rows,
            vocab_size=vocab_size,
            chunk=chunk,
            chunk_max_SC=torch.empty(max_rows, num_chunks, dtype=torch.float32, device=device),
            chunk_sum_SC=torch.empty(max_rows, num_chunks, dtype=torch.float32, device=device),
            chunk_top_SCN=torch.empty(max_rows, num_chunks, MAX_TOP_LOGPROBS, dtype=torch.int64, device=device),
        )

    def check(self, logits_SV: torch.Tensor, **columns_S: torch.Tensor) -> None:
        """As `SamplingWorkspace.check`."""
        _check(self.max_rows, self.vocab_size, logits_SV, columns_S)

    @property
    def num_bytes(self) -> int:
        """Device memory that it takes: 13 kB a row for Qwen3."""
        return self.chunk_max_SC.nbytes + self.chunk_sum_SC.nbytes + self.chunk_top_SCN.nbytes


def _check(max_rows: int, vocab_size: int, logits_SV: torch.Tensor, columns_S: dict[str, torch.Tensor]) -> None:
    num_rows, num_ids = logits_SV.shape
    if num_ids != vocab_size:
        raise ValueError(f"logits have {num_ids} ids, the workspace {vocab_size}")
    if num_rows > max_rows:
        raise ValueError(f"{num_rows} rows to sample; the workspace is for {max_rows}")
    for name, column in columns_S.items():
        if column.shape[0] != num_rows:
            raise ValueError(f"{name} has {column.shape[0]} entries for {num_rows} rows of logits")
