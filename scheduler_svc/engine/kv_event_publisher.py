"""The publisher of KV events: a PUB socket for whoever follows, and a ROUTER for what a follower missed.

It owns both sockets, the numbers of the batches and the last of them. A thread of its own sends: a step of the engine
waits for no socket, and a replay of thousands of batches stands in no step's way. Frames are vLLM's:

    PUB      topic, number (8 bytes, big-endian), batch
    ROUTER   ask   "", first number wanted
             get   "", number, batch   …   and last   "", -1, ""

Everything is bounded: batches that the thread has not sent yet (where they are too many they are dropped, and
followers are told that they know nothing: AllBlocksCleared), batches kept for a replay, by number and bytes, and what
waits for a subscriber that does not read, which loses batches and sees it by their numbers. Numbers begin at 0 with
each engine, and the first batch is an AllBlocksCleared.
"""

import contextlib
import logging
import os
import threading
import time
from collections import deque
from types import TracebackType

import zmq

from pagewire.scheduler_svc.engine.router_sockets import Credentials, Doorkeeper
from pagewire.scheduler_svc.launch import KvEventsLaunch
from pagewire.scheduler_svc.limited_log import LimitedLog
from pagewire.scheduler_svc.startup_errors import StartupError
from pagewire.wire.codec import Codec
from pagewire.wire.kv_events import AllBlocksCleared, KvEvent, KvEventBatch

_log = logging.getLogger(__name__)

NUMBER_BYTES = 8
END = (-1).to_bytes(NUMBER_BYTES, "big", signed=True)
"""Stands for a number behind the last batch of a replay."""
_MAX_UNSENT = 10_000
_MAX_KEPT = 10_000
_MAX_KEPT_BYTES = 64 * 1024 * 1024
_SUBSCRIBER_HIGH_WATER_MARK = 4096
"""Batches that wait for one subscriber."""
_MAX_REQUEST_BYTES = 1024
_RANK = 0
_HEARTBEAT_MS = 10_000


class KvEventPublisher:
    """Publishes until it is left as a context. `publish` is for one thread."""

    def __init__(self, launch: KvEventsLaunch, max_unsent: int = _MAX_UNSENT, max_kept: int = _MAX_KEPT) -> None:
        """Raises StartupError where an address cannot be listened on."""
        self._topic = launch.topic.encode()
        self._context = zmq.Context()
        self._codec: Codec[KvEventBatch] = Codec(KvEventBatch)
        self._unsent: deque[list[KvEvent]] = deque()
        self._max_unsent = max_unsent
        self._kept: deque[tuple[int, bytes]] = deque()
        self._max_kept = max_kept
        self._kept_bytes = 0
        self._next_number = 0
        self._senders_log = LimitedLog(_log)
        self._log = LimitedLog(_log)
        """The thread's own."""
        self._is_closing = False
        self._failure: Exception | None = None
        self._doorkeeper = Doorkeeper(self._context)
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._subscribers = self._bind(zmq.PUB, launch.addresses, _SUBSCRIBER_HIGH_WATER_MARK)
            # A whole replay fits; a peer that asks for another without reading the first is cut short.
            self._replays = self._bind(zmq.ROUTER, launch.replay_addresses, max_kept + 1)
        except StartupError:
            self._doorkeeper.close()
            self._context.destroy(linger=0)
            raise
        self._replays.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._thread = threading.Thread(target=self._run, name="kv-events", daemon=True)
        self._thread.start()

    def _bind(self, kind: int, addresses: tuple[str, ...], high_water_mark: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, high_water_mark)
        socket.setsockopt(zmq.MAXMSGSIZE, _MAX_REQUEST_BYTES)
        socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        self._doorkeeper.guard(socket, f"kv-events-{kind}", Credentials(is_open=True))
        for address in addresses:
            # The socket file of an engine that was killed would still be there.
            if address.startswith("ipc://"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(address.removeprefix("ipc://"))
            try:
                socket.bind(address)
            except zmq.ZMQError as error:
                raise StartupError(f"KV events cannot be published on {address}: {error.strerror}") from error
        return socket

    def publish(self, events: list[KvEvent]) -> None:
        """Send these as one batch, soon. Never waits. Raises RuntimeError where the thread met a bug: followers who
        were left behind without a word would send requests to where nothing is cached."""
        if self._failure is not None:
            raise RuntimeError("the thread that sends KV events met a bug") from self._failure
        if len(self._unsent) >= self._max_unsent:
            self._senders_log.warning(
                "%d batches of KV events could not be sent in time and are dropped", len(self._unsent)
            )
            self._unsent.clear()
            events = [AllBlocksCleared()]
        self._unsent.append(events)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it will wake
            os.write(self._waker, b"\0")

    # The thread's own

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            self._failure = error

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._woken, zmq.POLLIN)
        poller.register(self._replays, zmq.POLLIN)
        while not self._is_closing:
            ready = dict(poller.poll())
            if self._woken in ready:
                os.read(self._woken, 65_536)
            while self._unsent:
                self._send(self._unsent.popleft())
            if self._replays in ready:
                self._replay(self._replays.recv_multipart())

    def _send(self, events: list[KvEvent]) -> None:
        batch = self._codec.encode(KvEventBatch(time.time(), events, _RANK))
        number = self._next_number
        self._next_number += 1
        self._subscribers.send_multipart([self._topic, number.to_bytes(NUMBER_BYTES, "big"), batch])
        self._kept.append((number, batch))
        self._kept_bytes += len(batch)
        while len(self._kept) > self._max_kept or self._kept_bytes > _MAX_KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft()[1])

    def _replay(self, request: list[bytes]) -> None:
        if len(request) != 3 or len(request[2]) != NUMBER_BYTES:
            self._log.warning("a replay of KV events was asked for in %d frames that are no request", len(request))
            return
        peer, first = request[0], int.from_bytes(request[2], "big")
        try:
            for number, batch in self._kept:
                if number >= first:
                    answer = [peer, b"", number.to_bytes(NUMBER_BYTES, "big"), batch]
                    self._replays.send_multipart(answer, zmq.NOBLOCK, copy=False)
            self._replays.send_multipart([peer, b"", END, b""], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            self._log.warning("a replay of KV events could not be sent to its end: %s", error)

    def __enter__(self) -> "KvEventPublisher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closing = True
        self._wake()
        self._thread.join()
        self._doorkeeper.close()
        self._context.destroy(linger=0)
        os.close(self._woken)
        os.close(self._waker)
