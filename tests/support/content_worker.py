"""A worker whose model is a hash of everything it attends to.

It replays plans through the real slot state (`pagewire.worker.slots.state`) and keeps, for every KV position, a
fingerprint of the whole prefix that ends there, chained from position to position. The next token is a hash of the last
fingerprint. So a block that is shared wrongly, reused too early or never written changes the tokens, as it would in a
real model, and a test need only compare outputs with `expected_output`.
"""

import hashlib

import numpy as np
from support.worker_plans import block_table

from pagewire.wire.columns import Int32Array
from pagewire.wire.plan import StepPlan
from pagewire.worker.slots.columns import SlotLimits
from pagewire.worker.slots.state import Slots

UNWRITTEN = b""


def fingerprint(parent: bytes, token: int) -> bytes:
    """Fingerprint of a prefix, from the one before and its last token."""
    return hashlib.blake2b(parent + token.to_bytes(4, "little"), digest_size=8).digest()


def next_token(prefix: bytes, seed: int, vocab_size: int) -> int:
    """What the model says after a prefix."""
    return (
        int.from_bytes(hashlib.blake2b(prefix + seed.to_bytes(8, "little"), digest_size=4).digest(), "little")
        % vocab_size
    )


def expected_output(prompt: list[int], seed: int, max_tokens: int, ends: frozenset[int], vocab_size: int) -> list[int]:
    """The output of a sequence that runs alone, with every token in its place."""
    prefix = b""
    for token in prompt:
        prefix = fingerprint(prefix, token)
    output: list[int] = []
    while len(output) < max_tokens:
        output.append(next_token(prefix, seed, vocab_size))
        if output[-1] in ends:
            break
        prefix = fingerprint(prefix, output[-1])
    return output


class ContentWorker:
    """Executes plans; raises AssertionError where a step would read KV that nobody wrote."""

    def __init__(self, limits: SlotLimits) -> None:
        self.slots = Slots(limits)
        self._limits = limits
        self._kv: list[list[bytes]] = []

    def begin(self, epoch: int) -> None:
        """Lose everything."""
        self.slots.begin(epoch)
        self._kv = [[UNWRITTEN] * self._limits.block_size for _ in range(self._limits.num_blocks)]

    def execute(self, plan: StepPlan) -> Int32Array:
        """Run one step; returns its tokens in the plan's order."""
        step = self.slots.apply(plan)
        columns = self.slots.columns
        rows: list[tuple[int, int, list[int]]] = [
            (slot, position, [int(columns.token_ids[slot, position])])
            for slot, position in zip(step.decode_slots.tolist(), step.decode_positions.tolist(), strict=True)
        ]
        rows += [(chunk.slot, chunk.start, chunk.tokens.tolist()) for chunk in step.chunks]
        tables = {slot: block_table(self.slots, slot) for slot, _, _ in rows}
        # As in a real layer, all writes come before any read. A row's own fingerprint depends on the position before
        # it, which a row of this same step may write, so writes go in order of position.
        pending = sorted(
            ((start + offset, slot, token) for slot, start, tokens in rows for offset, token in enumerate(tokens)),
        )
        prefix_of: dict[tuple[int, int], bytes] = {}
        for position, slot, token in pending:
            parent = b"" if position == 0 else self._read(tables[slot], position - 1)
            prefix_of[slot, position] = fingerprint(parent, token)
            if position >= columns.cached_len[slot]:
                self._write(tables[slot], position, prefix_of[slot, position])
        tokens = []
        for slot, position in zip(step.sample_slots.tolist(), step.sample_positions.tolist(), strict=True):
            token = next_token(
                prefix_of[slot, position - 1], int(columns.sampling["seed"][slot]), self._limits.vocab_size
            )
            tokens.append(token)
        sampled = np.array(tokens, np.int32)
        self.slots.record(step, sampled)
        return sampled

    def check_context(self, slot: int, tokens: list[int]) -> None:
        """The slot's ids must be these tokens, and the KV behind its table that of exactly these."""
        assert self.slots.columns.token_ids[slot, : len(tokens)].tolist() == tokens, f"slot {slot} has other ids"
        table, prefix = block_table(self.slots, slot), b""
        for position, token in enumerate(tokens):
            prefix = fingerprint(prefix, token)
            assert self._read(table, position) == prefix, f"slot {slot}: the KV of position {position} is another's"

    def _read(self, table: list[int], position: int) -> bytes:
        content = self._kv[table[position // self._limits.block_size]][position % self._limits.block_size]
        assert content != UNWRITTEN, f"position {position} is read before anybody wrote it"
        return content

    def _write(self, table: list[int], position: int, content: bytes) -> None:
        self._kv[table[position // self._limits.block_size]][position % self._limits.block_size] = content
