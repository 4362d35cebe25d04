"""Where each property of each slot lies in one arena of 32-bit words.

    seeds (2 words each) │ last tokens │ lengths │ write floors │ top-k │ temperatures │ top-p │ block tables

A plan changes single words anywhere in it, so one list of (index, word) pairs and one scatter apply a whole plan. Seeds
come first, so that they are aligned to their 64 bits.
"""

from dataclasses import dataclass

import torch

from pagewire.worker.kernels.step_tensors import SlotTensors
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
    def seed(self) -> int:
        """The word of slot 0's seed; a seed takes two, the lower half first."""
        return 0

    @property
    def last_token(self) -> int:
        return 2 * self.num_slots

    @property
    def length(self) -> int:
        return 3 * self.num_slots

    @property
    def write_floor(self) -> int:
        return 4 * self.num_slots

    @property
    def top_k(self) -> int:
        return 5 * self.num_slots

    @property
    def temperature(self) -> int:
        return 6 * self.num_slots

    @property
    def top_p(self) -> int:
        return 7 * self.num_slots

    @property
    def block_tables(self) -> int:
        return 8 * self.num_slots

    @property
    def words_per_slot(self) -> int:
        """How many words belong to a slot."""
        return 8 + self.table_len

    @property
    def num_words(self) -> int:
        return self.num_slots * self.words_per_slot

    def allocate(self, device: torch.device) -> SlotTensors:
        """Slots that are all zero."""
        arena = torch.zeros(self.num_words, dtype=torch.int32, device=device)

        def column(first: int, words: int = 1) -> torch.Tensor:
            return arena[first : first + words * self.num_slots]

        return SlotTensors(
            arena=arena,
            seed_R=column(self.seed, 2).view(torch.int64),
            last_token_R=column(self.last_token),
            length_R=column(self.length),
            write_floor_R=column(self.write_floor),
            top_k_R=column(self.top_k),
            temperature_R=column(self.temperature).view(torch.float32),
            top_p_R=column(self.top_p).view(torch.float32),
            block_tables_RM=arena[self.block_tables :].view(self.num_slots, self.table_len),
        )
