"""Workloads: prompts and lengths, the same for the same seed on every machine.

`nano_vllm` is the workload of nano-vllm's bench.py, call by call of Python's generator, so that figures of other
engines on it can be compared. Nothing here knows time or a service.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pagewire.client.errors import InvalidRequest
from pagewire.client.prompts import Chat, Prompt

NANO_VLLM_MAX_ID = 10_000


@dataclass(frozen=True, slots=True)
class Job:
    """One request: a prompt and the number of tokens to generate for it."""

    prompt: Prompt
    max_tokens: int
    ids_alone: bool = False
    """Ask for no text: text comes late where a token is not a whole character."""


@dataclass(frozen=True, slots=True)
class Span:
    """Lengths from `low` to `high`, both included, each as likely as the others."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise InvalidRequest(f"a length of {self} must be A:B with 1 <= A <= B")

    def __str__(self) -> str:
        return f"{self.low}:{self.high}"


DEFAULT_SPAN = Span(100, 1024)


def nano_vllm(
    num_seqs: int = 256,
    input_len: Span = DEFAULT_SPAN,
    output_len: Span = DEFAULT_SPAN,
    seed: int = 0,
    max_id: int = NANO_VLLM_MAX_ID,
) -> list[Job]:
    """`seed`; then for each prompt its length and that many ids from 0 to `max_id`; then all output lengths."""
    draw = random.Random(seed).randint
    prompts = [[draw(0, max_id) for _ in range(draw(input_len.low, input_len.high))] for _ in range(num_seqs)]
    return [Job(prompt, draw(output_len.low, output_len.high)) for prompt in prompts]


def random_ids(rng: random.Random, length: int, max_id: int) -> list[int]:
    """A prompt that nobody has seen before."""
    return [rng.randint(0, max_id) for _ in range(length)]


def with_shared_prefix(jobs: Sequence[Job], prefix: Sequence[int]) -> list[Job]:
    """The same jobs with the same ids in front of every prompt. Raises InvalidRequest where one is not token ids."""
    return [Job([*prefix, *_ids(job.prompt)], job.max_tokens) for job in jobs]


def of_prompts(prompts: Sequence[Prompt], num_seqs: int, output_len: Span, seed: int) -> list[Job]:
    """As many jobs as asked for, from given prompts in turn."""
    draw = random.Random(seed).randint
    return [Job(prompts[index % len(prompts)], draw(output_len.low, output_len.high)) for index in range(num_seqs)]


def _ids(prompt: Prompt) -> list[int]:
    ids = [] if isinstance(prompt, str | Chat) else [token for token in prompt if isinstance(token, int)]
    if not ids:
        raise InvalidRequest("a shared prefix of token ids needs prompts of token ids")
    return ids
