"""The sides of the comparison: Pagewire as a service through gRPC, and its peers, each an engine in a process that
takes what to generate as a line of JSON and answers with one.

All have the same methods. A side runs from its first `start` to `close`; between its runs it holds its memory and uses
no processor.
"""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from benchmarks.comparison import Case, Run
from benchmarks.processes import Family

from pagewire.client.bench import runs
from pagewire.client.bench.runs import RunSettings
from pagewire.client.bench.session import Service, Session
from pagewire.client.local import LocalService, Setting
from pagewire.client.sync import Client
from pagewire.client.transport import Transport
from pagewire.v1.admin_pb2 import GetServerInfoResponse

_ANSWER_TIMEOUT_S = 600.0
_END_TIMEOUT_S = 20.0
_LOG_TAIL_BYTES = 4096


class SideFailed(Exception):
    """A side did not start or did not answer."""


class Side(Protocol):
    """What is compared."""

    name: str
    versions: dict[str, str]

    def start(self, first: Case, temperature: float) -> float:
        """Start from nothing and run a first case; seconds until it has ended."""

    def run(self, case: Case, temperature: float) -> Run:
        """All of its requests at once, nothing cached."""

    def family(self) -> Family:
        """Its processes."""

    def close(self) -> None:
        """End it. Harmless when repeated."""


class Pagewire:
    """`pagewire serve` with a service of this package, and the load client of `pagewire bench` in this process."""

    def __init__(self, model: str, settings: Mapping[str, Setting]) -> None:
        self.name = "pagewire"
        self.versions: dict[str, str] = {}
        self._model = model
        self._settings = {"log_level": "warning", **settings}
        self._spawned: LocalService | None = None
        self._service: Service | None = None
        self._pid = 0

    def start(self, first: Case, temperature: float) -> float:
        begin_s = time.perf_counter()
        self._spawned = LocalService(self._model, self._settings, quiet=True)
        ready = self._spawned.start(_ANSWER_TIMEOUT_S)
        self._pid = ready.pid
        with Client(ready.address) as client:
            for prompt, count in zip(first.prompts, first.max_tokens, strict=True):
                client.generate(prompt, temperature=temperature, max_tokens=count, ignore_eos=True)
            model = client.model()
        started_s = time.perf_counter() - begin_s
        transport, admin = Transport(target=ready.address), Transport(target=ready.admin_address)
        self._service = Service(transport=transport, admin=admin, model=model)
        self.versions = dict(self.info().versions)
        return started_s

    def run(self, case: Case, temperature: float) -> Run:
        settings = RunSettings(temperature=temperature, seed=0, max_id=0, warm_up=0)
        summary = asyncio.run(self._measure(case, settings)).summary
        if summary.failed:
            raise SideFailed(f"{summary.failed} requests failed: {'; '.join(summary.errors)}")
        return Run(summary.wall_s, summary.prompt_tokens, summary.cached_tokens, summary.output_tokens)

    async def _measure(self, case: Case, settings: RunSettings) -> runs.Outcome:
        assert self._service is not None
        async with Session(self._service) as session:
            return await runs.throughput(session, case.jobs(), settings)

    def info(self) -> GetServerInfoResponse:
        """What the service says of itself."""

        async def ask() -> GetServerInfoResponse:
            assert self._service is not None
            async with Session(self._service) as session:
                info = await session.server_info()
            assert info is not None
            return info

        return asyncio.run(ask())

    def family(self) -> Family:
        return Family(self._pid)

    def close(self) -> None:
        if self._spawned is not None:
            self._spawned.stop()
            self._spawned = None


class Peer:
    """An engine in a process of its own environment, which runs one of the `*_side.py` beside this file."""

    def __init__(
        self,
        name: str,
        python: str,
        script: Path,
        settings: Mapping[str, Any],
        environment: Mapping[str, str],
    ) -> None:
        """`python` of the environment that has the peer; `settings` is the script's argument, `environment` all of its
        environment variables."""
        self.name = name
        self.versions: dict[str, str] = {}
        self._command = [python, str(script), json.dumps(settings)]
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def start(self, first: Case, temperature: float) -> float:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close
        begin_s = time.perf_counter()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=self._environment,
        )
        self.versions = self._answer()["versions"]
        self.run(first, temperature)
        return time.perf_counter() - begin_s

    def run(self, case: Case, temperature: float) -> Run:
        assert self._process is not None
        assert self._process.stdin is not None
        asked = {"prompts": case.prompts, "max_tokens": case.max_tokens, "temperature": temperature}
        try:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SideFailed(f"{self.name} has ended: {self._last_words()}") from None
        return Run(**self._answer())

    def family(self) -> Family:
        assert self._process is not None
        return Family(self._process.pid)

    def close(self) -> None:
        if self._process is None:
            return
        family = self.family().members()
        assert self._process.stdin is not None
        self._process.stdin.close()  # which it reads to its end
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for member in family[1:]:
            if member.is_running():
                member.kill()
        self._process = None
        if self._log is not None:
            self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(_ANSWER_TIMEOUT_S):
                raise SideFailed(f"{self.name} did not answer within {_ANSWER_TIMEOUT_S:g} s: {self._last_words()}")
        line = self._process.stdout.readline()
        if not line:
            raise SideFailed(f"{self.name} has ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        assert self._log is not None
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_TAIL_BYTES))
        return "\n" + self._log.read().decode(errors="replace")
