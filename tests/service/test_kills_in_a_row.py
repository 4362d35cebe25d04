"""Workers and engines killed in a row, while they serve and while they start: every stream goes on."""

import itertools
import random
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import grpc
import psutil
import pytest
from support.broken_engine import POISON_SEED
from support.service import LIMIT_S, Service, ids_of, serve, stream_request

from pagewire.client import Client
from pagewire.v1 import admin_pb2

pytestmark = pytest.mark.slow

NUM_KILLS = 5
LONG = {"max_tokens": 1200, "ignore_eos": True}


def kill_in_a_row(service: Service, role: str, pauses_s: list[float]) -> None:
    """Kill what there is of this role, then, so long after each kill at the soonest, its next incarnation."""
    killed: set[int] = set()
    for pause_s in pauses_s:
        deadline_s = time.monotonic() + LIMIT_S
        while (child := service.children().get(role)) is None or child.pid in killed:
            assert time.monotonic() < deadline_s, f"no {role} after {len(killed)} kills"
            time.sleep(0.01)
        time.sleep(pause_s)
        killed.add(child.pid)
        child.kill()


@pytest.mark.parametrize("role", ["worker", "engine"])
@pytest.mark.parametrize("when", ["serving", "starting"])
def test_five_kills_in_a_row_are_pauses(role: str, when: str) -> None:
    drawn = random.Random(f"{role} {when}")
    later_s = [drawn.uniform(0, 0.4) if when == "starting" else 2.5 for _ in range(NUM_KILLS - 1)]
    pauses_s = [0.3, *later_s]
    with serve(sim_step_us=10_000, max_model_len=2048) as service, Client(service.address) as client:
        request = stream_request([4, 5], stopping=LONG, sampling={"seed": 3})
        expected = ids_of(service.inference.StreamGenerate(request, timeout=LIMIT_S))
        calls = [service.inference.StreamGenerate(request, timeout=3 * LIMIT_S) for _ in range(4)]
        for call in calls:
            assert next(call).HasField("started")
        killing = threading.Thread(target=kill_in_a_row, args=(service, role, pauses_s))
        killing.start()
        # Who comes meanwhile is refused at most for as long as the client's default patience.
        whole = client.generate([4, 5], max_tokens=20, ignore_eos=True, seed=3)
        assert list(whole.outputs[0].token_ids) == expected[:20]
        got: list[list[int]] = []
        for call in calls:
            came_s = [time.monotonic()]
            ids = []
            for event in call:
                came_s.append(time.monotonic())
                ids += ids_of([event])
            got.append(ids)
            longest_s = max(later - earlier for earlier, later in itertools.pairwise(came_s))
            if call is calls[0]:  # the others' messages wait to be read meanwhile
                print(f"{role} {when}: the longest pause was {longest_s:.1f} s")
        killing.join()
        assert got == [expected] * 4
        assert service.process.poll() is None


def test_a_server_that_gives_up_says_that_its_workers_are_lost() -> None:
    with serve(sim_step_us=20_000, max_restarts=0, max_model_len=2048) as service:
        call = service.inference.StreamGenerate(
            stream_request([4, 5], stopping=LONG, sampling={"seed": 3}), timeout=LIMIT_S
        )
        assert next(call).HasField("started")
        service.children()["worker"].kill()
        with pytest.raises(grpc.RpcError) as error:
            list(call)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert b"WORKER_LOST" in dict(error.value.trailing_metadata())["grpc-status-details-bin"]
        assert service.process.wait(LIMIT_S) == 1


def broken_engines(service: Service) -> list[int]:
    """Their process ids."""
    return [p.pid for p in psutil.Process(service.process.pid).children() if p.cmdline()[2:3] == ["engine"]]


def test_an_engine_that_contradicts_itself_ends_and_the_streams_go_on() -> None:
    """Its queue miscounts, which it notices when a worker is lost; the engine after it has no bug."""
    program = (str(Path(__file__).parents[1] / "support/broken_engine.py"), "miscount")
    with serve(program=program, sim_step_us=10_000) as service:
        request = stream_request([4, 5], stopping={"max_tokens": 300, "ignore_eos": True}, sampling={"seed": 3})
        calls = [service.inference.StreamGenerate(request, timeout=LIMIT_S) for _ in range(2)]
        for call in calls:
            assert next(call).HasField("started")
        (first,) = broken_engines(service)
        service.children()["worker"].kill()
        got = [ids_of(call) for call in calls]
        (second,) = broken_engines(service)
        assert second != first, "it is another engine"
        expected = ids_of(service.inference.StreamGenerate(request, timeout=LIMIT_S))
        assert got == [expected] * 2
        assert len(expected) == 300


def test_a_request_that_gives_each_worker_a_token_before_it_ends_it_fails_alone() -> None:
    program = (str(Path(__file__).parents[1] / "support/broken_engine.py"), "drip")
    with serve(program=program, sim_step_us=10_000) as service:
        stopping = {"max_tokens": 60, "ignore_eos": True}
        others = [stream_request([4, 5, i], stopping=stopping, sampling={"seed": i}) for i in range(3)]
        calls = [service.inference.StreamGenerate(request, timeout=LIMIT_S) for request in others]
        poison = stream_request([4, 5], stopping=LONG, sampling={"seed": POISON_SEED})
        with pytest.raises(grpc.RpcError) as error:
            list(service.inference.StreamGenerate(poison, timeout=LIMIT_S))
        assert error.value.code() is grpc.StatusCode.INTERNAL
        assert (
            "with fewer than 16 tokens of it between each two, the last 2 times with no other" in error.value.details()
        )
        got = [ids_of(call) for call in calls]
        assert got == [ids_of(service.inference.StreamGenerate(request, timeout=LIMIT_S)) for request in others]
        assert service.process.poll() is None


def test_both_at_once_are_a_pause_too() -> None:
    with serve(sim_step_us=10_000) as service:
        request = stream_request([4, 5], stopping={"max_tokens": 300, "ignore_eos": True}, sampling={"seed": 3})
        expected = ids_of(service.inference.StreamGenerate(request, timeout=LIMIT_S))
        call = service.inference.StreamGenerate(request, timeout=LIMIT_S)
        assert next(call).HasField("started")
        children: dict[str, psutil.Process] = service.children()
        for role in ("engine", "worker"):
            children[role].send_signal(signal.SIGKILL)
        assert ids_of(call) == expected


def test_streams_go_on_where_the_runtime_directory_is_swept_away() -> None:
    with tempfile.TemporaryDirectory(prefix="pw") as base:
        directory = Path(base) / "run"
        with serve(sim_step_us=10_000, runtime_dir=directory) as service:
            request = stream_request([4, 5], stopping={"max_tokens": 300, "ignore_eos": True}, sampling={"seed": 3})
            expected = ids_of(service.inference.StreamGenerate(request, timeout=LIMIT_S))
            call = service.inference.StreamGenerate(request, timeout=LIMIT_S)
            assert next(call).HasField("started")
            shutil.rmtree(directory)
            assert ids_of(call) == expected
            for role in ("worker", "engine"):
                call = service.inference.StreamGenerate(request, timeout=LIMIT_S)
                assert next(call).HasField("started")
                service.children()[role].kill()
                assert ids_of(call) == expected


def test_a_frontend_killed_while_it_drains_is_no_success() -> None:
    with serve(sim_step_us=20_000, max_model_len=2048) as service:
        call = service.inference.StreamGenerate(stream_request([4, 5], stopping=LONG), timeout=LIMIT_S)
        assert next(call).HasField("started")
        service.process.send_signal(signal.SIGTERM)
        service.wait_for_load(lambda load: load.state == admin_pb2.SERVICE_STATE_DRAINING)
        service.children()["frontend"].kill()
        with pytest.raises(grpc.RpcError):
            list(call)
        assert service.process.wait(LIMIT_S) == 1
