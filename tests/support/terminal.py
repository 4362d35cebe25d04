"""A process with a terminal of its own, typed into and read like a person does."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Self

_TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """Runs a command on a pseudo-terminal, which is its controlling one. Use it in a `with`."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._master, slave = pty.openpty()

        # A program of its own takes the terminal: a function between fork and exec would run beside the threads that
        # gRPC starts again in a forked process, on descriptors that are closed there.
        taking = [sys.executable, "-I", "-S", "-c", _TAKE_TERMINAL, *command]
        self.process = subprocess.Popen(
            taking, stdin=slave, stdout=slave, stderr=slave, env=dict(environ), start_new_session=True
        )
        os.close(slave)
        self.shown = ""
        self._read_up_to = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self._master)

    def type(self, text: str) -> None:
        """Press keys; control characters act as they do at a terminal."""
        os.write(self._master, text.encode())

    def type_until(self, text: str, keys: str, tries: int = 20) -> None:
        """Press keys until `text` shows. CPython misses a signal that comes just before readline begins to wait."""
        for _ in range(tries - 1):
            self.type(keys)
            try:
                self.wait_for(text, timeout_s=1)
            except AssertionError:
                continue
            return
        self.type(keys)
        self.wait_for(text)

    def wait_for(self, text: str, timeout_s: float = 20) -> str:
        """Wait until the screen shows `text` after what was waited for before; what came up to its end."""
        deadline = time.monotonic() + timeout_s
        while (found := self.shown.find(text, self._read_up_to)) < 0:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not come; the screen shows {self.shown!r}"
            if select.select([self._master], [], [], left)[0]:
                try:
                    self.shown += os.read(self._master, 4096).decode(errors="replace")
                except OSError:  # the process has closed its side
                    raise AssertionError(f"{text!r} did not come; the process ended after {self.shown!r}") from None
        before, self._read_up_to = self._read_up_to, found + len(text)
        return self.shown[before : self._read_up_to]
