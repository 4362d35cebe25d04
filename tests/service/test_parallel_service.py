"""A model over several ranks, as the whole service: the tokens of one rank, whatever dies, and ranks from elsewhere."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.service import LIMIT_S, Service, StartFailed, ids_of, serve, stream_request, workers_of

from pagewire.scheduler_svc.supervisor.curve_keys import make_curve_keys
from pagewire.v1 import admin_pb2

MODEL = "random:tiny@5"
OPTIONS = {
    "device": "cpu",
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 4,
    "num_threads": 1,
    "model": MODEL,
}
LONG = {"max_tokens": 120, "ignore_eos": True}
SAMPLED = stream_request([4, 5, 6], stopping=LONG, sampling={"seed": 3})
GREEDY = stream_request([9, 8], stopping=LONG, sampling={"temperature": 0})


def tokens_of(service: Service) -> list[list[int]]:
    return [ids_of(service.inference.StreamGenerate(request, timeout=LIMIT_S)) for request in (SAMPLED, GREEDY)]


def survives(service: Service, victim: psutil.Process, number: signal.Signals, expected: list[int]) -> None:
    """A stream over a process's end is as without it."""
    call = service.inference.StreamGenerate(SAMPLED, timeout=LIMIT_S)
    events = [next(call), next(call)]
    victim.send_signal(number)
    assert ids_of([*events, *call]) == expected
    service.wait_for_load(lambda load: load.state == admin_pb2.SERVICE_STATE_READY and load.running_sequences == 0)


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """What one rank says."""
    with serve(**OPTIONS) as service:
        return tokens_of(service)


def test_two_ranks_say_what_one_says_and_a_lost_one_is_a_pause(expected: list[list[int]]) -> None:
    with serve(**OPTIONS, tensor_parallel_size=2) as service:
        assert tokens_of(service) == expected
        first = workers_of(service.process.pid)
        assert len(first) == 2
        survives(service, first[1], signal.SIGKILL, expected[0])
        second = workers_of(service.process.pid)
        assert len(second) == 2
        assert not {child.pid for child in first} & {child.pid for child in second}
        survives(service, service.children()["engine"], signal.SIGKILL, expected[0])
        assert tokens_of(service) == expected
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(LIMIT_S) == 0


def test_a_model_that_does_not_divide_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StartFailed, match="2"), serve(**OPTIONS, tensor_parallel_size=4):
        pass
    assert "tensor_parallel_size is 4, which does not divide the model's 2 KV heads" in capfd.readouterr().err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def remote_rank(engine: str, keys: Path, log: Path, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """`pagewire worker` for rank 1, as on another host."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "pagewire.client", "worker", "--quiet", "--rank=1", f"--connect={engine}"]
    with log.open("wb") as stderr:
        process = subprocess.Popen([*command, f"--curve-dir={keys}", *flags], stderr=stderr)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()


def test_a_rank_from_elsewhere(expected: list[list[int]], tmp_path: Path) -> None:
    server_keys, rank_keys, other_keys = tmp_path / "server", tmp_path / "rank", tmp_path / "other"
    make_curve_keys(server_keys)
    make_curve_keys(other_keys)
    rank_keys.mkdir(0o700)
    os.link(server_keys / "worker.json", rank_keys / "worker.json")  # all that the other host has
    engine, meeting = (f"127.0.0.1:{free_port()}" for _ in range(2))
    shared = {**OPTIONS, "tensor_parallel_size": 2, "remote_workers": 1, "distributed_address": meeting}
    serving = serve(**shared, worker_transport=f"tcp://{engine}", curve_dir=server_keys, max_restarts=10)
    logs = [tmp_path / f"{name}.log" for name in ("right", "keys", "model")]
    with (
        remote_rank(f"tcp://{engine}", rank_keys, logs[0], **shared) as right,
        remote_rank(f"tcp://{engine}", other_keys, logs[1], **shared) as wrong_keys,
        remote_rank(f"tcp://{engine}", rank_keys, logs[2], **shared | {"model": "random:tiny@6"}) as wrong_model,
        serving as service,
    ):
        assert wrong_keys.wait(LIMIT_S) == 1
        assert wrong_model.wait(LIMIT_S) == 1
        assert tokens_of(service) == expected
        (remote,) = workers_of(right.pid)
        survives(service, remote, signal.SIGKILL, expected[0])
        survives(service, service.children()["engine"], signal.SIGKILL, expected[0])
        right.terminate()
        assert right.wait(LIMIT_S) == 0
    assert "refuses this worker's keys" in logs[1].read_text()
    assert "rank 1 differs from rank 0 in model.random_seed: 6 here, 5 there" in logs[2].read_text()
    assert "Traceback" not in logs[1].read_text() + logs[2].read_text()
