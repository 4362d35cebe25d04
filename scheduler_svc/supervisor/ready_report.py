"""Ready report: says that the server is up, a line on stdout for people, a JSON object for scripts."""

import contextlib
import os
from pathlib import Path
from types import TracebackType

import msgspec

from pagewire.scheduler_svc.models.cache import write_atomically
from pagewire.scheduler_svc.standard_streams import announce
from pagewire.scheduler_svc.startup_errors import SettingsError, StartupError
from pagewire.scheduler_svc.supervisor.server_plan import Addresses


class ReadyLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """What `--ready-fd` and `--ready-file` get, as one line of JSON."""

    address: str
    admin_address: str
    """Empty where AdminService is off."""
    model: str
    pid: int
    """Of the supervisor."""
    openai_url: str = ""
    """Of OpenAI's endpoints; empty where there are none."""
    metrics_url: str = ""
    """Of Prometheus' metrics; empty where there are none."""


class ReadyReport:
    """Where to say so. Use as a context manager: the file goes with the server, and the descriptor is closed with
    nothing written where the server does not come up."""

    def __init__(self, descriptor: int | None, file: Path | None) -> None:
        """Raises SettingsError for a descriptor that is not open, or a file whose folder is missing."""
        if file is not None and not file.parent.is_dir():
            raise SettingsError(f"--ready-file {file}: there is no folder {file.parent}")
        if descriptor is not None:
            try:
                os.set_inheritable(descriptor, False)
            except OSError as error:
                raise SettingsError(f"--ready-fd {descriptor} is not an open descriptor") from error
        self._descriptor = descriptor
        self._file = file

    def announce(self, model: str, addresses: Addresses, openai_url: str = "", metrics_url: str = "") -> None:
        """Say it, once. Raises StartupError for a file that cannot be written: whoever waits for it would for ever."""
        admin = f", admin on {addresses.admin_address}" if addresses.admin_address else ""
        openai = f", OpenAI's endpoints on {openai_url}" if openai_url else ""
        metrics = f", metrics on {metrics_url}" if metrics_url else ""
        announce(f"listening on {addresses.address}{admin}{openai}{metrics}, model {model}")
        said = ReadyLine(addresses.address, addresses.admin_address, model, os.getpid(), openai_url, metrics_url)
        line = msgspec.json.encode(said) + b"\n"
        if self._file is not None:
            try:
                write_atomically(self._file, line)
            except OSError as error:
                raise StartupError(f"--ready-file {self._file} cannot be written: {error.strerror}") from error
        if self._descriptor is not None:
            # Whoever asked may be gone; that is no reason to stop serving. The line fits a pipe's atomic size.
            with contextlib.suppress(OSError):
                os.write(self._descriptor, line)
            self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "ReadyReport":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if self._file is not None:
            self._file.unlink(missing_ok=True)
