"""The engine link: the socket to the engine. Beside `kv_event_link` the only module of a frontend that knows ZeroMQ.

A DEALER connects to the engine's ROUTER under a name that is never used twice, so that nothing meant for an earlier
socket reaches this one. Reading hangs on the event loop by the socket's file descriptor: one call drains everything
that waits, which joins tokens of several steps into one delta where the frontend is behind. `zmq.asyncio` lost: it
makes two futures a message and costs 30 µs where this costs 16 (20,000 messages of 300 bytes over ipc, 2 Zen 5
cores, the sender's threads included).

Invariants: a frame that does not decode is counted and dropped; sending never blocks; an Abort, Pause or Resume that
finds the queue full is kept and sent later, in order, because a lost one would leave a sequence running for nobody or
resting for ever.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

import zmq

from pagewire.scheduler_svc.frontend.errors import Unavailable, UnavailableReason
from pagewire.scheduler_svc.limited_log import LimitedLog
from pagewire.wire.codec import MAX_FRAME_BYTES, Codec, WireError
from pagewire.wire.launch import Endpoint
from pagewire.wire.requests import Abort, FromFrontend, Pause, Resume, ToFrontend

_log = logging.getLogger(__name__)
_MAX_QUEUED_FRAMES = 16384
_MAX_FRAMES_PER_TURN = 256
"""After so many the loop's other tasks get a turn."""


class EngineLink:
    """One frontend's connection to the engine. Used from the event loop's thread alone.

    `on_message` may raise WireError for a message that does not fit the state it meets; it is counted like a frame
    that does not decode.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        index: int,
        incarnation: int,
        on_message: Callable[[ToFrontend], None],
        on_bug: Callable[[str, BaseException], None],
    ) -> None:
        """`on_bug` hears what else was raised while the socket was read: after it nothing reads the socket again, since
        the descriptor signals edges."""
        self._endpoint = endpoint
        self._name = f"frontend-{index}:{incarnation}"
        self._generation = 0
        self._on_message = on_message
        self._on_bug = on_bug
        self._outgoing: Codec[FromFrontend] = Codec(FromFrontend)
        self._incoming: Codec[ToFrontend] = Codec(ToFrontend)
        self._context = zmq.Context()
        self._loop = asyncio.get_running_loop()
        self._is_turn_scheduled = False
        self._unsent: deque[Abort | Pause | Resume] = deque()
        self._log = LimitedLog(_log)
        self.dropped_frames = 0
        """Frames that did not decode or did not fit."""
        self._socket = self._connect()

    def _connect(self) -> "zmq.Socket[bytes]":
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, f"{self._name}:{self._generation}".encode())
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, _MAX_QUEUED_FRAMES)
        socket.setsockopt(zmq.RCVHWM, _MAX_QUEUED_FRAMES)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        curve = self._endpoint.curve
        if curve is not None:
            socket.setsockopt(zmq.CURVE_SERVERKEY, curve.server_public.encode())
            socket.setsockopt(zmq.CURVE_PUBLICKEY, curve.own_public.encode())
            socket.setsockopt(zmq.CURVE_SECRETKEY, curve.own_secret.encode())
        socket.connect(self._endpoint.address)
        self._loop.add_reader(int(socket.getsockopt(zmq.FD)), self._take_turn)
        return socket

    def reconnect(self) -> None:
        """Leave the old engine with everything that was queued for it, and connect anew under the next name."""
        self._disconnect()
        self._generation += 1
        self._unsent.clear()
        self._socket = self._connect()

    def close(self) -> None:
        """Disconnect for good."""
        self._disconnect()
        self._context.term()

    def _disconnect(self) -> None:
        self._loop.remove_reader(int(self._socket.getsockopt(zmq.FD)))
        self._socket.close(linger=0)

    def send(self, message: FromFrontend) -> None:
        """Queue a message for the engine. Raises Unavailable when the engine takes nothing."""
        if self._unsent and isinstance(message, Abort | Pause | Resume):
            self._unsent.append(message)  # behind those that wait
            return
        try:
            self._socket.send(self._outgoing.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            if isinstance(message, Abort | Pause | Resume):
                self._unsent.append(message)
                return
            raise Unavailable(
                UnavailableReason.ENGINE_LOST, f"{_MAX_QUEUED_FRAMES} messages wait for the engine", retry_after_s=1.0
            ) from None
        # The descriptor signals edges, and sending may have taken one.
        self._schedule_turn()

    def _schedule_turn(self) -> None:
        if not self._is_turn_scheduled:
            self._is_turn_scheduled = True
            self._loop.call_soon(self._take_scheduled_turn)

    def _take_scheduled_turn(self) -> None:
        self._is_turn_scheduled = False
        if not self._socket.closed:
            self._take_turn()

    def _take_turn(self) -> None:
        try:
            self._read_and_send()
        except BaseException as error:
            self._on_bug("the link to the engine", error)

    def _read_and_send(self) -> None:
        """Handle what waits, and send what could not be sent."""
        for _ in range(_MAX_FRAMES_PER_TURN):
            try:
                frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            self._handle(frame)
            # One message is the rule. To ask whether another is there takes a quarter of the exception's time.
            if not zmq.zmq_poll([(self._socket, zmq.POLLIN)], 0):
                break
        else:
            self._schedule_turn()
        while self._unsent:
            try:
                self._socket.send(self._outgoing.encode(self._unsent[0]), zmq.NOBLOCK)
            except zmq.Again:
                break
            self._unsent.popleft()

    def _handle(self, frame: zmq.Frame) -> None:
        try:
            if frame.more:
                raise WireError(f"a message of {1 + self._skip_message()} frames")
            self._on_message(self._incoming.decode(frame.bytes))
        except WireError as error:
            self.dropped_frames += 1
            self._log.warning("dropped a frame from the engine: %s", error)

    def _skip_message(self) -> int:
        """Read the rest of a message whose first frame was read; returns its number of frames."""
        count = 1
        while self._socket.recv(copy=False).more:
            count += 1
        return count
