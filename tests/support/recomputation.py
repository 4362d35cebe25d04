"""A sequence that decodes beside a changing company, and the same computed again from any length: what of the logits is
not the same bits.

The sequence is in the last slot, so its row is the last of those that sample; the others come and go.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import torch
from support.worker_plans import GREEDY, PlanMaker, admit

from pagewire.wire.columns import unpack
from pagewire.wire.logits import MAX_SCORED_ROWS
from pagewire.wire.plan import StepPlan
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.cuda.runner import CudaRunner
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.slots.columns import SlotLimits

SAMPLED = msgspec.structs.replace(GREEDY, temperature=3.0, seed=3)
"""So that a sequence does not repeat itself."""
_CHUNKS = (1, 2, 5, 13, 64, 100, 300)


@contextmanager
def rows_alone() -> Iterator[None]:
    """Triton's interpreter multiplies tiles each row for itself, as a device does: numpy's products come from a BLAS,
    and some of its kernels (OpenBLAS' for Zen 3) sum a tile's last rows in another order than the others."""

    def matmul(a: np.ndarray, b: np.ndarray, **types: Any) -> np.ndarray:
        return np.einsum("...mk,...kn->...mn", a, b, optimize=False, **types)

    with patch.object(np, "matmul", matmul):
        yield


class KeptLogits:
    """A decoder whose last logits stay, those of captured steps too."""

    def __init__(self, decoder: Decoder, limits: SlotLimits, device: torch.device) -> None:
        self._decoder = decoder
        rows = limits.max_num_seqs + MAX_SCORED_ROWS
        self.logits_SV = torch.zeros(rows, limits.vocab_size, device=device)

    def forward(self, batch: Batch, kv: KVCache) -> torch.Tensor:
        logits_SV = self._decoder.forward(batch, kv)
        self.logits_SV[: logits_SV.shape[0]].copy_(logits_SV)
        return logits_SV


@dataclass(frozen=True)
class History:
    """A sequence as it first went."""

    ids: list[int]
    logits_LV: torch.Tensor
    """[l]: after the first l + first tokens."""
    first: int

    def after(self, length: int) -> torch.Tensor:
        return self.logits_LV[length - self.first]


class Recomputation:
    """One runner; every run is an epoch of its own."""

    def __init__(self, runner: CudaRunner, kept: KeptLogits, limits: SlotLimits, epochs: Iterator[int]) -> None:
        self._runner = runner
        self._kept = kept
        self._limits = limits
        self._epochs = epochs
        self._slot = limits.max_num_seqs - 1
        self._others = range(self._slot)
        self._blocks = -(-limits.max_model_len // limits.block_size)

    def first(self, prompt: list[int], length: int, company: Sequence[int], draw: Random) -> History:
        """Decodes from the prompt up to `length` tokens, in step i beside company[i mod n] others."""
        maker = self._begin()
        self._admit_others(maker, draw)
        ids, kept = list(prompt), []
        plan = maker.make(
            admits=[admit(self._slot, ids, self._table(self._slot), sampling=SAMPLED)], chunks=[(self._slot, len(ids))]
        )
        ids.append(self._run(plan, kept))
        while len(ids) < length:
            count = company[len(ids) % len(company)]
            ids.append(self._run(maker.make(idle=self._idle(count, draw)), kept))
        return History(ids, torch.stack(kept), len(prompt))

    def again(self, history: History, length: int, num_decoded: int, draw: Random | None) -> int:
        """Computes the first `length` tokens as a prompt, whole and alone or, with `draw`, in chunks beside others, and
        decodes on: how many values of the logits differ from what they were."""
        maker = self._begin()
        kept: list[torch.Tensor] = []
        admission = admit(self._slot, history.ids[:length], self._table(self._slot), sampling=SAMPLED)
        if draw is None:
            tokens = [self._run(maker.make(admits=[admission], chunks=[(self._slot, length)]), kept)]
        else:
            self._admit_others(maker, draw)
            left, admits, tokens = length, [admission], [0]
            while left:
                size = min(left, draw.choice(_CHUNKS), self._limits.max_num_batched_tokens - self._slot)
                plan = maker.make(
                    admits=admits,
                    chunks=[(self._slot, size)],
                    idle=self._idle(draw.choice((0, 1, len(self._others))), draw),
                )
                left, admits = left - size, []
                if left:
                    self._step(plan)
                else:
                    tokens = [self._run(plan, kept)]
        for _ in range(num_decoded):
            idle = list(self._others) if draw is not None else []
            tokens.append(self._run(maker.make(idle=idle), kept))
        expected = torch.stack([history.after(length + index) for index in range(len(kept))])
        num_differing = int((torch.stack(kept) != expected).sum())
        return num_differing + (tokens != history.ids[length : length + len(tokens)])

    def _begin(self) -> PlanMaker:
        maker = PlanMaker(next(self._epochs))
        self._runner.begin(maker.epoch)
        return maker

    def _table(self, slot: int) -> list[int]:
        return list(range(slot * self._blocks, (slot + 1) * self._blocks))

    def _idle(self, count: int, draw: Random) -> list[int]:
        """All of the others but so many."""
        return sorted(draw.sample(self._others, len(self._others) - min(count, len(self._others))))

    def _admit_others(self, maker: PlanMaker, draw: Random) -> None:
        """Prompts of drawn lengths, within one step's budget, each of which has sampled when this returns."""
        most = max(1, min(self._limits.max_num_batched_tokens // max(1, len(self._others)), 40))
        prompts = {
            slot: [draw.randrange(self._limits.vocab_size) for _ in range(draw.randint(1, most))]
            for slot in self._others
        }
        if prompts:
            admits = [admit(slot, ids, self._table(slot), sampling=SAMPLED) for slot, ids in prompts.items()]
            self._step(maker.make(admits=admits, chunks=[(slot, len(ids)) for slot, ids in prompts.items()]))

    def _run(self, plan: StepPlan, kept: list[torch.Tensor]) -> int:
        """The sequence's token; its logits are kept."""
        tokens = self._step(plan)
        kept.append(self._kept.logits_SV[len(tokens) - 1].clone())
        return tokens[-1]

    def _step(self, plan: StepPlan) -> list[int]:
        self._runner.submit(plan)
        while (result := self._runner.take()) is None:
            pass
        tokens: list[int] = unpack(result.tokens).tolist()
        return tokens
