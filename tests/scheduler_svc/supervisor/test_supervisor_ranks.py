"""Several ranks under the supervisor, against scripted children: they begin together and end together."""

import os
import signal
from collections.abc import Callable

from support.supervised import ScriptedServer, is_alive, wait_for

RunServer = Callable[..., ScriptedServer]

TWO = ("--tensor-parallel-size", "2")


def entries(server: ScriptedServer, who: str, what: str) -> list[dict[str, object]]:
    return [entry for entry in server.log() if (entry["who"], entry["what"]) == (who, what)]


def test_ranks_are_told_who_they_are_and_where_they_meet(run_server: RunServer) -> None:
    server = run_server(*TWO)
    server.ready()
    launches = [server.heard(f"worker-{rank}", "started")["launch"] for rank in range(2)]
    assert [launch["rank"] for launch in launches] == [0, 1]
    assert {launch["world_size"] for launch in launches} == {2}
    (folder,) = server.runtime_base.iterdir()
    assert launches[1]["group"] == launches[0]["group"] | {"local_rank": 1}
    assert launches[0]["group"]["store"] == f"file://{folder}/ranks.store"
    assert launches[0]["group"]["num_local_ranks"] == 2
    assert server.heard("engine-0", "started")["launch"]["world_size"] == 2
    server.signal(signal.SIGTERM)
    assert server.end()[0] == 0
    assert not any(map(is_alive, server.child_pids()))


def test_the_loss_of_one_rank_is_the_loss_of_all(run_server: RunServer) -> None:
    server = run_server(*TWO)
    server.ready()
    os.kill(server.heard("worker-1", "started")["pid"], signal.SIGKILL)
    for rank in range(2):
        assert server.heard(f"worker-{rank}", "started", incarnation=1)["launch"]["incarnation"] == 1
    assert server.heard("worker-0", "Stop")
    assert {entry["rank"] for entry in entries(server, "engine-0", "WorkerLost")} == {0, 1}
    pids = [entry["pid"] for entry in entries(server, "worker-0", "started")]
    assert not is_alive(int(str(pids[0])))
    server.signal(signal.SIGTERM)
    status, _, err = server.end()
    assert status == 0
    assert "worker 1 was ended by SIGKILL" in err
    assert "worker 0 ended with status 0, as its group did" in err


def test_a_rank_that_hangs_is_killed_and_the_group_starts_again(run_server: RunServer) -> None:
    server = run_server(*TWO, worker="once:deaf")
    server.ready()
    os.kill(server.heard("worker-0", "started")["pid"], signal.SIGKILL)
    for rank in range(2):
        server.heard(f"worker-{rank}", "started", incarnation=1)
    server.signal(signal.SIGTERM)
    status, _, err = server.end()
    assert status == 0
    assert "worker 1 does not stop and is killed" in err


def test_a_lost_engine_takes_its_ranks_along(run_server: RunServer) -> None:
    """It may have sent its last plan to one of them alone, which then waits for the other."""
    server = run_server(*TWO)
    server.ready()
    os.kill(server.heard("engine-0", "started")["pid"], signal.SIGKILL)
    server.heard("engine-0", "started", incarnation=1)
    for rank in range(2):
        server.heard(f"worker-{rank}", "started", incarnation=1)
    assert not [entry for rank in range(2) for entry in entries(server, f"worker-{rank}", "EngineRestarted")]
    wait_for(lambda: entries(server, "frontend-0", "EngineRestarted"), "the frontend to hear of the new engine")


def test_restarts_are_counted_for_the_group(run_server: RunServer) -> None:
    server = run_server(*TWO, "--max-restarts", "2")
    server.ready()
    for incarnation, rank in enumerate((0, 1)):
        pid = server.heard(f"worker-{rank}", "started", incarnation)["pid"]
        server.heard("worker-0", "ready", incarnation)
        server.heard("worker-1", "ready", incarnation)
        os.kill(pid, signal.SIGKILL)
    os.kill(server.heard("worker-1", "started", incarnation=2)["pid"], signal.SIGKILL)
    status, _, err = server.end()
    assert status == 1
    assert "worker 1 was ended by SIGKILL, perhaps for want of memory; it was started again 2 times" in err


def test_a_rank_that_cannot_start_ends_the_server(run_server: RunServer) -> None:
    server = run_server(*TWO, worker="fail")
    status, _, err = server.end()
    assert status == 1
    assert "cannot start: the script says so" in err
