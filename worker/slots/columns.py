"""Resident per-slot state as columns: numpy arrays with one row per slot.

Holds data and nothing else: `pagewire.worker.slots.state` is the only writer, and hands everyone else the read-only
view. No tensors, so that the `sim` device and the shadow worker of property tests need no torch.

A row of an empty slot is all zero. `block_tables[slot, num_blocks[slot]:]` is zero in every row.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from pagewire.wire.columns import ROW, Int32Array, SamplingRows

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotLimits:
    """What a plan must stay within. Raises ValueError for limits that no plan could meet."""

    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    vocab_size: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ValueError(f"{field.name} is {value}; it must be at least 1")

    @property
    def max_blocks_per_seq(self) -> int:
        """Length of a block table's row."""
        return -(-self.max_model_len // self.block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotColumns:
    """One array per property of a slot, plus one count per block."""

    occupied: BoolArray
    num_tokens: Int32Array
    """T: tokens known at admission. A slot with num_computed ≥ num_tokens decodes."""
    prompt_len: Int32Array
    """How many of them are the prompt."""
    token_ids: Int32Array
    """[max_num_seqs, max_model_len + 1]: the known ids and those sampled since; zero past them. A result may come in
    later than plans that build on it (`Slots.record`)."""
    scores_prompt: BoolArray
    """Whether its prompt's log-probabilities are asked for."""
    num_computed: Int32Array
    """The next position to compute: those below are computed by plans already applied."""
    cached_len: Int32Array
    """C: KV is written at this position and after, never below."""
    num_blocks: Int32Array
    block_tables: Int32Array
    """[max_num_seqs, max_blocks_per_seq]."""
    sampling: SamplingRows
    """How each slot's tokens are drawn."""
    references: Int32Array
    """[number of blocks]: in how many slots' tables a block stands."""

    @classmethod
    def empty(cls, limits: SlotLimits) -> "SlotColumns":
        """Columns with every slot empty."""
        rows = limits.max_num_seqs
        return cls(
            occupied=np.zeros(rows, np.bool_),
            num_tokens=np.zeros(rows, np.int32),
            prompt_len=np.zeros(rows, np.int32),
            token_ids=np.zeros((rows, limits.max_model_len + 1), np.int32),
            scores_prompt=np.zeros(rows, np.bool_),
            num_computed=np.zeros(rows, np.int32),
            cached_len=np.zeros(rows, np.int32),
            num_blocks=np.zeros(rows, np.int32),
            block_tables=np.zeros((rows, limits.max_blocks_per_seq), np.int32),
            sampling=np.zeros(rows, ROW),
            references=np.zeros(limits.num_blocks, np.int32),
        )

    def read_only(self) -> "SlotColumns":
        """The same memory, which the holder cannot write."""
        views = {field.name: getattr(self, field.name).view() for field in fields(self)}
        for view in views.values():
            view.flags.writeable = False
        return SlotColumns(**views)

    def decoding(self) -> BoolArray:
        """Which slots decode one token per step unless told to sit out. A new array."""
        return self.occupied & (self.num_computed >= self.num_tokens)
