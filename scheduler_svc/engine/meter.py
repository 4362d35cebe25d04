"""The meter: what the engine counts of its steps, and its whole report to the supervisor.

Owns the histograms of steps and the block ledger; everything else of a report is taken from the load that frontends are
told too. It knows neither sockets nor names of metrics. A step costs it two additions for each of seven histograms.
"""

from pagewire.scheduler_svc.engine.block_ledger import BlockLedger
from pagewire.scheduler_svc.engine.steps import plausible_us
from pagewire.wire.measures import DROPPED, EngineCounts, EngineGauges, EngineMeasured
from pagewire.wire.requests import EngineState, Load


class EngineMeter:
    """Of one engine process, since it started."""

    def __init__(self) -> None:
        self.ledger = BlockLedger()
        self._counts = EngineCounts()

    def planned(self, num_tokens: int, plan_s: float, send_s: float, num_bytes: int) -> None:
        """A step of so many tokens was planned in `plan_s` and its plan, so many bytes, sent in `send_s`."""
        counts = self._counts
        counts.step_tokens.observe(num_tokens)
        counts.step_plan.observe(plan_s)
        counts.step_send.observe(send_s)
        counts.plan_bytes.observe(num_bytes)

    def answered(self, busy_us: int, step_s: float, apply_s: float) -> None:
        """A step's result came after `step_s`, said that the device worked on it for `busy_us`, and was taken in within
        `apply_s`."""
        counts = self._counts
        counts.step.observe(step_s)
        counts.step_worker.observe(plausible_us(busy_us) / 1e6)
        counts.step_apply.observe(apply_s)

    def report(self, load: Load, waiting_tokens: int, block_size: int, now_s: float) -> EngineMeasured:
        """Everything until now. `load` as frontends are told it; `block_size` in tokens, 0 before the first worker."""
        counts = self._counts
        busy_us, idle_us = load.worker_busy_us - counts.worker_busy_us, load.worker_idle_us - counts.worker_idle_us
        counts.prompt_tokens = load.prompt_tokens
        counts.cached_prompt_tokens = load.cached_prompt_tokens
        counts.output_tokens = load.output_tokens
        counts.preemptions = load.preemptions
        counts.worker_busy_us = load.worker_busy_us
        counts.worker_idle_us = load.worker_idle_us
        counts.dropped_frames = dict.fromkeys(DROPPED, 0) | load.dropped
        self.ledger.pass_time(now_s)
        counts.block_seconds = self.ledger.block_seconds()
        gauges = EngineGauges(
            is_ready=load.state is EngineState.READY,
            running=load.running,
            waiting=load.waiting,
            waiting_tokens=waiting_tokens,
            paused=load.paused,
            used_blocks=load.used_blocks,
            cached_blocks=load.cached_blocks,
            total_blocks=load.total_blocks,
            block_size=block_size,
            worker_idle_ratio=idle_us / (busy_us + idle_us) if busy_us + idle_us else 0.0,
        )
        return EngineMeasured(counts, gauges)
