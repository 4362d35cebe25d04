"""The engine client: the engine as the rest of the frontend sees it, status, sequences and queries over one link.

It turns the wire's union into calls, and a restart of the engine into registering and submitting anew. It does the same
with an engine that falls silent: one that lives on may have given this frontend up, because it left too much unread,
and would never say so. It knows neither gRPC nor text.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping

from pagewire.scheduler_svc.endings import is_ending
from pagewire.scheduler_svc.frontend.errors import InternalError, Unavailable, UnavailableReason
from pagewire.scheduler_svc.frontend.streams.engine_link import EngineLink
from pagewire.scheduler_svc.frontend.streams.engine_status import EngineStatus
from pagewire.scheduler_svc.frontend.streams.measures import FrontendMeasures
from pagewire.scheduler_svc.frontend.streams.sequences import SequenceTable
from pagewire.scheduler_svc.launch import FrontendLaunch
from pagewire.wire.codec import WireError
from pagewire.wire.requests import (
    MAX_BLOCKS_READ,
    AbortRequest,
    Answer,
    BlockUses,
    EngineInfo,
    EngineState,
    FlushCache,
    Load,
    ReadBlocks,
    Register,
    Rejected,
    ToFrontend,
    TokenBatch,
)

_log = logging.getLogger(__name__)
_QUERY_TIMEOUT_S = 10.0
_SILENCE_CHECK_INTERVAL_S = 0.5


class EngineClient:
    """One frontend's engine. Used from the event loop's thread alone."""

    def __init__(
        self,
        launch: FrontendLaunch,
        clock: Callable[[], float],
        on_change: Callable[[], None],
        on_internal_error: Callable[[InternalError], None],
        measures: FrontendMeasures | None = None,
    ) -> None:
        """`on_change` is called when the engine's state changes; `on_internal_error` when a message of the engine met a
        bug of ours, after which no stream can be trusted; `measures` are told of tokens."""
        self._launch = launch
        self._on_internal_error = on_internal_error
        self.status = EngineStatus(clock, launch.engine_timeout_s, on_change)
        self._link = EngineLink(launch.engine, launch.index, launch.incarnation, self._handle, self._met_a_bug)
        vocab_size = launch.model.decoder.vocab_size
        self.sequences = SequenceTable(self._link.send, self._call_later, clock, vocab_size, measures)
        self._must_resubmit = False
        self._queries: dict[int, asyncio.Future[Answer | BlockUses]] = {}
        self._query_ids = itertools.count(1)
        self._clock = clock
        self._timeout_s = launch.engine_timeout_s
        self._send_register()

    def _send_register(self) -> None:
        self._registered_s = self._clock()
        self._link.send(Register(self._launch.index, self._launch.incarnation, self._link.generation))

    @property
    def dropped(self) -> Mapping[str, int]:
        """Frames from the engine that were dropped here, by kind."""
        return self._link.dropped

    def close(self) -> None:
        """Leave the engine."""
        self._link.close()

    def engine_restarted(self) -> None:
        """A new engine binds the old address: connect anew, and hand over every open sequence once it can run them."""
        self.status.restarted()
        self._connect_anew("the engine was started again")

    async def follow(self) -> None:
        """Connect anew when the engine has fallen silent, once for each silence, until cancelled. Until it has spoken
        at all, register again from time to time: it may have taken somebody else for this frontend. Beside that, end
        streams that nobody reads."""
        was_lost = False
        while True:
            await asyncio.sleep(_SILENCE_CHECK_INTERVAL_S)
            self.sequences.end_overdue()
            if not self.status.has_spoken and self._clock() - self._registered_s > self._timeout_s:
                self._send_register()
            # Twice in a row: a frontend that stood still itself first reads what came meanwhile.
            if self.status.is_lost and was_lost and not self._must_resubmit:
                _log.warning("the engine has fallen silent; connecting anew")
                self._connect_anew("the engine fell silent")
            was_lost = self.status.is_lost

    def _connect_anew(self, why: str) -> None:
        self._link.reconnect()
        self.sequences.forget_retries()
        for query in self._queries.values():
            if not query.done():
                query.set_exception(Unavailable(UnavailableReason.ENGINE_LOST, why, 1.0))
        self._must_resubmit = True
        self._send_register()

    def _resubmit_when_ready(self) -> None:
        if self._must_resubmit and self.status.state in (EngineState.READY, EngineState.DRAINING):
            self._must_resubmit = False
            self.sequences.resubmit_all()

    async def abort_request(self, request_id: str, tenant: str | None) -> int:
        """End a tenant's request of any frontend, or, with no tenant given, all tenants' requests of that id; returns
        how many sequences ended. Raises Unavailable."""
        query = next(self._query_ids)
        return _value(await self._ask(query, AbortRequest(query, request_id, tenant)))

    async def flush_cache(self) -> int:
        """Forget cached blocks that no sequence holds; returns how many. Raises Unavailable."""
        query = next(self._query_ids)
        return _value(await self._ask(query, FlushCache(query)))

    async def read_blocks(self, most: int) -> tuple[bytes, int]:
        """What the first `most` blocks are used for, as `requests.BlockUses` says it, and how many there are. In
        pieces, between which the engine goes on. Raises Unavailable."""
        uses = b""
        while True:
            query = next(self._query_ids)
            count = min(MAX_BLOCKS_READ, most - len(uses))
            answer = await self._ask(query, ReadBlocks(query, len(uses), count))
            assert isinstance(answer, BlockUses), answer
            uses += answer.uses
            if len(answer.uses) < MAX_BLOCKS_READ or len(uses) >= most:
                return uses, answer.num_blocks

    async def _ask(self, query: int, message: AbortRequest | FlushCache | ReadBlocks) -> Answer | BlockUses:
        if self._must_resubmit:
            # It does not know the streams yet: its answer would be that there are none.
            raise Unavailable(
                UnavailableReason.ENGINE_LOST, "the engine does not have this frontend's streams yet", 1.0
            )
        answer: asyncio.Future[Answer | BlockUses] = asyncio.get_running_loop().create_future()
        self._queries[query] = answer
        try:
            self._link.send(message)
            async with asyncio.timeout(_QUERY_TIMEOUT_S):
                return await answer
        except TimeoutError:
            raise Unavailable(
                UnavailableReason.ENGINE_LOST, f"the engine has not answered within {_QUERY_TIMEOUT_S:g} s", 1.0
            ) from None
        finally:
            del self._queries[query]

    def _handle(self, message: ToFrontend) -> None:
        try:
            match message:
                case TokenBatch():
                    self.sequences.apply(message)
                case Load():
                    self.status.heard_load(message)
                    self._resubmit_when_ready()
                case Rejected():
                    self.sequences.reject(message)
                case EngineInfo():
                    self.status.heard_info(message)
                    self._resubmit_when_ready()
                case Answer() | BlockUses():
                    query = self._queries.get(message.query)
                    if query is not None and not query.done():
                        query.set_result(message)
        except WireError:
            raise
        except BaseException as error:
            self._met_a_bug(type(message).__name__, error)

    def _call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        def call() -> None:
            try:
                callback()
            except BaseException as error:
                self._met_a_bug("a timer", error)

        asyncio.get_running_loop().call_later(delay_s, call)

    def _met_a_bug(self, what: str, error: BaseException) -> None:
        """In a callback: the event loop would log it and go on, with streams that nobody serves any more."""
        if is_ending(error):
            raise error
        _log.error("%s met a bug", what, exc_info=error)
        self._on_internal_error(InternalError(f"{what}: {error!r}"))


def _value(answer: Answer | BlockUses) -> int:
    assert isinstance(answer, Answer), answer
    return answer.value
