"""The service's commands with standard streams that are closed, full, or without a reader; and other surroundings."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import psutil
import pytest
from support.service import LIMIT_S, ids_of, stream_request
from support.supervised import ScriptedServer, wait_for

from pagewire.client import Client
from pagewire.v1 import inference_pb2_grpc

RunServer = Callable[..., ScriptedServer]

SERVICE = [sys.executable, "-m", "pagewire.scheduler_svc"]
LOST = ("2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full", "> >(:)", "2> >(:)", "> >(:) 2> >(:)")


def run(*arguments: str, redirect: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """Of the service's command, in a shell that redirects its streams."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PAGEWIRE_")}
    shell = ["bash", "-c", f'"$@" {redirect}', "bash", *SERVICE, *arguments]
    return subprocess.run(shell, capture_output=True, text=True, errors="replace", timeout=60, env=clean | environ)


@pytest.mark.parametrize("redirect", LOST)
def test_a_server_serves_whatever_its_streams_are(run_server: RunServer, redirect: str) -> None:
    server = run_server(redirect=redirect)
    server.ready()
    os.kill(server.heard("worker-0", "ready")["pid"], signal.SIGKILL)  # which is logged
    server.heard("worker-0", "ready", incarnation=1)
    server.signal(signal.SIGTERM)
    status, out, err = server.end()
    assert status == 0
    assert "Traceback" not in out + err


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full", "2> >(:)"])
def test_why_it_failed_is_said_on_what_is_open(run_server: RunServer, redirect: str) -> None:
    status, out, err = run_server(redirect=redirect, worker="fail").end()
    assert status == 1
    assert out == "pagewire: worker 0 cannot start: the script says so\n"
    assert err == ""


def test_a_closed_streams_number_is_nobody_elses(run_server: RunServer) -> None:
    server = run_server(redirect="<&- >&- 2>&-")
    server.ready()
    for pid in (server.process.pid, *server.child_pids()):
        assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)} == {"/dev/null"}


@contextmanager
def real_server(redirect: str, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A server with real children, its streams redirected: address and pid."""
    ready = tmp_path / "ready"
    flags = ["--device=sim", "--model=random:tiny", "--listen=127.0.0.1:0", "--admin-listen="]
    shell = ["bash", "-c", f'exec "$@" {redirect}', "bash", *SERVICE, "serve", *flags, f"--ready-file={ready}"]
    process = subprocess.Popen([*shell, "--log-level=debug"])
    try:
        said = json.loads(wait_for(lambda: ready.exists() and ready.read_text(), "the server", within_s=LIMIT_S))
        yield said["address"], process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()


def is_worker(process: psutil.Process) -> bool:
    with suppress(psutil.Error):  # the shell's own child has ended, and is a zombie until it is waited for
        return "pagewire.worker" in process.cmdline()
    return False


@pytest.mark.slow
@pytest.mark.parametrize("redirect", ["2> >(:)", "2>/dev/full"])
def test_children_serve_without_anyone_who_reads_their_logs(redirect: str, tmp_path: Path) -> None:
    with real_server(redirect, tmp_path) as (address, pid), grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request = stream_request(stopping={"max_tokens": 3, "ignore_eos": True})
        assert len(ids_of(stub.StreamGenerate(request, timeout=LIMIT_S))) == 3
        children = psutil.Process(pid).children(recursive=True)
        (worker,) = (child for child in children if is_worker(child))
        worker.kill()
        with Client(address) as client:  # which asks again where the service says that its worker is on its way
            result = client.generate([1, 2, 3], timeout_s=LIMIT_S, max_tokens=3, ignore_eos=True)
        assert len(result.outputs[0].token_ids) == 3


@pytest.mark.parametrize(
    "arguments", [("serve", "--print-config"), ("serve", "--help"), ("models",), ("models", "--json")]
)
def test_what_cannot_be_printed_is_said(arguments: tuple[str, ...]) -> None:
    full = run(*arguments, redirect=">/dev/full")
    assert full.returncode == 1
    assert full.stderr == "pagewire: standard output cannot be written: No space left on device\n"
    closed = run(*arguments, redirect=">&-")
    assert closed.returncode == 1
    assert closed.stderr == "pagewire: standard output is closed\n"
    for unbuffered in ("", "1"):
        gone = run(*arguments, redirect="> >(:); status=$?; wait; exit $status", PYTHONUNBUFFERED=unbuffered)
        assert (gone.returncode, gone.stderr) in ((141, ""), (0, ""))  # 0: the pipe was there until the end


def test_a_reader_that_has_gone_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*SERVICE, "models"], stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full"])
def test_a_wrong_flag_is_said_on_what_is_open(redirect: str) -> None:
    done = run("serve", "--bogus", redirect=redirect)
    assert done.returncode == 2
    assert "unrecognized arguments: --bogus" in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict"])
def test_a_terminal_of_another_encoding(encoding: str, tmp_path: Path) -> None:
    done = run("serve", "--print-config", "--model", "café 中", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    helped = run("serve", "--help", PYTHONIOENCODING=encoding)
    assert (helped.returncode, helped.stderr) == (0, "")
    refused = run("serve", "--device=cpu", "--model", str(tmp_path / "中"), PYTHONIOENCODING=encoding)
    assert refused.returncode == 1
    assert refused.stderr.startswith("pagewire: model ")


@pytest.mark.parametrize("name", ["pagewire", "pagewire-admin", "pagewire-headless"])
def test_a_service_of_a_similar_name_beside_the_pod(name: str) -> None:
    prefix = name.upper().replace("-", "_")
    family = {
        f"{prefix}_SERVICE_HOST": "10.0.0.7",
        f"{prefix}_SERVICE_PORT": "50051",
        f"{prefix}_PORT": "tcp://10.0.0.7:50051",
        f"{prefix}_PORT_50051_TCP_ADDR": "10.0.0.7",
    }
    done = run("serve", "--print-config", **family)
    assert (done.returncode, done.stderr) == (0, "")


def test_files_of_the_working_directory_are_no_modules_of_ours(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('not this one')\n")
    command = [sys.executable, "-P", "-m", "pagewire.client", "serve", "--print-config"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--runtime-dir=/dev/null/x", "runtime_dir = '/dev/null/x' cannot be made: Not a directory"),
        (f"--runtime-dir=/tmp/{'x' * 120}", "too long: a socket's path in it has"),
        ("--runtime-dir=~nobodyatall/x", "runtime_dir = '~nobodyatall/x' cannot be found"),
        ("--cache-dir=~nobodyatall/x", "cache_dir = '~nobodyatall/x' cannot be found"),
    ],
)
def test_folders_that_cannot_be_had(flag: str, message: str) -> None:
    done = run("serve", "--model=random:tiny", "--device=sim", flag)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("pagewire: ")
    assert done.stderr.count("\n") == 1


def test_a_temporary_folder_whose_name_is_too_long_for_sockets(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    done = run("serve", "--model=random:tiny", "--device=sim", TMPDIR=str(folder))
    assert done.returncode == 2
    assert "name a shorter one with --runtime-dir, or a shorter TMPDIR" in done.stderr
    assert list(folder.iterdir()) == []


def test_a_user_without_a_home(tmp_path: Path) -> None:
    """As in a container that runs under a number: nothing but the cache needs one."""
    program = (
        "import os, sys\n"
        "from pagewire.scheduler_svc.__main__ import main\n"
        "from pagewire.scheduler_svc import serving\n"
        "from pagewire.scheduler_svc.models import gguf_file, resolve\n"
        "os.environ.pop('HOME')\n"
        "os.setuid(54321)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    if os.getuid() != 0:
        pytest.skip("only root can become a user that nobody knows")
    listed = subprocess.run([sys.executable, "-c", program, "models"], capture_output=True, text=True, cwd="/")
    assert (listed.returncode, listed.stderr) == (0, "")
    flags = ["serve", "--quiet", "--model=smollm2-135m"]
    failed = subprocess.run([sys.executable, "-c", program, *flags], capture_output=True, text=True, cwd="/")
    assert failed.returncode == 1
    assert "this user has no home directory); name another with --cache-dir" in failed.stderr


def test_a_ready_file_that_cannot_be_written(run_server: RunServer) -> None:
    status, out, err = run_server("--ready-file", "/dev/pts/ready").end()
    assert status == 1
    assert "--ready-file /dev/pts/ready cannot be written" in err
    assert "Traceback" not in out + err
