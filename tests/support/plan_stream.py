"""Random plans through a device that works while its caller goes on, two in flight, against the plain runner."""

import threading
from collections import deque
from random import Random

import numpy as np
import torch
from support.device_runner import plain_decoder
from support.drawn_admits import DrawnAdmits
from support.same_results import assert_same
from support.worker_plans import PlanModel

from pagewire.wire.launch import WorkerLaunch
from pagewire.wire.plan import StepResult, WorkerHello
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.cpu.runner import CpuRunner
from pagewire.worker.cuda.loading import load_onto
from pagewire.worker.cuda.platform import Platform
from pagewire.worker.immediate import Sampled
from pagewire.worker.launch import slot_limits
from pagewire.worker.slots.columns import SlotLimits

TIMEOUT_S = 60.0


def limits_of(launch: WorkerLaunch, hello: WorkerHello) -> SlotLimits:
    """What plans for a worker that says so must stay within."""
    return slot_limits(launch, hello.block_size, hello.num_blocks)


class LoadedStream:
    """A device that is loaded, and the plain runner over the same weights and as many blocks."""

    def __init__(self, launch: WorkerLaunch, platform: Platform) -> None:
        self._woken = threading.Event()
        self.loaded = load_onto(
            launch,
            platform,
            progress=lambda stage, done: None,
            on_rank_lost=lambda reason: None,
            wake=self._woken.set,
        )
        self.runner, limits = self.loaded.runner, limits_of(launch, self.loaded.hello)
        config = launch.model.decoder
        kv = KVCache(config, limits.num_blocks, limits.block_size, torch.float32)
        self._plain = CpuRunner(plain_decoder(config), kv, limits)
        self.limits = limits
        self._epoch = 0

    def check(self, seed: int, num_steps: int, *, special: bool = False) -> list[StepResult]:
        """A stream in an epoch of its own; returns its results, all of which were as expected. `special`: sequences
        ask for everything that may be asked of logits."""
        self._epoch += 1
        self.runner.begin(self._epoch)
        self._plain.begin(self._epoch)
        drawn = DrawnAdmits(np.random.default_rng(seed), self.limits.vocab_size) if special else None
        plans = PlanModel(self.limits, Random(seed), drawn)
        plans.maker.epoch = self._epoch
        expected: deque[Sampled] = deque()
        results: list[StepResult] = []
        for _ in range(num_steps):
            plan, _ = plans.step()
            self.runner.submit(plan)
            expected.append(self._plain.run(plan))
            if len(expected) == 2:
                results.append(self._take(expected.popleft()))
        while expected:
            results.append(self._take(expected.popleft()))
        assert [result.step_id for result in results] == list(range(num_steps))
        return results

    def _take(self, expected: Sampled) -> StepResult:
        while True:
            self._woken.clear()
            result = self.runner.take()
            if result is not None:
                assert_same(result, expected)
                return result
            assert self._woken.wait(TIMEOUT_S), "the device does not end its step"
