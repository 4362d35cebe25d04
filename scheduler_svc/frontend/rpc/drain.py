"""Draining: which calls run, and whether more may.

    OPEN ──begin()──▶ OPEN, draining ──refuse_new()──▶ CLOSED ──▶ idle when the last call leaves

Of streams it knows that they can fail. Invariant: a call that was let in is counted until it leaves.
"""

import asyncio

from pagewire.scheduler_svc.frontend.errors import Unavailable, UnavailableReason
from pagewire.scheduler_svc.frontend.streams.stream import RequestStream


class RunningCalls:
    """Counts the generating calls of this frontend."""

    def __init__(self) -> None:
        self._streams: set[RequestStream] = set()
        self._why = (UnavailableReason.DRAINING, "the server is draining")
        self.is_closed = False
        """Whether no call may come in any more."""
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = asyncio.Event()
        """Set once draining has begun."""

    def check(self) -> None:
        """Raise Unavailable when no call may come in any more."""
        if self.is_closed:
            raise self._refusal()

    def enter(self, stream: RequestStream) -> None:
        """A call begins. Raises Unavailable."""
        self.check()
        self._streams.add(stream)
        self._idle.clear()

    def leave(self, stream: RequestStream) -> None:
        """It has ended."""
        self._streams.discard(stream)
        if not self._streams:
            self._idle.set()

    def refuse_new(self) -> None:
        """From now on no call comes in."""
        self.is_closed = True

    def lose_process(self, message: str) -> None:
        """Calls do not end because the server drains: they are told so, and may be made again elsewhere or later."""
        self._why = (UnavailableReason.WORKER_LOST, message)

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait for the last call to leave; False when it has not within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def cut(self) -> int:
        """End every call that still runs with UNAVAILABLE; returns how many there were."""
        streams = list(self._streams)
        for stream in streams:
            stream.fail(self._refusal())
        return len(streams)

    def _refusal(self) -> Unavailable:
        reason, message = self._why
        return Unavailable(reason, message, retry_after_s=None)
