"""The whole service as a user starts it: `python -m pagewire.scheduler_svc serve`, real processes, real sockets."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import grpc
import psutil

from pagewire.v1 import admin_pb2, admin_pb2_grpc, generation_pb2, inference_pb2, inference_pb2_grpc

LIMIT_S = 60.0
SIM_MODEL = "random:tiny"


_ROLES = {
    "engine": {"pagewire.scheduler_svc.engine"},
    "frontend": {"pagewire.scheduler_svc.frontend", "run"},
    "frontend-fork-server": {"pagewire.scheduler_svc.frontend", "fork-server"},
    "worker": {"pagewire.worker", "run"},
    "worker-fork-server": {"pagewire.worker", "fork-server"},
}


class StartFailed(Exception):
    """The service ended, with this exit status, before it was ready."""


def bearer(key: str) -> list[tuple[str, str]]:
    """The metadata of a call with an API key."""
    return [("authorization", f"Bearer {key}")]


class Service:
    """A running service and stubs for it."""

    def __init__(self, process: subprocess.Popen[str], said: dict[str, Any], operator_key: str | None = None) -> None:
        self.process = process
        self.said = said
        """When it was ready."""
        self.address: str = said["address"]
        self.admin_address: str = said["admin_address"]
        self.channel = grpc.insecure_channel(self.address)
        self.admin_channel = grpc.insecure_channel(self.admin_address)
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(self.admin_channel)
        self._operator = bearer(operator_key) if operator_key else None

    def load(self) -> admin_pb2.Load:
        return self.admin.GetLoad(admin_pb2.GetLoadRequest(), timeout=LIMIT_S, metadata=self._operator).load

    def wait_for_load(self, wanted: Callable[[admin_pb2.Load], bool]) -> admin_pb2.Load:
        """The first load that is as wanted."""
        request = admin_pb2.WatchLoadRequest()
        request.interval.FromMilliseconds(100)
        stream = self.admin.WatchLoad(request, timeout=LIMIT_S, metadata=self._operator)
        try:
            for message in stream:
                if wanted(message.load):
                    return message.load
        finally:
            stream.cancel()
        raise AssertionError("the stream of loads ended")

    def children(self) -> dict[str, psutil.Process]:
        """engine, frontend, worker … → process."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                command = child.cmdline()
                for role, words in _ROLES.items():
                    # Helpers of a frontend are modules below its own.
                    if words <= set(command):
                        found[role] = child
        return found

    def close(self) -> None:
        self.channel.close()
        self.admin_channel.close()


def workers_of(supervisor: int) -> list[psutil.Process]:
    """Worker processes under a supervisor, by rank."""
    found = []
    for child in psutil.Process(supervisor).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if _ROLES["worker"] <= set(child.cmdline()):
                found.append(child)
    return sorted(found, key=lambda child: child.pid)


def _flag(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


@contextmanager
def serve(
    model: str = SIM_MODEL,
    ready_limit_s: float = LIMIT_S,
    program: tuple[str, ...] = ("-m", "pagewire.scheduler_svc"),
    operator_key: str | None = None,
    python: str = sys.executable,
    stderr: int | IO[bytes] | None = None,
    **settings: object,
) -> Iterator[Service]:
    """Start a service on free ports; whatever is left of it is killed when the block ends.

    `program` is what `python` runs; one that is not this process' own finds its packages by itself. `operator_key` is a
    key that may ask for its load, where `settings` name a file of keys. `stderr` gets what all processes write there.
    """
    ready, child_end = os.pipe()
    options = {
        "device": "sim",
        "listen": "127.0.0.1:0",
        "admin_listen": "127.0.0.1:0",
        "log_level": "warning",
        **settings,
    }
    flags = [_flag(name.replace("_", "-"), value) for name, value in options.items()]
    # The suite interprets Triton's kernels in its own process; a service compiles those that it has a device for.
    not_passed = {"TRITON_INTERPRET"} if python == sys.executable else {"TRITON_INTERPRET", "PYTHONPATH"}
    command = [python, *program, "serve", "--quiet", f"--model={model}", *flags]
    process = subprocess.Popen(
        [*command, f"--ready-fd={child_end}"],
        pass_fds=[child_end],
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in not_passed},
    )
    os.close(child_end)
    family: list[psutil.Process] = []
    try:
        with os.fdopen(ready) as pipe:
            assert select.select([pipe], [], [], ready_limit_s)[0], "the service did not become ready"
            line = pipe.readline()
        if not line:
            raise StartFailed(process.wait(LIMIT_S))
        said = json.loads(line)
        family = psutil.Process(process.pid).children(recursive=True)
        service = Service(process, said, operator_key)
        try:
            service.wait_for_load(lambda load: load.state == admin_pb2.SERVICE_STATE_READY)
            yield service
        finally:
            service.close()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for member in family:
            with contextlib.suppress(psutil.Error):
                member.kill()


def generation(
    ids: list[int] | None = None,
    *,
    text: str | None = None,
    chat: generation_pb2.Chat | None = None,
    **fields: Any,
) -> generation_pb2.Generation:
    """A request; `stopping` and `sampling` may be given as dictionaries."""
    prompt = generation_pb2.Prompt(text=text) if text is not None else None
    if chat is not None:
        prompt = generation_pb2.Prompt(chat=chat)
    if prompt is None:
        prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=ids or [1, 2, 3]))
    if "stopping" in fields:
        fields["stopping"] = generation_pb2.Stopping(**fields["stopping"])
    if "sampling" in fields:
        fields["sampling"] = generation_pb2.Sampling(**fields["sampling"])
    return generation_pb2.Generation(prompt=prompt, **fields)


def stream_request(*args: Any, **fields: Any) -> inference_pb2.StreamGenerateRequest:
    return inference_pb2.StreamGenerateRequest(generation=generation(*args, **fields))


def ids_of(events: Iterator[inference_pb2.StreamGenerateResponse] | list[Any]) -> list[int]:
    """The token ids of a stream."""
    return [token.id for event in events if event.HasField("delta") for token in event.delta.tokens]


def gone(processes: list[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Those still alive after that time; zombies that nobody reaps count as gone."""
    deadline = time.monotonic() + within_s
    alive = processes
    while alive and time.monotonic() < deadline:
        alive = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if alive:
            psutil.wait_procs(alive, timeout=0.05)
    return alive
