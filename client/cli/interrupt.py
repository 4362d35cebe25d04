"""Ctrl-C, in a program that waits inside gRPC: it ends the program, or the answer that streams.

Python's own way is an exception between any two instructions of the main thread. That may come between those with
which gRPC's library takes and gives back a lock; nobody else gets the lock then, and the next call, or the program's
end, waits for ever. And where the signal comes just before the thread begins to wait, nothing comes of it at all. So
while calls are under way it is a thread of ours that hears of the signal, and the main thread raises nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

INTERRUPTED = 130
"""Exit status."""

_BLOCK_ENDED = 0  # no signal's number


@contextmanager
def ends_program() -> Iterator[None]:
    """Ctrl-C ends the process at once. Its connections end with it, and a service of its own sees that it has gone.

    Nothing changes where the signal is ignored, or in another thread than the main one.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    with _calls(lambda _number: os._exit(INTERRUPTED), signal.SIGINT):
        yield


@contextmanager
def raises() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, as at a prompt. No call may be under way."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        yield
        return
    heard_by = signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        signal.set_wakeup_fd(heard_by)


class Closable(Protocol):
    """Whatever Ctrl-C may end."""

    def close(self) -> None: ...


class EndsAnswer:
    """In its `hears`, Ctrl-C closes what `closes` names, or is going to name."""

    def __init__(self) -> None:
        self.pressed = False
        self.number = 0
        """Of the signal that came last."""
        self._lock = threading.Lock()
        self._named: Closable | None = None

    @contextmanager
    def hears(self, *others: int) -> Iterator[None]:
        """Main thread only. `others` are signals that do the same, where they are not ignored, as under nohup."""
        heard = [number for number in others if signal.getsignal(number) is not signal.SIG_IGN]
        with _calls(self._press, signal.SIGINT, *heard):
            yield

    def closes(self, named: Closable) -> None:
        """Name it. It is closed at once where the key was pressed before."""
        with self._lock:
            self._named = named
            pressed = self.pressed
        if pressed:
            named.close()

    def _press(self, number: int) -> None:
        with self._lock:
            self.pressed, self.number = True, number
            named = self._named
        if named is not None:
            named.close()


@contextmanager
def _calls(pressed: Callable[[int], object], *numbers: int) -> Iterator[None]:
    """At each of these signals, call `pressed` with its number in a thread of its own. Main thread only."""
    heard, heard_by = os.pipe()
    os.set_blocking(heard_by, False)

    def listen() -> None:
        while (number := os.read(heard, 1)[0]) != _BLOCK_ENDED:
            if number in numbers:
                pressed(number)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    before = {number: signal.signal(number, lambda _number, _frame: None) for number in numbers}
    heard_by_before = signal.set_wakeup_fd(heard_by)
    try:
        yield
    finally:
        signal.set_wakeup_fd(heard_by_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(heard_by, bytes([_BLOCK_ENDED]))
        listener.join()
        os.close(heard)
        os.close(heard_by)
