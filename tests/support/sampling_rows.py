"""Rows to sample on a device, and the same for the CPU's sampler."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pagewire.wire.columns import ROW, Int32Array, SamplingRows, row_of, words_of
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.kernels.contract import parameter_S
from pagewire.worker.kernels.workspaces import SamplingWorkspace

Sample = Callable[..., None]

SETTINGS = [
    # temperature, top-k, top-p
    (0.0, 0, 1.0),
    (0.0, 5, 0.5),
    (1.0, 0, 1.0),
    (0.6, 0, 1.0),
    (1.0, 1, 1.0),
    (1.5, 20, 1.0),
    (1.0, 20, 0.8),
    (1.0, 0, 0.5),
    (0.7, 0, 0.95),
    (1.0, 0, 1e-9),
    (1.0, 100_000, 0.9),
    (2.0, 200, 0.999),
    (1e-6, 0, 1.0),
    (1e-38, 3, 0.5),
    (100.0, 0, 0.9),
]

QUARTERS = [(1, 1_473_566), (3, 915_196), (10, 1_206_881), (1, 1_425_965)]
"""(seed, position) whose uniform is exactly 0, 1/4, 1/2 and 3/4."""


def sampling_rows(count: int, **parameters: object) -> SamplingRows:
    """Rows that are neutral but for these, each a value for all or one for each."""
    rows = np.full(count, row_of(SamplingParams()))
    for name, value in parameters.items():
        rows[name] = value
    return rows


@dataclass(frozen=True)
class DeviceRows:
    """Rows and positions as `sample` takes them."""

    sampling_SP: torch.Tensor
    position_S: torch.Tensor

    @property
    def seed_S(self) -> torch.Tensor:
        return parameter_S(self.sampling_SP, "seed")

    @property
    def columns(self) -> tuple[torch.Tensor, ...]:
        return self.sampling_SP, self.position_S

    def select(self, rows: list[int]) -> "DeviceRows":
        return DeviceRows(*(column[rows] for column in self.columns))

    @property
    def for_sampler(self) -> tuple[SamplingRows, Int32Array]:
        return self.sampling_SP.numpy().view(ROW)[:, 0], self.position_S.numpy()


def device_rows(settings: list[tuple[float, int, float]], seed: int = 0) -> DeviceRows:
    """One row per setting; seeds use all of their 64 bits."""
    generator = np.random.default_rng(seed)
    count = len(settings)
    temperature, top_k, top_p = zip(*settings, strict=True)
    rows = sampling_rows(
        count,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=generator.integers(0, 2**64, count, dtype=np.uint64),
    )
    positions = generator.integers(0, 2**31 - 1, count).astype(np.int32)
    return DeviceRows(torch.from_numpy(words_of(rows)), torch.from_numpy(positions))


def rows_at_quarters(setting: tuple[float, int, float]) -> DeviceRows:
    """Four rows that draw exactly on the edges between four equal probabilities."""
    rows = device_rows([setting] * 4)
    for row, (seed, position) in enumerate(QUARTERS):
        rows.seed_S[row], rows.position_S[row] = seed, position
    return rows


def tokens_of(
    sample: Sample, logits_SV: torch.Tensor, rows: DeviceRows, workspace: SamplingWorkspace | None = None
) -> list[int]:
    num_rows, vocab_size = logits_SV.shape
    if workspace is None:
        workspace = SamplingWorkspace.allocate(max(num_rows, 1), vocab_size, torch.device("cpu"))
    tokens_S = torch.full((num_rows,), -9, dtype=torch.int32)
    sample(logits_SV, *rows.columns, tokens_S, workspace=workspace)
    tokens: list[int] = tokens_S.tolist()
    return tokens
