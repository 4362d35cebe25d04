"""The supervisor against scripted children: real processes, real lifelines, real signals."""

import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.supervised import ScriptedServer, is_alive, wait_for

from pagewire.scheduler_svc.supervisor.host import SystemdNotifier, SystemdProgress
from pagewire.wire.lifeline import ORPHANED_STATUS

RunServer = Callable[..., ScriptedServer]


def assert_nothing_left(server: ScriptedServer) -> None:
    assert [pid for pid in server.child_pids() if is_alive(pid)] == []
    assert list(server.runtime_base.iterdir()) == []


def test_serves_drains_on_sigterm_and_leaves_nothing(run_server: RunServer) -> None:
    server = run_server("--drain-delay-s", "1.5", "--drain-grace-s", "9")
    ready = server.ready()
    assert ready == {
        "address": "127.0.0.1:40001",
        "admin_address": "127.0.0.1:40002",
        "model": "random:tiny",
        "pid": server.process.pid,
    }
    server.signal(signal.SIGTERM)
    status, out, _ = server.end()
    assert status == 0
    assert out == "listening on 127.0.0.1:40001, admin on 127.0.0.1:40002, model random:tiny\n"
    told = {entry["who"]: (entry["delay_s"], entry["grace_s"]) for entry in server.log() if entry["what"] == "Drain"}
    assert told == {"frontend-0": (1.5, 9.0), "engine-0": (1.5, 9.0)}
    assert {entry["who"] for entry in server.log() if entry["what"] == "Stop"} == {"frontend-0", "engine-0", "worker-0"}
    assert_nothing_left(server)


def test_sighup_has_frontends_read_their_files_again_and_ends_nothing(run_server: RunServer) -> None:
    server = run_server("--frontends", "2")
    server.ready()
    server.signal(signal.SIGHUP)
    for who in ("frontend-0", "frontend-1"):
        server.heard(who, "Reload")
    server.signal(signal.SIGHUP)
    wait_for(lambda: sum(entry["what"] == "Reload" for entry in server.log()) == 4, "a second order")
    server.signal(signal.SIGTERM)  # the first signal that ends it
    assert server.end()[0] == 0
    assert {entry["who"] for entry in server.log() if entry["what"] == "Reload"} == {"frontend-0", "frontend-1"}


def test_sighup_ends_a_server_that_does_not_serve_yet(run_server: RunServer) -> None:
    server = run_server(worker="load")
    server.heard("worker-0", "started")
    server.signal(signal.SIGHUP)
    assert server.end()[0] == 128 + signal.SIGHUP


def test_nohup_is_honoured(run_server: RunServer) -> None:
    server = run_server(ignores_sighup=True)
    server.ready()
    server.signal(signal.SIGHUP)
    server.signal(signal.SIGTERM)
    assert server.end()[0] == 0
    assert not [entry for entry in server.log() if entry["what"] == "Reload"]


def test_children_have_groups_of_their_own_and_private_files(run_server: RunServer) -> None:
    server = run_server()
    server.ready()
    started = [entry for entry in server.log() if entry["what"] == "started"]
    assert [entry["group"] for entry in started] == [entry["pid"] for entry in started] != []
    (folder,) = server.runtime_base.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("stage", ["loading", "serving"])
def test_sigkill_of_the_supervisor_leaves_no_child(run_server: RunServer, stage: str) -> None:
    server = run_server(worker="load" if stage == "loading" else "ready")
    if stage == "serving":
        server.ready()
    for who in ("engine-0", "worker-0", "frontend-0"):
        server.heard(who, "started")
    killed_at = time.monotonic()
    server.signal(signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, server.child_pids())), "the children to end")
    assert time.monotonic() - killed_at < 5
    assert sum(entry["what"] == "orphaned" for entry in server.log()) == 3
    assert ORPHANED_STATUS == 70


def test_a_later_start_sweeps_what_a_killed_supervisor_left(run_server: RunServer, tmp_path: Path) -> None:
    first = run_server()
    first.ready()
    (left,) = first.runtime_base.iterdir()
    first.signal(signal.SIGKILL)
    first.end()
    wait_for(lambda: not any(map(is_alive, first.child_pids())), "the children to end")
    assert left.exists()
    hour_ago = time.time() - 3600
    os.utime(left, (hour_ago, hour_ago))
    second = run_server(environ={"TMPDIR": str(first.runtime_base)})
    second.ready()
    assert not left.exists()
    os.utime(next(first.runtime_base.iterdir()), (hour_ago, hour_ago))
    third = run_server(environ={"TMPDIR": str(first.runtime_base)})
    third.ready()
    assert len(list(first.runtime_base.iterdir())) == 2, "the second server's directory is held and must stay"


def test_a_lost_worker_is_started_again_and_the_engine_told(run_server: RunServer) -> None:
    server = run_server()
    server.ready()
    os.kill(server.heard("worker-0", "started")["pid"], signal.SIGKILL)
    assert server.heard("engine-0", "WorkerLost")["rank"] == 0
    again = server.heard("worker-0", "started", incarnation=1)
    assert again["launch"]["incarnation"] == 1
    assert again["launch"]["earlier_num_blocks"] == 64
    server.signal(signal.SIGTERM)
    status, _, err = server.end()
    assert status == 0
    assert "worker 0 was ended by SIGKILL, perhaps for want of memory" in err
    assert_nothing_left(server)


def test_a_lost_engine_is_started_again_on_the_same_addresses_and_all_told(run_server: RunServer) -> None:
    server = run_server()
    server.ready()
    first = server.heard("engine-0", "started")
    os.kill(first["pid"], signal.SIGKILL)
    again = server.heard("engine-0", "started", incarnation=1)
    assert again["launch"] == first["launch"] | {"incarnation": 1}
    for who in ("worker-0", "frontend-0"):
        wait_for(
            lambda who=who: [
                e for e in server.log() if (e["who"], e["what"], e.get("incarnation")) == (who, "EngineRestarted", 1)
            ],
            f"{who} to hear of the new engine",
        )


def test_a_lost_frontend_is_started_again_on_the_port_it_had(run_server: RunServer) -> None:
    server = run_server()
    server.ready()
    first = server.heard("frontend-0", "started")
    assert first["launch"]["listen"] == "127.0.0.1:0"
    os.kill(first["pid"], signal.SIGKILL)
    again = server.heard("frontend-0", "started", incarnation=1)["launch"]
    assert (again["listen"], again["admin_listen"], again["index"]) == ("127.0.0.1:40001", "127.0.0.1:40002", 0)


def test_processes_that_stand_still_are_ended_with_their_stacks_and_started_again(run_server: RunServer) -> None:
    server = run_server("--hang-timeout-s", "4", engine="once:still")
    server.ready()
    # One that is stopped cannot even write its stack.
    os.kill(server.heard("frontend-0", "ready")["pid"], signal.SIGSTOP)
    for who in ("engine-0", "frontend-0"):
        server.heard(who, "ready", incarnation=1)
    server.signal(signal.SIGTERM)
    status, _, err = server.end()
    assert status == 0
    assert "engine has made no progress for 4 s and is ended" in err
    assert "engine was ended by SIGABRT: has made no progress for 4 s" in err
    assert "most recent call first" in err, "the engine's stack, for whoever wants to know where it stood"
    assert "frontend 0 was ended by SIGKILL" in err
    started = [(entry["who"], entry["incarnation"]) for entry in server.log() if entry["what"] == "started"]
    assert sorted(started) == [("engine-0", 0), ("engine-0", 1), ("frontend-0", 0), ("frontend-0", 1), ("worker-0", 0)]
    assert_nothing_left(server)


def test_workers_that_hold_a_step_are_ended_and_started_again(run_server: RunServer) -> None:
    server = run_server()
    server.ready()
    os.kill(server.heard("engine-0", "ready")["pid"], signal.SIGUSR2)
    assert server.heard("engine-0", "WorkerLost")["rank"] == 0
    assert server.heard("worker-0", "ready", incarnation=1)
    # What is said of the first workers late is nothing that those after them hold.
    os.kill(server.heard("engine-0", "ready")["pid"], signal.SIGUSR2)
    wait_for(lambda: [e["what"] for e in server.log()].count("overdue") == 2, "the engine to say it again")
    server.signal(signal.SIGTERM)
    status, _, err = server.end()
    assert status == 0
    assert err.count("worker 0 has held a step for 7 s and is ended") == 1
    assert "workers of incarnation 0 are overdue and end or have ended already" in err
    assert [e["incarnation"] for e in server.log() if (e["who"], e["what"]) == ("worker-0", "started")] == [0, 1]


def test_restarts_in_a_row_have_a_limit(run_server: RunServer) -> None:
    server = run_server("--max-restarts", "2")
    server.ready()
    (server.scripts / "worker").write_text("die")
    os.kill(server.heard("worker-0", "started")["pid"], signal.SIGKILL)
    status, _, err = server.end()
    assert status == 1
    assert "worker 0 ended with status 3; it was started again 2 times and never came to serve" in err
    assert server.heard("worker-0", "started", incarnation=2)
    assert_nothing_left(server)


def test_no_restart_where_none_is_allowed(run_server: RunServer) -> None:
    server = run_server("--max-restarts", "0")
    server.ready()
    os.kill(server.heard("engine-0", "started")["pid"], signal.SIGKILL)
    assert server.end()[0] == 1
    assert_nothing_left(server)


@pytest.mark.parametrize("role", ["worker", "engine", "frontend"])
def test_a_child_that_cannot_start_ends_the_server_with_its_reason(run_server: RunServer, role: str) -> None:
    server = run_server(**{role: "fail"})
    status, out, err = server.end()
    assert (status, out) == (1, "")
    assert "cannot start: the script says so" in err
    assert "Traceback" not in err
    assert_nothing_left(server)


def test_a_child_that_dies_before_it_is_ready_ends_the_server(run_server: RunServer) -> None:
    server = run_server(engine="die")
    status, _, err = server.end()
    assert status == 1
    assert "engine ended with status 3, before it was ready" in err
    assert_nothing_left(server)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_loading_ends_at_once(run_server: RunServer, number: signal.Signals) -> None:
    server = run_server(worker="load")
    server.heard("frontend-0", "started")
    server.signal(number)
    assert server.end()[0] == 128 + number
    assert_nothing_left(server)


def test_a_second_signal_ends_at_once(run_server: RunServer) -> None:
    server = run_server(frontend="deaf")
    server.ready()
    server.signal(signal.SIGINT)
    server.heard("frontend-0", "Drain")
    server.signal(signal.SIGINT)
    status, _, err = server.end()
    assert status == 128 + signal.SIGINT
    assert "frontend 0 does not stop and is killed" in err
    assert_nothing_left(server)


def test_an_operators_drain_is_a_sigterm_with_its_grace(run_server: RunServer) -> None:
    server = run_server()
    server.ready()
    os.kill(server.heard("frontend-0", "ready")["pid"], signal.SIGUSR1)
    assert server.end()[0] == 0
    assert server.heard("engine-0", "Drain")["grace_s"] == 7.0


def test_a_first_signal_after_an_operators_drain_lets_it_go_on(run_server: RunServer) -> None:
    """As where a pod's hook orders the drain, and the pod's end follows with a signal; a second one ends at once."""
    server = run_server(frontend="deaf")
    server.ready()
    os.kill(server.heard("frontend-0", "ready")["pid"], signal.SIGUSR1)
    server.heard("frontend-0", "Drain")
    server.signal(signal.SIGTERM)
    assert server.process.stderr is not None
    assert any("draining already" in line for line in server.process.stderr), "it ended at the first signal"
    server.signal(signal.SIGTERM)
    assert server.end()[0] == 128 + signal.SIGTERM
    assert_nothing_left(server)


def test_an_operators_drain_while_the_model_loads_ends_the_server(run_server: RunServer) -> None:
    server = run_server("--frontends", "2", frontend="nosy", worker="load")
    assert server.end()[:2] == (0, "")
    assert server.heard("frontend-0", "Drain")["grace_s"] == 7.0
    assert_nothing_left(server)


def test_a_worker_lost_while_draining_comes_back(run_server: RunServer) -> None:
    server = run_server("--drain-grace-s", "60", frontend="deaf")
    server.ready()
    server.signal(signal.SIGTERM)
    server.heard("frontend-0", "Drain")
    os.kill(server.heard("worker-0", "started")["pid"], signal.SIGKILL)
    server.heard("worker-0", "started", incarnation=1)
    os.kill(server.heard("frontend-0", "started")["pid"], signal.SIGKILL)
    status, _, err = server.end()
    assert status == 1, "a frontend that is gone has lost what it had"
    assert "frontend 0 ended before the streams had: they are lost" in err
    assert len([e for e in server.log() if e["who"] == "frontend-0" and e["what"] == "started"]) == 1


def test_a_frontend_that_ends_once_it_has_drained_loses_nothing(run_server: RunServer) -> None:
    server = run_server("--frontends", "2", "--drain-grace-s", "60", frontend="leave")
    server.ready()
    server.signal(signal.SIGTERM)
    assert server.end()[0] == 0


def test_a_frontend_that_is_away_when_draining_begins_has_lost_what_it_had(run_server: RunServer) -> None:
    server = run_server("--max-restarts", "60")
    server.ready()
    (server.scripts / "frontend").write_text("die")
    os.kill(server.heard("frontend-0", "ready")["pid"], signal.SIGKILL)
    server.heard("frontend-0", "started", incarnation=5)
    server.signal(signal.SIGTERM)
    status, _, err = server.end()
    assert status == 1
    assert "frontend 0 ended before the streams had" in err


def test_a_runtime_directory_that_was_swept_away_is_made_again(run_server: RunServer) -> None:
    server = run_server()
    server.ready()
    (folder,) = server.runtime_base.iterdir()
    shutil.rmtree(folder)
    # The engine's sockets are gone with it, so nobody could join it any more.
    server.heard("engine-0", "ready", incarnation=1)
    assert folder.stat().st_mode & 0o777 == 0o700
    os.kill(server.heard("worker-0", "ready")["pid"], signal.SIGKILL)
    server.heard("worker-0", "ready", incarnation=1)
    server.signal(signal.SIGTERM)
    status, _, err = server.end()
    assert status == 0
    assert f"the runtime directory {folder} was removed, perhaps by a cleaner of temporary files" in err
    assert_nothing_left(server)


def test_a_runtime_directory_that_a_stranger_has_taken_is_not_used(run_server: RunServer) -> None:
    server = run_server()
    server.ready()
    (folder,) = server.runtime_base.iterdir()
    shutil.rmtree(folder)
    folder.mkdir()
    folder.chmod(0o755)
    status, _, err = server.end()
    assert status == 1
    assert "has mode 0755; it must be 0700" in err


def test_frontends_share_the_port_that_the_first_was_given(run_server: RunServer) -> None:
    server = run_server("--frontends", "3")
    server.ready()
    launches = [server.heard(f"frontend-{index}", "started")["launch"] for index in range(3)]
    assert [launch["listen"] for launch in launches] == ["127.0.0.1:0", "127.0.0.1:40001", "127.0.0.1:40001"]
    assert [launch["admin_listen"] for launch in launches] == ["127.0.0.1:0", None, None]
    assert all(launch["reuse_port"] for launch in launches)


def test_frontends_do_not_share_a_port_with_a_stranger(run_server: RunServer) -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        address = f"127.0.0.1:{stranger.getsockname()[1]}"
        status, _, err = run_server("--frontends", "2", "--listen", address).end()
    assert status == 2
    assert f"listen = '{address}' cannot be listened on" in err


def test_ready_file_is_written_and_removed(run_server: RunServer, tmp_path: Path) -> None:
    file = tmp_path / "ready.json"
    server = run_server("--ready-file", str(file), "--admin-listen", "")
    server.ready()
    assert json.loads(file.read_text())["admin_address"] == ""
    server.signal(signal.SIGTERM)
    assert server.end()[0] == 0
    assert not file.exists()


def test_systemd_is_told(run_server: RunServer) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="pw") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
    ):
        listener.bind(f"{folder}/notify")
        listener.settimeout(20)
        server = run_server(environ={"NOTIFY_SOCKET": f"{folder}/notify"})
        assert b"READY=1" in listener.recv(4096)
        assert listener.recv(4096) == b"WATCHDOG=1"
        server.signal(signal.SIGTERM)
        while (said := listener.recv(4096)) == b"WATCHDOG=1":
            pass
        assert b"STOPPING=1" in said
        assert b"EXTEND_TIMEOUT_USEC=45000000" in listener.recv(4096)  # the grace of 30 s, and what ending takes
        assert server.end()[0] == 0


def test_systemds_watchdog_is_fed_by_the_engine_and_not_by_the_clock(run_server: RunServer) -> None:
    """What an engine says last feeds it once; then nothing does until the supervisor has started another."""
    with (
        tempfile.TemporaryDirectory(prefix="pw") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
    ):
        listener.bind(f"{folder}/notify")
        listener.settimeout(20)
        server = run_server("--hang-timeout-s", "5", engine="once:still", environ={"NOTIFY_SOCKET": f"{folder}/notify"})
        server.ready()
        server.heard("engine-0", "started", incarnation=1)
        listener.setblocking(False)
        said = []
        with contextlib.suppress(BlockingIOError):
            while True:
                said.append(listener.recv(4096))
        # Once for its Ready, and perhaps for the next one's: five looks or more found nothing between.
        assert 1 <= said.count(b"WATCHDOG=1") <= 2
        listener.settimeout(20)
        assert listener.recv(4096) == b"WATCHDOG=1"
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0


def test_an_aborted_supervisor_says_where_it_stood_and_leaves_no_child(run_server: RunServer) -> None:
    server = run_server()
    server.ready()
    server.signal(signal.SIGABRT)
    status, _, err = server.end()
    assert status == -signal.SIGABRT
    assert "most recent call first" in err
    wait_for(lambda: not any(map(is_alive, server.child_pids())), "the children to end")


def test_systemd_is_asked_for_time_while_a_model_is_fetched_or_loaded(run_server: RunServer) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="pw") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
    ):
        listener.bind(f"{folder}/notify")
        listener.settimeout(20)
        run_server(environ={"NOTIFY_SOCKET": f"{folder}/notify"}, worker="load")
        assert listener.recv(4096) == b"EXTEND_TIMEOUT_USEC=60000000\nSTATUS=pretending 50%"
        shown: list[tuple[str, float]] = []
        progress = SystemdProgress(
            SimpleNamespace(report=lambda *said: shown.append(said), close=shown.clear),
            SystemdNotifier({"NOTIFY_SOCKET": f"{folder}/notify"}),
            iter([0.0, 0.0, 0.0, 4.9, 5.0, 5.0]).__next__,
        )
        for percent in (1, 2, 3):
            progress.report("fetching", percent / 100)
        assert shown == [("fetching", 0.01), ("fetching", 0.02), ("fetching", 0.03)]
        assert [listener.recv(4096)[-2:] for _ in range(2)] == [b"1%", b"3%"]


def test_a_named_runtime_dir_is_kept_and_emptied(run_server: RunServer) -> None:
    with tempfile.TemporaryDirectory(prefix="pw") as folder:
        server = run_server("--runtime-dir", folder)
        server.ready()
        assert (Path(folder) / "engine-0.json").exists()
        status, _, err = run_server("--runtime-dir", folder).end()
        assert status == 2
        assert "is in use by another server" in err
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0
        assert list(Path(folder).iterdir()) == []
