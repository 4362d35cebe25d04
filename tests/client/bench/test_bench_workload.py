"""What benchmarks ask for: the same on every machine, and comparable with what others measured."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest

from pagewire.client.bench.environment import command
from pagewire.client.bench.load import poisson_times
from pagewire.client.bench.workload import Job, Span, nano_vllm, of_prompts, with_shared_prefix
from pagewire.client.errors import InvalidRequest
from pagewire.client.prompts import Prompt


def lengths(jobs: Sequence[Job]) -> list[int]:
    return [len(job.prompt) for job in jobs if not isinstance(job.prompt, str)]


def test_the_defaults_replay_the_workload_that_others_measured() -> None:
    jobs = nano_vllm()
    assert len(jobs) == 256
    assert sum(lengths(jobs)) == 142_827
    assert sum(job.max_tokens for job in jobs) == 133_966


def test_the_workload_draws_as_nano_vllm_does() -> None:
    random.seed(7)
    prompts = [[random.randint(0, 10000) for _ in range(random.randint(5, 9))] for _ in range(4)]
    outputs = [random.randint(2, 3) for _ in range(4)]
    expected = [Job(prompt, length) for prompt, length in zip(prompts, outputs, strict=True)]
    assert nano_vllm(4, Span(5, 9), Span(2, 3), 7) == expected


def test_a_smaller_vocabulary_keeps_the_number_of_requests() -> None:
    jobs = nano_vllm(8, Span(3, 3), Span(1, 1), 0, max_id=9)
    assert lengths(jobs) == [3] * 8
    assert max(token for job in jobs for token in job.prompt) <= 9  # type: ignore[union-attr]


def test_a_shared_prefix_stands_before_every_prompt() -> None:
    jobs = with_shared_prefix([Job([5], 1), Job((6, 7), 2)], [1, 2])
    assert jobs == [Job([1, 2, 5], 1), Job([1, 2, 6, 7], 2)]


@pytest.mark.parametrize("prompt", ["text", []])
def test_a_shared_prefix_needs_ids(prompt: Prompt) -> None:
    with pytest.raises(InvalidRequest, match="token ids"):
        with_shared_prefix([Job(prompt, 1)], [1])


def test_given_prompts_are_used_in_turn() -> None:
    jobs = of_prompts(["a", "b"], 5, Span(1, 4), 3)
    assert [job.prompt for job in jobs] == ["a", "b", "a", "b", "a"]
    assert {job.max_tokens for job in jobs} <= {1, 2, 3, 4}


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3, 2)])
def test_a_span_is_checked(low: int, high: int) -> None:
    with pytest.raises(InvalidRequest, match=f"{low}:{high}"):
        Span(low, high)


def test_poisson_arrivals_have_the_asked_rate() -> None:
    times = poisson_times(4001, 50.0, 1)
    assert len(times) == 4001
    assert times[0] == 0
    assert times == sorted(times)
    assert 4000 / times[-1] == pytest.approx(50, rel=0.06)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    # Of an exponential distribution 1/e of the samples are above the mean; of even spacing none or half would be.
    assert sum(gap > 1 / 50 for gap in gaps) / 4000 == pytest.approx(0.368, abs=0.03)
    assert poisson_times(3, 50.0, 1) == times[:3]
    assert poisson_times(3, 50.0, 2) != times[:3]


def test_the_command_line_is_told_without_its_keys() -> None:
    told = command(["bench", "serve", "--api-key", "s3cret", "--admin-api-key=t0p", "--prompts", "a b.txt"])
    assert told == "pagewire bench serve --api-key ... --admin-api-key=... --prompts 'a b.txt'"
