"""The worker's end of the socket to the engine; the only module of the worker that knows ZeroMQ.

A DEALER that connects with the identity `rank:incarnation`. Frames that are not messages of this border are counted
and dropped, never raised. Both directions are bounded: the engine keeps at most two plans in flight, so a queue longer
than `_MAX_QUEUED` means that the other side has lost its mind, not that it is busy.

Single-threaded, as ZeroMQ sockets are: only the loop calls it.
"""

from collections.abc import Callable

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from pagewire.wire.codec import MAX_FRAME_BYTES, Codec, WireError
from pagewire.wire.launch import Endpoint
from pagewire.wire.plan import FromWorker, StepResult, ToWorker

_MAX_QUEUED = 64
_POLL_MS = 200
_MAX_HANDSHAKES = 3


class LinkError(Exception):
    """The engine takes no more messages."""


def await_engine(endpoint: Endpoint, progress: Callable[[str, float], None]) -> None:
    """Wait until an engine on another host lets this worker in, for as long as there is none. `progress` is called
    often meanwhile; what it raises ends the wait. Raises LinkError where the engine refuses this worker's keys."""
    context = zmq.Context()
    socket = _dealer(context, endpoint)
    monitor = socket.get_monitor_socket(
        zmq.EVENT_HANDSHAKE_SUCCEEDED
        | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    )
    try:
        socket.connect(endpoint.address)
        failures = 0
        while failures < _MAX_HANDSHAKES:
            if not monitor.poll(_POLL_MS):
                progress("waiting for the engine", 0.0)
                continue
            event = recv_monitor_message(monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return
            # An engine says so where it does not know our key, and ZeroMQ then tries no more. Where we have a wrong key
            # of its, it hangs up; so it does once where it ends just then.
            failures += _MAX_HANDSHAKES if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH else 1
        raise LinkError(
            f"the engine at {endpoint.address} refuses this worker's keys: both sides need those of one "
            "`pagewire serve --make-curve-keys DIR`"
        )
    finally:
        socket.disable_monitor()
        context.destroy(linger=0)


class EngineLink:
    """Sends to and receives from the engine. What it dropped it counts in `dropped_frames`, and tells with results."""

    def __init__(self, endpoint: Endpoint, identity: str) -> None:
        self.dropped_frames = 0
        self._endpoint = endpoint
        self._identity = identity
        self._incoming: Codec[ToWorker] = Codec(ToWorker)
        self._outgoing: Codec[FromWorker] = Codec(FromWorker)
        self._context = zmq.Context()
        self._socket = self._connect()

    def send(self, message: FromWorker) -> None:
        """Queue a message; it goes out when the engine is there. Raises LinkError when the queue is full."""
        if self.dropped_frames and isinstance(message, StepResult):
            message = msgspec.structs.replace(message, dropped_frames=self.dropped_frames)
        try:
            self._socket.send(self._outgoing.encode(message), zmq.NOBLOCK)
        except zmq.Again as error:
            raise LinkError(f"{_MAX_QUEUED} messages wait for an engine that reads none") from error

    def receive(self) -> ToWorker | None:
        """The next message that has arrived, or None at once."""
        while True:
            try:
                frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            if not frame.more and not frame.bytes:
                continue  # asks whether this end is still there, which ZeroMQ has answered
            if not frame.more:
                try:
                    return self._incoming.decode(frame.bytes)
                except WireError:
                    pass
            while frame.more:
                frame = self._socket.recv(copy=False)
            self.dropped_frames += 1

    def wait(self, wakeup_fd: int) -> bool:
        """Sleep until a frame has arrived or `wakeup_fd` is readable; returns whether the latter is."""
        ready = zmq.zmq_poll([(self._socket, zmq.POLLIN), (wakeup_fd, zmq.POLLIN)])
        return (wakeup_fd, zmq.POLLIN) in ready

    def reconnect(self) -> None:
        """Drop the connection with everything queued in either direction, and connect anew."""
        self._socket.close(linger=0)
        self._socket = self._connect()

    def close(self, flush_s: float) -> None:
        """Close; what was sent gets at most `flush_s` to go out."""
        self._socket.close(linger=int(flush_s * 1000))
        self._context.term()

    def _connect(self) -> "zmq.Socket[bytes]":
        socket = _dealer(self._context, self._endpoint)
        socket.identity = self._identity.encode()
        socket.connect(self._endpoint.address)
        return socket


def _dealer(context: "zmq.Context[zmq.Socket[bytes]]", endpoint: Endpoint) -> "zmq.Socket[bytes]":
    """A socket that is not connected yet."""
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.sndhwm = _MAX_QUEUED
    socket.rcvhwm = _MAX_QUEUED
    socket.maxmsgsize = MAX_FRAME_BYTES
    if endpoint.curve is not None:
        socket.curve_serverkey = endpoint.curve.server_public.encode()
        socket.curve_publickey = endpoint.curve.own_public.encode()
        socket.curve_secretkey = endpoint.curve.own_secret.encode()
    elif endpoint.password is not None:
        socket.plain_username = b"worker"
        socket.plain_password = endpoint.password.encode()
    return socket
