"""The slots' layout on a device: where each property of each slot lies in one arena of 32-bit words.

    rows of sampling parameters │ last tokens │ lengths │ cached lengths │ block tables

A plan changes single words anywhere in it, so one list of (index, word) pairs and one scatter apply a whole plan. The
rows come first, so that what takes 64 bits in them is aligned.
"""

from dataclasses import dataclass

import torch

from pagewire.wire.columns import ROW_WORDS
from pagewire.worker.kernels.contract import SlotTensors
from pagewire.worker.slots.columns import SlotLimits


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """Word indices for a number of slots and the length of a block table."""

    num_slots: int
    table_len: int

    @classmethod
    def of(cls, limits: SlotLimits) -> "SlotLayout":
        return cls(limits.max_num_seqs, limits.max_blocks_per_seq)

    @property
    def sampling(self) -> int:
        """The first word of slot 0's row of sampling parameters; a row takes ROW_WORDS."""
        return 0

    @property
    def last_token(self) -> int:
        return ROW_WORDS * self.num_slots

    @property
    def length(self) -> int:
        return self.last_token + self.num_slots

    @property
    def cached_len(self) -> int:
        return self.length + self.num_slots

    @property
    def block_tables(self) -> int:
        return self.cached_len + self.num_slots

    @property
    def words_per_slot(self) -> int:
        """How many words belong to a slot."""
        return ROW_WORDS + 3 + self.table_len

    @property
    def num_words(self) -> int:
        return self.num_slots * self.words_per_slot

    def allocate(self, device: torch.device) -> SlotTensors:
        """Slots that are all zero."""
        arena = torch.zeros(self.num_words, dtype=torch.int32, device=device)

        def column(first: int) -> torch.Tensor:
            return arena[first : first + self.num_slots]

        return SlotTensors(
            arena=arena,
            sampling_RP=arena[: self.last_token].view(self.num_slots, ROW_WORDS),
            last_token_R=column(self.last_token),
            length_R=column(self.length),
            cached_len_R=column(self.cached_len),
            block_tables_RM=arena[self.block_tables :].view(self.num_slots, self.table_len),
        )
