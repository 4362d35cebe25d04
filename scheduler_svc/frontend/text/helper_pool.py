"""Pools of helper processes: untrusted work within limits of time, memory and number.

`helper_process` is their inside. The first process may be started, and prepared, before the server listens; another is
started when those are busy. One whose work takes too long says so and can be asked again; one that ends, because its
memory was spent, is replaced at the next request. Where neither its own timer nor ours ended it, its request may be
innocent (somebody killed it, or the machine had no memory left), and is tried once more, on a process of its own; a
request that two processes do not survive is not.

It knows neither gRPC nor what the work is. Invariants: a process holds one request at a time; a caller that goes away
leaves its request to finish, because a process with an unread answer cannot be used again; one that goes away before
its turn leaves nothing.
"""

import asyncio
import contextlib
import logging
import os
import sys
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from pagewire.scheduler_svc.frontend.errors import Exhausted, ResourceExhausted
from pagewire.scheduler_svc.frontend.fairness import FairTurns
from pagewire.scheduler_svc.frontend.text.helper_process import FRAME_HEADER, TIME_UP, Prepared
from pagewire.scheduler_svc.limited_log import LimitedLog
from pagewire.wire.codec import MAX_FRAME_BYTES, Codec, WireError

_log = logging.getLogger(__name__)

_START_LIMIT_S = 60.0
"""A process takes its time to start, on a busy machine more than its work may take."""
_ENVIRONMENT = ("PATH", "HOME", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "PYTHONUSERBASE", "LANG", "LC_ALL", "TZ")
"""What a helper inherits: enough to find Python's libraries and to know local time, and nothing that is a secret."""

_ENDING_S = 5.0
"""A process whose pipe has ended is gone at once, or stands still."""

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class HelperEndedError(Exception):
    """The process ended, or answered nothing it should."""


class _TimeUpError(HelperEndedError):
    """Its time was up: the process says so, and can be asked again."""


class _HelperKilledError(HelperEndedError):
    """It ended, and no timer had ended it: perhaps for no fault of what it was asked."""


@dataclass(frozen=True, kw_only=True)
class PoolLimits:
    """How long one answer may take, and how many there may be."""

    answer_limit_s: float
    """By when a helper that keeps its own limits has answered or ended."""
    max_processes: int
    max_waiting: int


@dataclass(frozen=True, kw_only=True)
class HelperKind(Generic[Request, Answer]):
    """One kind of helper."""

    module: str
    """Run as a program."""
    work: str
    """What waits, as an error says it: "chat prompts wait to be rendered"."""
    prepare: Request
    """The first request to every process; `Prepared` is the answer that lets others follow."""
    to_helper: Codec[Request]
    from_helper: Codec[Answer]


class _Helper(Generic[Request, Answer]):
    """One process. Not for two callers at a time."""

    def __init__(self, process: asyncio.subprocess.Process, kind: HelperKind[Request, Answer], log: LimitedLog) -> None:
        self._process = process
        self._kind = kind
        self._log = log

    async def exchange(self, request: Request, timeout_s: float) -> Answer:
        """Ask and wait for the answer. Raises HelperEndedError, after which the process is of no use but for a
        _TimeUpError."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise HelperEndedError("started without pipes")
        body = self._kind.to_helper.encode(request)
        try:
            async with asyncio.timeout(timeout_s):
                stdin.write(FRAME_HEADER.pack(len(body)) + body)
                await stdin.drain()
                (length,) = FRAME_HEADER.unpack(await stdout.readexactly(FRAME_HEADER.size))
                if length == 0:
                    raise _TimeUpError("its time was up")
                if length > MAX_FRAME_BYTES:
                    raise WireError(f"an answer of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
                return self._kind.from_helper.decode(await stdout.readexactly(length))
        except (TimeoutError, asyncio.IncompleteReadError, OSError, WireError) as error:
            raise HelperEndedError(str(error)) from error

    async def end(self, *, is_ending: bool = False) -> int:
        """End the process, whatever it does, and wait for it; returns its exit status. One that is ending by itself is
        waited for: a signal to it now could take its own status away (Popen looks for it first, asyncio too late)."""
        if is_ending:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self._process.wait(), _ENDING_S)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        return await self._process.wait()

    async def exchange_or_end(self, request: Request, timeout_s: float) -> Answer:
        """As `exchange`, and a process that is of no use then is ended. Raises HelperEndedError."""
        try:
            return await self.exchange(request, timeout_s)
        except _TimeUpError:
            raise
        except HelperEndedError as error:
            cause = error.__cause__
            is_ending = isinstance(cause, (asyncio.IncompleteReadError, OSError))
            is_ending = is_ending and not isinstance(cause, TimeoutError)  # which is an OSError
            status = await self.end(is_ending=is_ending)
            if is_ending and status not in TIME_UP:
                self._log.warning("a helper process (%s) ended with status %d", self._kind.module, status)
                raise _HelperKilledError(f"ended with status {status}") from error
            raise
        except BaseException:
            # It was given up, or an error that nobody foresaw: what the process holds is unknown.
            await self.end()
            raise


class HelperPool(Generic[Request, Answer]):
    """Processes of one kind. One owner starts and closes it; any task may ask."""

    def __init__(self, kind: HelperKind[Request, Answer], limits: PoolLimits) -> None:
        self._kind = kind
        self._limits = limits
        self._log = LimitedLog(_log)
        self._idle: deque[_Helper[Request, Answer]] = deque()
        self._turns = FairTurns(limits.max_processes)
        self._asking: set[asyncio.Task[Answer]] = set()
        self._num_waiting = 0
        self._starting: asyncio.Task[Answer] | None = None

    def start_soon(self) -> None:
        """Have the first process started while its owner does something else. Whoever asks waits for it; where it
        cannot be started, they find that out by themselves."""
        self._starting = asyncio.create_task(self.start())
        self._starting.add_done_callback(lambda starting: None if starting.cancelled() else starting.exception())

    async def start(self) -> Answer:
        """Start the first process; returns its answer to the preparation. Where that is another than `Prepared`, there
        is no process, and none should be asked. Raises HelperEndedError."""
        try:
            helper, answer = await self._start()
        except _HelperKilledError:
            helper, answer = await self._start()
        if helper is not None:
            self._idle.append(helper)
        return answer

    async def close(self) -> None:
        """End every process; work under way is given up."""
        tasks = [*self._asking, *([] if self._starting is None else [self._starting])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._idle:
            await self._idle.pop().end()

    async def ask(self, request: Request, client: str) -> Answer:
        """Clients that wait have their turns one after the other. Where a process must be started first and cannot be
        prepared, the answer is the one to that. Raises HelperEndedError, ResourceExhausted if too many wait."""
        num_ahead = self._num_waiting + len(self._asking)
        if num_ahead >= self._limits.max_waiting:
            raise ResourceExhausted(
                f"{num_ahead} {self._kind.work}; the limit is {self._limits.max_waiting}",
                retry_after_s=self._limits.answer_limit_s,
                kind=Exhausted.TEXT_WORK,
            )
        self._num_waiting += 1
        try:
            await self._turns.take(client)
        finally:
            self._num_waiting -= 1
        asking = asyncio.create_task(self._ask(request))
        self._asking.add(asking)
        asking.add_done_callback(self._forget)
        return await asyncio.shield(asking)

    def _forget(self, asking: "asyncio.Task[Answer]") -> None:
        self._turns.free()
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()  # its caller may have gone away

    async def _ask(self, request: Request) -> Answer:
        if self._starting is not None and not self._starting.done():
            await asyncio.wait([self._starting])
        try:
            return await self._ask_one(self._idle.pop() if self._idle else None, request)
        except _HelperKilledError:
            # A new one: whatever killed this one may have killed those that are idle too.
            return await self._ask_one(None, request)

    async def _ask_one(self, helper: _Helper[Request, Answer] | None, request: Request) -> Answer:
        if helper is None:
            helper, answer = await self._start()
            if helper is None:
                return answer
        try:
            answer = await helper.exchange_or_end(request, self._limits.answer_limit_s)
        except _TimeUpError:
            self._idle.append(helper)
            raise
        self._idle.append(helper)
        return answer

    async def _start(self) -> tuple[_Helper[Request, Answer] | None, Answer]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            self._kind.module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        helper = _Helper(process, self._kind, self._log)
        answer = await helper.exchange_or_end(self._kind.prepare, _START_LIMIT_S)
        if not isinstance(answer, Prepared):
            await helper.end()
            return None, answer
        return helper, answer
