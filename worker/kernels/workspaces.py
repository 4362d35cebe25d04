"""Workspaces: device memory that kernels work in, allocated once, so that a step allocates nothing and can be captured.

A context is split by its own length alone, so that a sequence's result does not depend on its company: into splits of
SPLIT_TOKENS while there are at most MAX_SPLITS of them, and past that into so many, each a multiple of SPLIT_TOKENS. A
row of logits is handled in chunks by programs that know nothing of each other; what they find goes here.
"""

from dataclasses import dataclass

import torch

from pagewire.wire.columns import ROW_WORDS
from pagewire.worker.kernels.controls import ControlLayout

SPLIT_TOKENS = 128
"""Tokens of a split of a short context. A split costs its partial result, written and read again: 8 · (D + 1) bytes per
query head against 4 · D per token of a KV head, so splits of 128 tokens cost 3% for two query heads per KV head and 13%
for eight, though what is read again is still in the second-level cache. Fewer tokens cost more; more leave one stream
at 1k context on fewer than half of an H200's multiprocessors."""

MAX_SPLITS = 32
"""Most splits of a context; past 32 × 128 tokens they grow instead. A model of eight KV heads then gives one stream 256
programs on 132 multiprocessors, and two KV heads still 64."""

PARTITION_TOKENS = 512
"""Tokens of a partition, the unit of sums where a prompt's rows must come to a decoding row's bits: at absolute
positions, so that where a context ends says nothing of how what lies before is cut. Fewer cost prompts more merges, and
rows that decode more partial results; more leave one stream on fewer multiprocessors."""

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
MAX_CHANGED_ROWS = 32
"""Whose logits are changed at once: of Qwen3 they take 39 MB. More go in turns."""
CHANGED_FIELDS = 3
"""Of a row whose logits are changed; see `pagewire.worker.kernels.contract`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeWorkspace:
    """Memory for partial results, allocated once: a graph's addresses must not change. One step at a time may use it;
    what it holds between launches is `arrivals` = 0."""

    partial_out: torch.Tensor
    """float32 [rows, K, S, G, D]: of each split, normalized."""
    partial_lse: torch.Tensor
    """float32 [rows, K, S, G]: base-2 logarithm of each split's sum of weights."""
    arrivals: torch.Tensor
    """int32 [rows, K]: programs that are done with their splits."""
    max_context: int
    num_sms: int
    """Multiprocessors of the device: how many programs it takes to occupy it."""

    @classmethod
    def allocate(
        cls,
        *,
        max_rows: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        max_context: int,
        num_sms: int,
        device: torch.device,
        partitions: bool = False,
    ) -> "DecodeWorkspace":
        """For steps of up to max_rows decoding rows, none of a longer context than max_context; `partitions`, where
        contexts are split by PARTITION_TOKENS, however long they are."""
        # Not those of max_context itself: 4,097 tokens have 17 splits and 4,096 have 32.
        most_splits = min(MAX_SPLITS, -(-max_context // SPLIT_TOKENS))
        if partitions:
            most_splits = -(-max_context // PARTITION_TOKENS)
        shape = (max_rows, num_kv_heads, most_splits, num_heads // num_kv_heads)
        return cls(
            partial_out=torch.empty((*shape, head_dim), dtype=torch.float32, device=device),
            partial_lse=torch.empty(shape, dtype=torch.float32, device=device),
            arrivals=torch.zeros((max_rows, num_kv_heads), dtype=torch.int32, device=device),
            max_context=max_context,
            num_sms=num_sms,
        )

    @property
    def max_rows(self) -> int:
        return self.arrivals.shape[0]

    @property
    def max_splits(self) -> int:
        """The most splits that a context of up to max_context tokens has."""
        return self.partial_lse.shape[2]

    def check(self, num_rows: int) -> None:
        """Raises ValueError where a step has more rows than there is room for."""
        if num_rows > self.max_rows:
            raise ValueError(f"{num_rows} rows decode; the workspace is for at most {self.max_rows}")


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

    def check(self, logits_LV: torch.Tensor, rows_S: torch.Tensor, **columns_S: torch.Tensor) -> None:
        """As `SamplingWorkspace.check`, of rows picked from more."""
        if rows_S.shape[0] > logits_LV.shape[0]:
            raise ValueError(f"{rows_S.shape[0]} rows of {logits_LV.shape[0]} rows of logits")
        _check(self.max_rows, self.vocab_size, logits_LV[: rows_S.shape[0]], columns_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedRows:
    """For rows whose logits are changed before a token is drawn: what their slots keep, and memory for up to max_rows
    rows of one step at a time."""

    layout: ControlLayout
    control_RW: torch.Tensor
    """int32 [R, row_words]: see `pagewire.worker.kernels.controls`. An admission writes a slot's row; `finish_changed`
    adds to its ids."""
    logits_CV: torch.Tensor
    """float32: what became of the logits."""
    marks_CV: torch.Tensor
    """int32: what the sequence's ids and bad words say of each id."""
    masks_CW: torch.Tensor
    """int32 [C, mask_words]: what each row's grammar lets come next."""

    @classmethod
    def allocate(cls, max_rows: int, num_slots: int, layout: ControlLayout, device: torch.device) -> "ChangedRows":
        """Rows of slots that are all zero."""
        shape = max_rows, layout.vocab_size
        return cls(
            layout=layout,
            control_RW=torch.zeros(num_slots, layout.row_words, dtype=torch.int32, device=device),
            logits_CV=torch.empty(shape, dtype=torch.float32, device=device),
            marks_CV=torch.empty(shape, dtype=torch.int32, device=device),
            masks_CW=torch.empty(max_rows, layout.mask_words, dtype=torch.int32, device=device),
        )

    @property
    def max_rows(self) -> int:
        return self.logits_CV.shape[0]

    def check(self, logits_SV: torch.Tensor, changed_CF: torch.Tensor) -> None:
        """Raises ValueError for logits of another vocabulary, or more rows than fit."""
        if logits_SV.shape[1] != self.layout.vocab_size:
            raise ValueError(f"logits have {logits_SV.shape[1]} ids, the workspace {self.layout.vocab_size}")
        if changed_CF.shape[0] > self.max_rows:
            raise ValueError(f"{changed_CF.shape[0]} rows change; the workspace is for {self.max_rows}")
        if changed_CF.shape[1:] != (CHANGED_FIELDS,) or changed_CF.dtype != torch.int32:
            what = f"{changed_CF.dtype} {tuple(changed_CF.shape)}"
            raise ValueError(f"changed rows are {what}; they are int32 [C, {CHANGED_FIELDS}]")


def _check(max_rows: int, vocab_size: int, logits_SV: torch.Tensor, columns_S: dict[str, torch.Tensor]) -> None:
    num_rows, num_ids = logits_SV.shape
    if num_ids != vocab_size:
        raise ValueError(f"logits have {num_ids} ids, the workspace {vocab_size}")
    if num_rows > max_rows:
        raise ValueError(f"{num_rows} rows to sample; the workspace is for {max_rows}")
    for name, column in columns_S.items():
        if column.shape[0] != num_rows:
            raise ValueError(f"{name} has {column.shape[0]} entries for {num_rows} rows of logits")
