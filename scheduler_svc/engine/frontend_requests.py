"""Frontend requests: what frontends ask of the engine, who takes it, and what they are answered.

Before the first worker the early submissions take it, from then on the scheduler, so that nobody else asks whether
there is one yet. It knows no workers and no plans. Invariant: every submission is taken, answered, or counted as one
that nobody could answer.
"""

import logging
from collections.abc import Callable

from pagewire.scheduler_svc.engine.admission import UnanswerableError
from pagewire.scheduler_svc.engine.events import Event, Outbox
from pagewire.scheduler_svc.engine.links import Dropped, FrontendLink
from pagewire.scheduler_svc.engine.scheduler import Scheduler
from pagewire.scheduler_svc.engine.sequence import SequenceKey
from pagewire.scheduler_svc.engine.wait_queue import EarlySubmissions
from pagewire.scheduler_svc.limited_log import LimitedLog
from pagewire.wire.codec import WireError
from pagewire.wire.columns import unpack
from pagewire.wire.requests import (
    Abort,
    AbortRequest,
    Answer,
    BlockUses,
    EngineInfo,
    FlushCache,
    FromFrontend,
    Load,
    Pause,
    ReadBlocks,
    Register,
    Rejected,
    RejectKind,
    Resume,
    Submit,
)

_log = logging.getLogger(__name__)


class FrontendRequests:
    """Of all frontends."""

    def __init__(
        self,
        link: FrontendLink,
        outbox: Outbox,
        early: EarlySubmissions,
        introduce: Callable[[], tuple[EngineInfo, Load]],
        clock: Callable[[], float],
    ) -> None:
        """`introduce` says what a frontend that registers is told."""
        self._link = link
        self._outbox = outbox
        self._early = early
        self._introduce = introduce
        self._clock = clock
        self._scheduler: Scheduler | None = None
        self._limited_log = LimitedLog(_log)

    @property
    def _taker(self) -> Scheduler | EarlySubmissions:
        return self._early if self._scheduler is None else self._scheduler

    def serve_with(self, scheduler: Scheduler) -> None:
        """From now on this scheduler takes what comes, and what has come."""
        self._scheduler = scheduler
        for frontend, submit, came_s in self._early.take():
            self._submit(frontend, submit, came_s)

    def next_deadline_s(self) -> float | None:
        """When `expire` next has something to do."""
        return self._taker.next_deadline_s()

    def expire(self, now_s: float) -> None:
        """Give up on sequences that waited longer than they wished to."""
        for frontend, rejection in self._taker.expire(now_s):
            self._link.send(frontend, rejection)

    def end_gone(self) -> None:
        """End what frontends left that cannot be reached any more."""
        for frontend in self._link.take_gone():
            self._taker.abort_frontend(frontend)

    def handle(self, frontend: int, message: FromFrontend) -> None:
        """Do what a message asks."""
        match message:
            case Register():
                self._taker.abort_frontend(frontend)
                for introduction in self._introduce():
                    self._link.send(frontend, introduction)
            case Submit():
                self._submit(frontend, message, self._clock())
            case Abort(handles):
                self._each(frontend, handles, self._taker.abort)
            case Pause(handles):
                self._each(frontend, handles, self._taker.pause)
            case Resume(handles):
                self._each(frontend, handles, self._taker.resume)
            case AbortRequest(query=query, request_id=request_id, tenant=tenant):
                finishes = self._taker.abort_request(request_id, tenant)
                self._outbox.add_finishes(finishes)
                self._link.send(frontend, Answer(query, len(finishes)))
            case FlushCache(query=query):
                self._link.send(frontend, Answer(query, self._taker.flush_cache()))
            case ReadBlocks(query=query, first=first, count=count):
                blocks = None if self._scheduler is None else self._scheduler.blocks
                uses = BlockUses(query, b"", 0)
                if blocks is not None:
                    uses = BlockUses(query, blocks.uses(first, count), blocks.num_blocks)
                self._link.send(frontend, uses)

    def _submit(self, frontend: int, request: Submit, came_s: float) -> None:
        try:
            answer = self._taker.submit(frontend, request, came_s)
        except UnanswerableError as error:
            self._limited_log.error("a submission was dropped: %s", error)
            self._link.drop(Dropped.UNFIT)
            return
        except ValueError as error:
            self._limited_log.error(
                "frontend %d sent a submission of request %r that fits nothing: %s", frontend, request.request_id, error
            )
            answer = Rejected(request.handle, RejectKind.INVALID, "", str(error), None)
        if isinstance(answer, Rejected):
            self._link.send(frontend, answer)
        elif answer is not None:
            self._outbox.add_finishes([Event(frontend, answer)])

    def _each(self, frontend: int, handles: bytes, act: Callable[[SequenceKey], bool]) -> None:
        """Of sequences that are known no longer there is nothing to do."""
        try:
            keys = [SequenceKey(frontend, handle) for handle in unpack(handles).tolist()]
        except WireError:
            self._link.drop(Dropped.MALFORMED)
            return
        for key in keys:
            act(key)
