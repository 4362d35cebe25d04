"""Step plans for worker tests: a builder, and a straightforward model that makes random valid streams of them."""

from collections import Counter
from dataclasses import dataclass, field
from random import Random

import msgspec
from support.drawn_admits import KINDS, DrawnAdmits

from pagewire.wire.columns import pack, pack_pairs
from pagewire.wire.plan import Admit, StepPlan
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.slots.columns import SlotLimits
from pagewire.worker.slots.state import Slots

GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, seed=0)

SMALL = SlotLimits(
    max_num_seqs=6, max_model_len=40, max_num_batched_tokens=24, block_size=4, num_blocks=40, vocab_size=100
)


def block_table(slots: Slots, slot: int) -> list[int]:
    """Block ids of an occupied slot."""
    columns = slots.columns
    table: list[int] = columns.block_tables[slot, : columns.num_blocks[slot]].tolist()
    return table


def admit(slot: int, ids: list[int], blocks: list[int], *, cached: int = 0, sampling: SamplingParams = GREEDY) -> Admit:
    """The admission of a sequence whose known tokens are `ids`, the first `cached` of them in `blocks` already."""
    return Admit(
        slot=slot,
        tokens=pack(ids),
        prompt_len=len(ids),
        num_cached=cached,
        blocks=pack(blocks),
        sampling=sampling,
    )


class PlanMaker:
    """Numbers plans and packs their columns."""

    def __init__(self, epoch: int = 1) -> None:
        self.epoch = epoch
        self.next_step_id = 0

    def make(
        self,
        *,
        release: list[int] | None = None,
        admits: list[Admit] | None = None,
        grow: list[tuple[int, int]] | None = None,
        chunks: list[tuple[int, int]] | None = None,
        idle: list[int] | None = None,
    ) -> StepPlan:
        """The next plan."""
        step_id = self.next_step_id
        self.next_step_id += 1
        return StepPlan(
            epoch=self.epoch,
            step_id=step_id,
            release=pack(release or []),
            admit=admits or [],
            grow=pack_pairs(grow or []),
            chunks=pack_pairs(chunks or []),
            idle=pack(idle or []),
        )


@dataclass
class ModelSequence:
    """What the model knows of a slot."""

    ids: list[int]
    cached: int
    blocks: list[int]
    sampling: SamplingParams
    computed: int

    @property
    def decodes(self) -> bool:
        return self.computed >= len(self.ids)


@dataclass
class ExpectedStep:
    """What a worker must make of a plan."""

    decodes: list[tuple[int, int]] = field(default_factory=list)
    """(slot, position)."""
    chunks: list[tuple[int, int, list[int], bool]] = field(default_factory=list)
    """(slot, start, ids, ends the prefill)."""
    samples: list[tuple[int, int]] = field(default_factory=list)
    """(slot, position of the sampled token)."""
    writes: set[int] = field(default_factory=set)
    """block id × block size + offset of every position whose KV is written."""


class PlanModel:
    """Keeps slots in plain dictionaries and lists, and makes one random valid plan after another."""

    def __init__(self, limits: SlotLimits, random: Random, drawn: DrawnAdmits | None = None) -> None:
        """With `drawn`, most sequences have their logits changed, or ask for log-probabilities."""
        self.drawn = drawn
        self.limits = limits
        self.maker = PlanMaker()
        self.sequences: dict[int, ModelSequence] = {}
        self._random = random

    def references(self) -> Counter[int]:
        """In how many tables each block stands."""
        return Counter(block for sequence in self.sequences.values() for block in sequence.blocks)

    def step(self) -> tuple[StepPlan, ExpectedStep]:
        """The next plan, applied to the model."""
        random, limits = self._random, self.limits
        release = [
            slot
            for slot, sequence in self.sequences.items()
            if sequence.computed >= limits.max_model_len or random.random() < 0.1
        ]
        for slot in release:
            del self.sequences[slot]
        decoding = {slot for slot, sequence in self.sequences.items() if sequence.decodes}
        admits = [
            self._admit(slot)
            for slot in random.sample(range(limits.max_num_seqs), limits.max_num_seqs)
            if slot not in self.sequences and random.random() < 0.5 and len(self._free_blocks()) >= 12
        ]
        grow, idle = self._grow(sorted(decoding))
        expected = ExpectedStep()
        budget = limits.max_num_batched_tokens
        for slot in sorted(decoding - set(idle)):
            self._run(slot, 1, expected)
            budget -= 1
        chunks = []
        prefilling = [slot for slot in self.sequences if slot not in decoding]
        for slot in random.sample(prefilling, len(prefilling)):
            sequence = self.sequences[slot]
            size = min(budget, random.randint(0, len(sequence.ids) - sequence.computed))
            if size:
                chunks.append((slot, size))
                self._run(slot, size, expected)
                budget -= size
        plan = self.maker.make(release=release, admits=admits, grow=grow, chunks=chunks, idle=idle)
        return plan, expected

    def _free_blocks(self) -> list[int]:
        held = self.references()
        return [block for block in range(self.limits.num_blocks) if block not in held]

    def _admit(self, slot: int) -> Admit:
        random, size = self._random, self.limits.block_size
        prefix: list[int] = []
        if self.sequences and random.random() < 0.5:
            other = random.choice(list(self.sequences.values()))
            prefix = other.blocks[: random.randint(0, min(len(other.ids) // size, 4))]
        num_tokens = random.randint(max(1, len(prefix) * size), 24)
        ids = [random.randrange(self.limits.vocab_size) for _ in range(num_tokens)]
        num_blocks = -(-num_tokens // size)
        free = self._free_blocks()
        random.shuffle(free)
        blocks = prefix + free[: num_blocks - len(prefix)]
        sampling = SamplingParams(
            temperature=random.choice([0.0, 0.7]),
            top_k=random.choice([0, 5, 2**31]),
            top_p=random.choice([1.0, 0.9]),
            seed=random.choice([0, 1, 2**64 - 1]),
        )
        cached = len(prefix) * size
        self.sequences[slot] = ModelSequence(ids, cached, blocks, sampling, min(cached, num_tokens - 1))
        admission = admit(slot, ids, blocks, cached=cached, sampling=sampling)
        if self.drawn is None or random.random() < 0.2:
            return admission
        asked = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "seed")}
        changed = self.drawn.draw(random.choice(KINDS), slot, ids=ids, **asked)
        changed = msgspec.structs.replace(changed, num_cached=cached, blocks=pack(blocks))
        return self.drawn.reported(random.choice([admission, changed, changed]))

    def _grow(self, decoding: list[int]) -> tuple[list[tuple[int, int]], list[int]]:
        grow, idle = [], []
        for slot in decoding:
            sequence = self.sequences[slot]
            if self._random.random() < 0.1:
                idle.append(slot)
            elif sequence.computed == len(sequence.blocks) * self.limits.block_size:
                free = self._free_blocks()
                if not free:
                    idle.append(slot)
                    continue
                block = self._random.choice(free)
                sequence.blocks.append(block)
                grow.append((slot, block))
        return grow, idle

    def _run(self, slot: int, size: int, expected: ExpectedStep) -> None:
        sequence = self.sequences[slot]
        start, end = sequence.computed, sequence.computed + size
        if sequence.decodes:
            expected.decodes.append((slot, start))
            expected.samples.append((slot, end))
        else:
            ends = end == len(sequence.ids)
            expected.chunks.append((slot, start, sequence.ids[start:end], ends))
            if ends:
                expected.samples.append((slot, end))
        block_size = self.limits.block_size
        expected.writes |= {
            sequence.blocks[position // block_size] * block_size + position % block_size
            for position in range(max(start, sequence.cached), end)
        }
        sequence.computed = end
