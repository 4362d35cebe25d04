"""What was measured, side against side, and what must hold of it. Nothing here runs anything.

Every round runs each side once, in an order that turns from round to round, so that a drift of the machine meets all
sides alike. A case's figure is the median over its rounds, a ratio that of two medians.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from pagewire.client.bench.workload import Job, Span, nano_vllm

T = TypeVar("T")

ONE = "one"
MANY = "many"
_WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Case:
    """Prompts of token ids, and how many tokens to generate for each."""

    name: str
    prompts: list[list[int]]
    max_tokens: list[int]

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts."""
        return sum(map(len, self.prompts))

    @property
    def output_tokens(self) -> int:
        """That every side has to make."""
        return sum(self.max_tokens)

    def jobs(self) -> list[Job]:
        """For the load client."""
        return [Job(prompt, count) for prompt, count in zip(self.prompts, self.max_tokens, strict=True)]

    def shortened(self, max_tokens: int = _WARM_UP_TOKENS) -> Case:
        """The same prompts with so many tokens at most: what a side runs before it is measured."""
        return Case(self.name, self.prompts, [min(max_tokens, count) for count in self.max_tokens])


@dataclass(frozen=True, slots=True)
class Run:
    """What one side took for a case."""

    wall_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int

    @property
    def tokens_per_s(self) -> float:
        """Output tokens over the whole of `wall_s`, prefill included."""
        return self.output_tokens / self.wall_s

    def check(self, case: Case, side: str) -> None:
        """Raises ValueError where the side did less than the case asks, which would make its time worthless."""
        for what, seen, wanted in (
            ("prompt tokens", self.prompt_tokens, case.prompt_tokens),
            ("cached tokens", self.cached_tokens, 0),
            ("output tokens", self.output_tokens, case.output_tokens),
        ):
            if seen != wanted:
                raise ValueError(f"{side} reports {seen} {what} for the case {case.name}, which has {wanted}")


def cases(seed: int, max_id: int) -> dict[str, Case]:
    """One stream of 64 ids in and 64 out, and nano-vllm's workload at a size for two cores."""
    one = nano_vllm(1, Span(64, 64), Span(64, 64), seed, max_id)
    many = nano_vllm(32, Span(64, 256), Span(64, 128), seed, max_id)
    return {name: _case(name, jobs) for name, jobs in ((ONE, one), (MANY, many))}


def _case(name: str, jobs: Sequence[Job]) -> Case:
    prompts = [[token for token in job.prompt if isinstance(token, int)] for job in jobs]
    return Case(name, prompts, [job.max_tokens for job in jobs])


def in_turn(sides: Sequence[T], round_index: int) -> list[T]:
    """The sides in the order of a round: every one is first as often as the others."""
    first = round_index % len(sides)
    return [*sides[first:], *sides[:first]]


def median_rate(found: Sequence[Run]) -> float:
    """Output tokens a second."""
    return statistics.median(run.tokens_per_s for run in found)


@dataclass(frozen=True, slots=True)
class Bound:
    """One demand, and what was seen."""

    what: str
    seen: float
    relation: Literal["at least", "at most"]
    limit: float
    unit: str

    @property
    def met(self) -> bool:
        """Whether it holds."""
        return self.seen >= self.limit if self.relation == "at least" else self.seen <= self.limit

    def as_json(self) -> dict[str, object]:
        """Beside the figures."""
        return {
            "what": self.what,
            "seen": round(self.seen, 3),
            "relation": self.relation,
            "limit": round(self.limit, 3),
            "unit": self.unit,
            "met": self.met,
        }


OURS = "pagewire"
LEAST_RATIOS: Mapping[tuple[str, str], float] = {
    (ONE, "vllm"): 0.95,
    (MANY, "vllm"): 1.2,
    (ONE, "transformers"): 3.0,
}
"""(case, peer) → the ratio of output tokens a second, ours to theirs."""
MAX_START_S = 10.0
MAX_OTHER_CORES = 0.2
"""More, and the figures say little: OpenMP's barriers wait for threads that lost their core."""


def rate_bounds(found: Mapping[str, Mapping[str, Sequence[Run]]]) -> list[Bound]:
    """Of case → side → runs."""
    bounds = []
    for (case, peer), least in LEAST_RATIOS.items():
        of_case = found.get(case, {})
        if of_case.get(OURS) and of_case.get(peer):
            ratio = median_rate(of_case[OURS]) / median_rate(of_case[peer])
            bounds.append(Bound(f"{case}: tokens/s, {OURS} / {peer}", ratio, "at least", least, "x"))
    return bounds


def start_bound(starts_s: Sequence[float]) -> Bound:
    """Cold process to the end of a request of one token."""
    return Bound("start to first token", statistics.median(starts_s), "at most", MAX_START_S, "s")


def memory_bound(peak_bytes: int, weights_bytes: int, kv_cache_bytes: int) -> Bound:
    """Of the worker process: 1.4 x (weights + KV) + 700 MB."""
    limit = 1.4 * (weights_bytes + kv_cache_bytes) + 700e6
    return Bound("worker's peak memory", peak_bytes / 1e6, "at most", limit / 1e6, "MB")


def undisturbed_bound(other_cores: float) -> Bound:
    """Of every run: what programs that are no part of the comparison may have taken."""
    return Bound("cores taken by other programs", other_cores, "at most", MAX_OTHER_CORES, "cores")
