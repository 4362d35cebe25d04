"""Hypothesis against the scheduler: whatever happens in whatever order, outputs are right and nothing leaks.

Every run interprets a byte string as at least 200 events. There are 2,000 runs, or as many as PAGEWIRE_TEST_RUNS says.
"""

import os
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.scheduler_world import World

from pagewire.scheduler_svc.engine.cache_log import CacheLog
from pagewire.scheduler_svc.engine.config import SchedulerConfig

RUNS = int(os.environ.get("PAGEWIRE_TEST_RUNS", "2000"))
BYTES_PER_EVENT = 3
MIN_EVENTS, MAX_EVENTS = 200, 260
VOCAB_SIZE = 23
EOS = (0,)


@dataclass(frozen=True)
class Shape:
    """A server small enough that everything runs out."""

    block_size: int
    num_blocks: int
    max_num_seqs: int
    chunk: int
    depth: int
    caching: bool
    followed: bool
    """Whether somebody follows the cache's events, and is compared with it."""


shapes = st.builds(
    Shape,
    block_size=st.sampled_from([1, 2, 3, 4, 16]),
    num_blocks=st.sampled_from([6, 9, 14, 24]),
    max_num_seqs=st.sampled_from([1, 3, 5]),
    chunk=st.sampled_from([1, 7, 64]),
    depth=st.sampled_from([1, 2, 3]),
    caching=st.booleans(),
    followed=st.sampled_from([False, False, False, True]),
)


def make_world(shape: Shape) -> World:
    """A world of this shape."""
    return World(
        SchedulerConfig(
            max_num_seqs=shape.max_num_seqs,
            max_num_batched_tokens=shape.max_num_seqs + shape.chunk,
            max_prefill_tokens_per_step=shape.chunk,
            max_model_len=48,
            max_queued=8,
            max_queued_tokens=90,
            vocab_size=VOCAB_SIZE,
            eos_token_ids=EOS,
            num_blocks=shape.num_blocks,
            block_size=shape.block_size,
            enable_prefix_caching=shape.caching,
        ),
        shape.depth,
        CacheLog() if shape.followed else None,
    )


def interpret(world: World, kind: int, a: int, b: int) -> None:
    """One event. Steps are the most frequent, so that sequences live long enough to meet each other."""
    match kind % 18:
        case 0 | 1 | 2:
            # Few different prompts, so that many share a prefix.
            prompt = [1 + (i * (1 + a % 2)) % (VOCAB_SIZE - 1) for i in range(1 + a % 19)] + [5] * (b % 3)
            world.submit(
                prompt,
                max_tokens=1 + b % 17,
                stop_token_ids=(7, 9) if a % 5 == 0 else (),
                ignore_eos=b % 4 == 0,
                priority=(a + b) % 3 - 1,
                salt=b"other" if b % 7 == 0 else b"",
                max_queue_time_s=0.5 + a % 4 if b % 6 == 0 else None,
                request_id=f"request-{a % 4}",
                tenant=("", "", "one", "two")[b // 16 % 4],
            )
        case 3:
            if world.sequences:
                world.cancel((a * 256 + b) % len(world.sequences))
        case 4:
            if a % 4 == 0:
                world.scheduler.flush_cache()
            elif a % 4 == 1:
                world.abort_request(f"request-{b % 4}")
            elif a % 16 == 2:
                world.lose_worker()
            elif a % 16 == 10:
                world.replace_worker(1 + b % 32)
            else:
                world.expire(b / 64)
        case 5 | 6 | 7 | 8 | 9 | 10:
            world.plan()
        case 16:
            if world.sequences:
                world.pause((a * 256 + b) % len(world.sequences))
        case 17:
            if a % 4 == 0:
                world.resume_all()
            elif world.sequences:
                world.resume((a * 256 + b) % len(world.sequences))
        case _:
            world.deliver()


@pytest.mark.slow
@settings(max_examples=RUNS, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    shape=shapes,
    events=st.binary(min_size=MIN_EVENTS * BYTES_PER_EVENT, max_size=MAX_EVENTS * BYTES_PER_EVENT),
)
def test_any_history_gives_every_sequence_its_own_output_once(shape: Shape, events: bytes) -> None:
    world = make_world(shape)
    for at in range(0, len(events) - BYTES_PER_EVENT + 1, BYTES_PER_EVENT):
        interpret(world, *events[at : at + BYTES_PER_EVENT])
        world.check()
    world.drain()
    world.check()
    world.resume_all()
    world.drain()
    world.check_end()
