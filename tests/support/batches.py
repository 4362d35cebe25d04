"""Drives a decoder without a runner: keeps block tables for a few sequences and builds the batch of each step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import torch

from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.model.decoder import Decoder


@dataclass
class PagedSequence:
    """A sequence as far as it is computed."""

    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_shared: int = 0
    """Leading positions whose KV belongs to another sequence: read, never written."""


class PagedDriver:
    """Sequences over one cache. Blocks are handed out in a shuffled order, so that nothing works only because a
    sequence's blocks happen to be neighbours."""

    def __init__(self, decoder: Decoder, kv: KVCache, seed: int = 0) -> None:
        self.decoder = decoder
        self.kv = kv
        self.sequences: dict[int, PagedSequence] = {}
        self._free = list(range(kv.num_blocks))
        Random(seed).shuffle(self._free)

    def step(self, work: Mapping[int, Sequence[int]], sample: Sequence[int] | None = None) -> torch.Tensor:
        """Computes the next tokens of each sequence, in the order given; returns the logits of the last row of each
        sequence in `sample` (all of them, where it is none)."""
        return self.decoder.forward(self.batch(work, sample), self.kv)

    def batch(self, work: Mapping[int, Sequence[int]], sample: Sequence[int] | None = None) -> Batch:
        input_ids: list[int] = []
        positions: list[int] = []
        write_rows: list[int] = []
        kv_positions: list[int] = []
        sample_rows: list[int] = []
        seq_rows: list[tuple[int, int, int]] = []
        for name, tokens in work.items():
            sequence = self.sequences.setdefault(name, PagedSequence())
            start, end = sequence.num_computed, sequence.num_computed + len(tokens)
            self._grow(sequence, end)
            first_row = len(input_ids)
            seq_rows.append((first_row, len(tokens), end))
            for row, position in enumerate(range(start, end), start=first_row):
                if position >= sequence.num_shared:
                    block, offset = divmod(position, self.kv.block_size)
                    write_rows.append(row)
                    kv_positions.append(sequence.blocks[block] * self.kv.block_size + offset)
            input_ids += tokens
            positions += range(start, end)
            sequence.num_computed = end
            if sample is None or name in sample:
                sample_rows.append(len(input_ids) - 1)
        longest = max(len(self.sequences[name].blocks) for name in work)
        tables = [self.sequences[name].blocks for name in work]
        starts = [first for first, _, _ in seq_rows] + [len(input_ids)]
        return Batch(
            input_ids_T=torch.tensor(input_ids),
            positions_T=torch.tensor(positions),
            query_starts=torch.tensor(starts, dtype=torch.int32),
            context_lens_B=torch.tensor([context for _, _, context in seq_rows], dtype=torch.int32),
            block_tables_BM=torch.tensor([t + [0] * (longest - len(t)) for t in tables], dtype=torch.int32),
            write_rows_W=torch.tensor(write_rows, dtype=torch.int64),
            kv_positions_W=torch.tensor(kv_positions, dtype=torch.int64),
            sample_rows_S=torch.tensor(sample_rows, dtype=torch.int64),
            num_decodes=sum(1 for tokens in work.values() if len(tokens) == 1),
            seq_rows=tuple(seq_rows),
        )

    def share(self, source: int, target: int, num_tokens: int) -> None:
        """Starts `target` on the first num_tokens positions of `source`, which must be whole blocks: as after a hit in
        the prefix cache that covers all but what follows them."""
        num_blocks, rest = divmod(num_tokens, self.kv.block_size)
        if rest:
            raise ValueError(f"{num_tokens} tokens are not whole blocks of {self.kv.block_size}")
        blocks = self.sequences[source].blocks[:num_blocks]
        self.sequences[target] = PagedSequence(list(blocks), num_tokens, num_tokens)

    def _grow(self, sequence: PagedSequence, num_tokens: int) -> None:
        while len(sequence.blocks) * self.kv.block_size < num_tokens:
            sequence.blocks.append(self._free.pop())


def greedy(driver: PagedDriver, name: int, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """The most likely continuation: the whole prompt in one step, then a token per step."""
    token = int(driver.step({name: prompt}).argmax())
    tokens = [token]
    while len(tokens) < num_tokens:
        token = int(driver.step({name: [token]}).argmax())
        tokens.append(token)
    return tokens
