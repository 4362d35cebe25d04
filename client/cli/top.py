"""`pagewire top`: the engine at work, in a terminal: its figures and its KV blocks, anew every second."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from pagewire.client.cli import connection, interrupt
from pagewire.client.cli.engine_picture import Seen, picture
from pagewire.client.cli.printing import console
from pagewire.client.cli.streams import is_unicode
from pagewire.client.errors import InvalidRequest, PagewireError, ProtocolError, Unavailable, from_rpc_error
from pagewire.client.transport import Transport
from pagewire.v1 import admin_pb2 as pb
from pagewire.v1 import admin_pb2_grpc

DEFAULT_ADMIN_TARGET = "127.0.0.1:50052"

_LEAST_INTERVAL_S, _MOST_INTERVAL_S = 0.5, 3600.0
_RETRY_S = 1.0
_ONCE_HEIGHT = 24


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command and its flags."""
    parser = commands.add_parser(
        "top",
        help="watch the engine at work",
        description="Sequences, speeds and KV blocks of a service, from its AdminService, until q or Ctrl-C.",
    )
    connection.add_admin_flags(parser, DEFAULT_ADMIN_TARGET)
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="between two pictures (1)")
    parser.add_argument("--once", action="store_true", help="print one picture and end")
    parser.set_defaults(run=run, hears_signals=True)


def run(args: argparse.Namespace) -> int:
    """0 at the end of what was asked for. Raises PagewireErrors."""
    if not _LEAST_INTERVAL_S <= args.interval <= _MOST_INTERVAL_S:
        limits = f"{_LEAST_INTERVAL_S:g} to {_MOST_INTERVAL_S:g} s"
        raise InvalidRequest(f"--interval is {args.interval:g}; it must be {limits}")
    if not args.once and not sys.stdout.isatty():
        raise InvalidRequest("top draws on a terminal, and standard output is none; --once prints one picture")
    transport = Transport(target=args.admin_target, api_key=args.admin_api_key, tls=connection.tls(args))
    with transport.open() as channel:
        watch = _Watch(channel, transport, args.interval)
        ends = interrupt.EndsAnswer()
        ends.closes(watch)
        # However it is told to end, it leaves the terminal as it was.
        with ends.hears(signal.SIGTERM, signal.SIGHUP):
            if args.once:
                _print_once(watch)
            else:
                _draw(watch)
        if ends.pressed and (args.once or ends.number != signal.SIGINT):
            return 128 + ends.number
    return 0


class _Watch:
    """An engine's moments, as they come; blocks on a thread of their own."""

    def __init__(self, channel: grpc.Channel, transport: Transport, interval_s: float) -> None:
        self._admin = admin_pb2_grpc.AdminServiceStub(channel)
        self._target = transport.target
        self._metadata = transport.metadata()
        self._interval_ms = round(1000 * interval_s)
        self._calls: list[Any] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.blocks: pb.WatchBlocksResponse | None = None
        """The newest."""

    def close(self) -> None:
        """No more moments. From any thread."""
        self._ended.set()
        with self._lock:
            calls = self._calls
        for call in calls:
            call.cancel()

    def moments(self) -> Iterator[Seen | str]:
        """Until `close`; a text where the service does not answer, which is asked again. Raises PagewireErrors where it
        did not answer at all."""
        blocks = threading.Thread(target=self._read_blocks, daemon=True)
        blocks.start()
        try:
            yield from self._read_loads()
        finally:
            self.close()
            blocks.join()

    def _read_loads(self) -> Iterator[Seen | str]:
        has_answered = False
        while not self._ended.is_set():
            request = pb.WatchLoadRequest()
            request.interval.FromMilliseconds(self._interval_ms)
            try:
                for message in self._called(self._admin.WatchLoad(request, metadata=self._metadata)):
                    has_answered = True
                    yield Seen(time.monotonic(), message.load)
            except grpc.RpcError as error:
                if self._ended.is_set():
                    return
                said = from_rpc_error(error)
                if not has_answered:
                    raise self._unreachable(said) from error
                yield str(said)
            self._ended.wait(_RETRY_S)

    def _unreachable(self, error: PagewireError) -> PagewireError:
        if isinstance(error, ProtocolError):
            return InvalidRequest(f"{self._target} has no AdminService; a service names its address as it starts")
        return connection.unreachable(self._target, error) if isinstance(error, Unavailable) else error

    def _read_blocks(self) -> None:
        request = pb.WatchBlocksRequest()
        request.interval.FromMilliseconds(self._interval_ms)
        while not self._ended.is_set():
            try:
                for message in self._called(self._admin.WatchBlocks(request, metadata=self._metadata)):
                    self.blocks = message
            except grpc.RpcError as error:
                self.blocks = None
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # a service of an earlier release
                    return
            self._ended.wait(_RETRY_S)

    def _called(self, call: Any) -> Any:
        with self._lock:
            self._calls = [each for each in self._calls if each.is_active()] + [call]
        if self._ended.is_set():
            call.cancel()
        return call


def _print_once(watch: _Watch) -> None:
    """Rates need two moments."""
    seen: list[Seen] = []
    for moment in watch.moments():
        if isinstance(moment, Seen):
            seen.append(moment)
        if len(seen) == 2:
            watch.close()
            shown = console()
            shown.print(_shown(seen[0], seen[1], watch, shown, _ONCE_HEIGHT))


def _draw(watch: _Watch) -> None:
    shown = Console(highlight=False)
    before: Seen | None = None
    with _keys(watch), Live(console=shown, screen=True, auto_refresh=False) as live:
        for moment in watch.moments():
            if isinstance(moment, Seen):
                live.update(_shown(before, moment, watch, shown, shown.height), refresh=True)
                before = moment
            else:
                live.update(Text(f"no answer: {moment}\nasking again; q ends", "red"), refresh=True)


def _shown(before: Seen | None, now: Seen, watch: _Watch, where: Console, height: int) -> RenderableType:
    return picture(before, now, watch.blocks, where.width, height, is_unicode=is_unicode(sys.stdout))


@contextmanager
def _keys(watch: _Watch) -> Iterator[None]:
    """q ends the watch, where standard input is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    ended = threading.Event()

    def listen() -> None:
        while not ended.is_set():
            if select.select([keyboard], [], [], 0.2)[0] and _is_end(os.read(keyboard, 64)):
                watch.close()
                return

    tty.setcbreak(keyboard)
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        ended.set()
        listener.join()
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _is_end(typed: bytes) -> bool:
    return not typed or b"q" in typed.lower()
