"""The engine's loop: reads what came, lets the scheduler plan, sends what changed.

Owns the state of the service (loading, ready, recovering, draining). It sleeps in one poll over all its sockets;
nothing here spins, because on a CPU the worker computes on the same cores.

    frontends ──Submit, Abort──▶ ┌────────┐ ──StepPlan──▶ worker
              ◀──TokenBatch───── │  loop  │ ◀─StepResult──
                                 └───┬────┘
                                 scheduler
"""

import gc
import logging
from collections.abc import Callable, Iterator

import zmq

from pagewire.scheduler_svc.engine.cache_log import CacheLog
from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.events import Outbox
from pagewire.scheduler_svc.engine.frontend_requests import FrontendRequests
from pagewire.scheduler_svc.engine.kv_event_publisher import KvEventPublisher
from pagewire.scheduler_svc.engine.links import Dropped, FrontendLink, WorkerLink
from pagewire.scheduler_svc.engine.meter import EngineMeter
from pagewire.scheduler_svc.engine.results import rows_of
from pagewire.scheduler_svc.engine.scheduler import Scheduler
from pagewire.scheduler_svc.engine.step_deadline import StepDeadline
from pagewire.scheduler_svc.engine.steps import Pipeline, PipelineError, plausible_us
from pagewire.scheduler_svc.engine.wait_queue import EarlySubmissions
from pagewire.scheduler_svc.engine.worker_group import WorkerGroup
from pagewire.scheduler_svc.launch import EngineLaunch
from pagewire.wire.codec import WireError
from pagewire.wire.control import (
    Drain,
    EngineRestarted,
    Loading,
    Ready,
    Reload,
    Served,
    StepOverdue,
    Stop,
    ToChild,
    WorkerLost,
)
from pagewire.wire.lifeline import ORPHANED_STATUS, Lifeline
from pagewire.wire.plan import Begin, FromWorker, StepResult, WorkerFailed, WorkerHello
from pagewire.wire.requests import EngineInfo, EngineState, Load

_log = logging.getLogger(__name__)

BORDERS = ("frontends", "workers")
"""The engine's own, as its counts of what was dropped call them."""
_LOOK_S = 0.25
"""Between two looks at the step that is answered next, at most."""


class EngineLoop:
    """One engine. `run` returns the process's exit status."""

    def __init__(
        self,
        launch: EngineLaunch,
        frontends: FrontendLink,
        workers: WorkerLink,
        group: WorkerGroup,
        lifeline: Lifeline,
        clock: Callable[[], float],
        kv_events: KvEventPublisher | None = None,
        refused_connections: Callable[[str], int] = lambda border: 0,
    ) -> None:
        """`kv_events` publishes what becomes of cached blocks, where somebody follows it; `refused_connections` says
        how many a border has had."""
        self._launch = launch
        self._frontends = frontends
        self._workers = workers
        self._lifeline = lifeline
        self._clock = clock
        self._outbox = Outbox()
        self._pipeline = Pipeline(launch.pipeline_depth, first_epoch=launch.incarnation << 20)
        self._scheduler: Scheduler | None = None
        max_waiting = launch.max_queued + launch.max_num_seqs
        self._early = EarlySubmissions(launch.max_model_len, max_waiting, launch.max_queued_tokens)
        self._requests = FrontendRequests(frontends, self._outbox, self._early, self._introduction, clock)
        self._group = group
        self._draining = False
        self._num_checked = 0
        """Sequences that had come when the scheduler was last found idle and recounted."""
        self._refused_connections = refused_connections
        self._dropped_by_worker = 0
        """Frames from here that it could not read, as it last said."""
        self._dropped_by_workers_before = 0
        """As those before it last said: a new one begins at zero."""
        self._look_s = min(_LOOK_S, launch.load_interval_s)
        self._deadline = StepDeadline(launch.hang_timeout_s, launch.step_slack_s, self._look_s)
        self._next_look_s = 0.0
        self._has_served = False
        self._next_load_s = 0.0
        self._kv_events = kv_events
        self._cache_log = None if kv_events is None else CacheLog()
        self._meter = EngineMeter() if launch.measures else None

    def run(self) -> int:
        """Serve until told to stop or orphaned."""
        poller = zmq.Poller()
        poller.register(self._frontends.socket, zmq.POLLIN)
        poller.register(self._workers.socket, zmq.POLLIN)
        poller.register(self._lifeline.fileno(), zmq.POLLIN)
        self._lifeline.send(Loading("waiting for the worker", 0.0))
        while True:
            ready = dict(poller.poll(self._sleep_ms()))
            if self._lifeline.fileno() in ready and (status := self._obey()) is not None:
                return status
            if self._frontends.socket in ready:
                for frontend, message in self._frontends.receive():
                    self._requests.handle(frontend, message)
            if self._workers.socket in ready:
                for rank, news in self._workers.receive():
                    self._on_worker(rank, news)
            self._turn()

    def _sleep_ms(self) -> int:
        wake_s = self._next_load_s
        if self._pipeline.oldest is not None:
            wake_s = min(wake_s, self._next_look_s)
        if (deadline_s := self._requests.next_deadline_s()) is not None:
            wake_s = min(wake_s, deadline_s)
        # One millisecond more than the rest of the time: the poll counts in whole ones, and must not wake too early.
        return max(0, int((wake_s - self._clock()) * 1000) + 1)

    def _obey(self) -> int | None:
        try:
            commands = self._lifeline.receive(0)
        except (EOFError, WireError):  # gone, or of another version
            return ORPHANED_STATUS
        for command in commands:
            if isinstance(command, Stop):
                return 0
            self._on_command(command)
        return None

    def _on_command(self, command: ToChild) -> None:
        match command:
            case Drain():
                self._draining = True
                self._frontends.broadcast(self._group.info(self._state()))
            case WorkerLost(rank=rank):
                self._workers.forget(rank)
                self._lose(rank)
            case Stop() | EngineRestarted() | Reload():
                pass  # the first is obeyed above, the others concern other processes

    # Workers

    def _on_worker(self, rank: int, news: FromWorker) -> None:
        match news:
            case StepResult():
                if rank == 0:
                    if news.dropped_frames < self._dropped_by_worker:
                        self._dropped_by_workers_before += self._dropped_by_worker
                    self._dropped_by_worker = news.dropped_frames
                    self._on_result(news)
            case WorkerHello():
                self._greet(rank, news)
            case WorkerFailed(message=message):
                _log.error("rank %d failed: %s", rank, message)  # its last word, so it floods nothing

    def _greet(self, rank: int, hello: WorkerHello) -> None:
        if rank in self._group:
            self._lose(rank)  # it began anew before anybody said that it had ended
        self._group.join(rank, hello)
        if not self._group.is_complete:
            return
        config = self._group.config()
        if self._scheduler is None:
            ledger = None if self._meter is None else self._meter.ledger
            self._scheduler = Scheduler(config, self._cache_log, ledger)
            self._requests.serve_with(self._scheduler)
            # Whatever lives now lives for ever: later collections need not walk it.
            gc.collect()
            gc.freeze()
        elif config != self._scheduler.config:
            self._resize(self._scheduler, config)
        self._workers.send(Begin(self._pipeline.begin()))
        self._lifeline.send(Ready())
        self._has_served = False
        self._frontends.broadcast(self._group.info(self._state()))

    def _resize(self, scheduler: Scheduler, config: SchedulerConfig) -> None:
        """The workers came back with other memory: the service goes on with what there is."""
        _log.warning(
            "the worker came back with %d blocks of %d tokens; before it had %d of %d",
            config.num_blocks,
            config.block_size,
            scheduler.config.num_blocks,
            scheduler.config.block_size,
        )
        ended = scheduler.resize(config)
        if ended:
            _log.error("%d sequences are longer than %d tokens, what memory holds, and end", len(ended), config.longest)
        self._outbox.add_finishes(ended)

    def _lose(self, rank: int) -> None:
        was_complete = self._group.is_complete
        self._group.leave(rank)
        if not was_complete or self._scheduler is None:
            return  # of a group that ends, the first rank's loss is the group's
        failed = self._scheduler.restart()
        for frontend, finish in failed:
            _log.error("sequence %d of frontend %d ends: %s", finish.handle, frontend, finish.reason)
        self._outbox.add_finishes(failed)
        self._scheduler.check_integrity()
        self._pipeline.begin()
        self._frontends.broadcast(self._group.info(self._state()))

    def _on_result(self, result: StepResult) -> None:
        now_s, since_s = self._clock(), self._pipeline.oldest_since_s
        step = self._pipeline.pop(result, now_s)
        if step is None or self._scheduler is None:
            self._workers.drop(Dropped.STALE)
            return
        if self._meter is not None:
            self._meter.ledger.pass_time(now_s)  # sequences that end with it held their blocks until now
        try:
            outcome = self._scheduler.apply(step, rows_of(result))
        except ValueError as error:
            raise PipelineError(f"the result of step {result.step_id} does not fit its plan: {error}") from error
        self._outbox.add_outcome(outcome)
        if not self._has_served:
            self._has_served = True
            # What a lost worker had is being computed again: a good moment to see that nothing went wrong over it.
            self._scheduler.check_integrity()
            self._lifeline.send(Served())
        # The worker's own word too: of two results that are read together, the second seems to have taken no time.
        self._deadline.answered(step.size, max(now_s - since_s, plausible_us(result.busy_us) / 1e6))
        if self._meter is not None:
            self._meter.answered(result.busy_us, now_s - since_s, self._clock() - now_s)

    # Each turn

    def _turn(self) -> None:
        now_s = self._clock()
        self._requests.expire(now_s)
        if self._scheduler is not None:
            self._advance(self._scheduler, now_s)
        if self._kv_events is not None and self._cache_log is not None and (events := self._cache_log.take()):
            self._kv_events.publish(events)
        for frontend, batch in self._outbox.take().items():
            self._frontends.send(frontend, batch)
        self._requests.end_gone()
        if now_s >= self._next_load_s:
            self._next_load_s = now_s + self._launch.load_interval_s
            load = self._load()
            self._frontends.broadcast(load)
            self._lifeline.beat()
            if self._meter is not None:
                self._report(self._meter, load, now_s)
            self._check_when_idle()
        if now_s >= self._next_look_s and self._pipeline.oldest is not None:
            self._next_look_s = now_s + self._look_s
            if (waited_s := self._deadline.overdue_s(self._pipeline.oldest)) is not None:
                self._lifeline.send(StepOverdue(waited_s, self._group.incarnation))

    def _advance(self, scheduler: Scheduler, now_s: float) -> None:
        if not self._group.is_complete:
            return
        while self._pipeline.has_room:
            began_s = self._clock()
            step = scheduler.plan(self._pipeline.epoch, self._pipeline.next_step_id, now_s)
            if step is None:
                if not scheduler.has_work:
                    self._pipeline.rest()
                return
            planned_s = self._clock()
            num_bytes = self._workers.send(step.plan)
            self._pipeline.push(step, now_s)
            if self._meter is not None:
                self._meter.planned(step.size.tokens, planned_s - began_s, self._clock() - planned_s, num_bytes)
            self._outbox.add_starts(step.starts)

    def _check_when_idle(self) -> None:
        """Once for each time that nothing is left to do, but not where a request follows another at once."""
        scheduler = self._scheduler
        if scheduler is not None and not scheduler.has_work and scheduler.num_arrivals != self._num_checked:
            self._num_checked = scheduler.num_arrivals
            scheduler.check_integrity()

    # What others want to know

    def _introduction(self) -> tuple[EngineInfo, Load]:
        return self._group.info(self._state()), self._load()

    def _state(self) -> EngineState:
        if self._draining:
            return EngineState.DRAINING
        if self._group.is_complete:
            return EngineState.READY
        return EngineState.LOADING if self._scheduler is None else EngineState.RECOVERING

    def _load(self) -> Load:
        scheduler = self._scheduler
        dropped = self._dropped()
        num_dropped = sum(dropped.values())
        dropped |= {f"{border}.refused_connections": count for border, count in self._refusals()}
        if scheduler is None:
            return Load(self._state(), 0, len(self._early), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, num_dropped, dropped=dropped)
        counters, blocks = scheduler.counters, scheduler.blocks
        return Load(
            state=self._state(),
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            used_blocks=blocks.num_used,
            cached_blocks=blocks.num_cached,
            total_blocks=blocks.num_blocks,
            prompt_tokens=counters.prompt_tokens,
            cached_prompt_tokens=counters.cached_prompt_tokens,
            output_tokens=counters.output_tokens,
            preemptions=counters.preemptions,
            steps=counters.steps,
            worker_busy_us=self._pipeline.busy_us,
            worker_idle_us=self._pipeline.idle_us,
            dropped_frames=num_dropped,
            dropped=dropped,
            paused=scheduler.num_paused,
            arrivals=scheduler.num_arrivals,
        )

    def _report(self, meter: EngineMeter, load: Load, now_s: float) -> None:
        scheduler = self._scheduler
        waiting_tokens = self._early.num_tokens if scheduler is None else scheduler.num_waiting_tokens
        block_size = 0 if scheduler is None else scheduler.config.block_size
        self._lifeline.offer(meter.report(load, waiting_tokens, block_size, now_s))

    def _dropped(self) -> dict[str, int]:
        """Frames by border and kind, those that there were."""
        counters = zip(BORDERS, (self._frontends.dropped, self._workers.dropped), strict=True)
        found = {f"{border}.{kind}": count for border, counts in counters for kind, count in counts.items()}
        if by_workers := self._dropped_by_workers_before + self._dropped_by_worker:
            found["worker.malformed"] = by_workers
        return found

    def _refusals(self) -> Iterator[tuple[str, int]]:
        for border in BORDERS:
            if count := self._refused_connections(border):
                yield border, count
