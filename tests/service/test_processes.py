"""Processes come and go; streams stay."""

import signal
import socket
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest
from support.service import LIMIT_S, StartFailed, gone, ids_of, serve, stream_request

from pagewire.client import Client
from pagewire.scheduler_svc.supervisor.curve_keys import make_curve_keys
from pagewire.v1 import admin_pb2, inference_pb2

LONG = {"max_tokens": 150, "ignore_eos": True}


def test_sigterm_finishes_running_streams_and_exits_with_0() -> None:
    with serve(sim_step_us=5_000, drain_grace_s=30) as service:
        expected = ids_of(service.inference.StreamGenerate(stream_request([1, 2], stopping=LONG, sampling={"seed": 1})))
        calls = [
            service.inference.StreamGenerate(
                stream_request([1, 2], stopping=LONG, sampling={"seed": 1}), timeout=LIMIT_S
            )
            for _ in range(3)
        ]
        for call in calls:
            assert next(call).HasField("started")
        children = list(service.children().values())
        service.process.send_signal(signal.SIGTERM)
        service.wait_for_load(lambda load: load.state == admin_pb2.SERVICE_STATE_DRAINING)
        with pytest.raises(grpc.RpcError) as error:
            next(service.inference.StreamGenerate(stream_request([1, 2]), timeout=LIMIT_S))
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        for call in calls:
            assert ids_of(call) == expected
        assert service.process.wait(LIMIT_S) == 0
        assert len(children) == 4
        assert not gone(children, 5)


def test_a_grace_time_that_does_not_suffice_cuts_and_says_so() -> None:
    with serve(sim_step_us=20_000, drain_grace_s=0.5) as service:
        call = service.inference.StreamGenerate(stream_request([1], stopping={"max_tokens": 1500, "ignore_eos": True}))
        assert next(call).HasField("started")
        service.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as error:
            for _ in call:
                pass
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert service.process.wait(LIMIT_S) == 0


@pytest.mark.parametrize(("device", "num_children"), [("sim", 4), ("cpu", 5)])
def test_sigkill_of_the_supervisor_leaves_no_child(device: str, num_children: int) -> None:
    with serve(device=device) as service:
        children = list(service.children().values())
        assert len(children) == num_children
        service.process.kill()
        assert not gone(children, 5)


@pytest.mark.parametrize("role", ["worker", "engine"])
def test_a_killed_process_is_a_pause_in_the_streams(role: str) -> None:
    with serve(sim_step_us=5_000) as service:
        expected = ids_of(service.inference.StreamGenerate(stream_request([4, 5], stopping=LONG, sampling={"seed": 3})))
        calls = [
            service.inference.StreamGenerate(
                stream_request([4, 5], stopping=LONG, sampling={"seed": 3}), timeout=LIMIT_S
            )
            for _ in range(4)
        ]
        for call in calls:
            assert next(call).HasField("started")
            assert next(call).HasField("delta")
        service.children()[role].kill()
        for call in calls:
            events = list(call)
            assert [event.WhichOneof("event") for event in events if not event.HasField("delta")] == [
                "finished",
                "usage",
            ]
        # The first token of each was read above.
        whole = service.inference.StreamGenerate(stream_request([4, 5], stopping=LONG, sampling={"seed": 3}))
        assert ids_of(whole) == expected
        service.wait_for_load(lambda load: load.used_blocks == 0 and load.running_sequences == 0)


@pytest.mark.parametrize(("role", "end"), [("worker", "kill"), ("engine", "kill"), ("worker", "suspend")])
def test_nothing_is_repeated_or_lost_over_a_restart(role: str, end: str) -> None:
    with serve(sim_step_us=5_000, hang_timeout_s=4) as service:
        request = stream_request([4, 5], stopping=LONG, sampling={"seed": 3}, n=2)
        outputs: dict[int, list[int]] = {0: [], 1: []}
        call = service.inference.StreamGenerate(request, timeout=LIMIT_S)
        killed = False
        for event in call:
            if event.HasField("delta"):
                outputs[event.delta.output] += [token.id for token in event.delta.tokens]
            if not killed and len(outputs[0]) > 50:
                child = service.children()[role]
                child.kill() if end == "kill" else child.suspend()
                killed = True
        unary = inference_pb2.GenerateRequest(generation=request.generation)
        again = service.inference.Generate(unary, timeout=LIMIT_S)
        assert [[token.id for token in output.tokens] for output in again.outputs] == [outputs[0], outputs[1]]


def test_a_killed_fork_server_takes_its_worker_along_and_loses_nothing() -> None:
    with serve(device="cpu", dtype="float32") as service:
        request = stream_request([4, 5], stopping=LONG, sampling={"seed": 3})
        expected = ids_of(service.inference.StreamGenerate(request, timeout=LIMIT_S))
        before = service.children()
        call = service.inference.StreamGenerate(request, timeout=LIMIT_S)
        events = [next(call), next(call)]
        before["worker-fork-server"].kill()
        assert ids_of([*events, *call]) == expected
        after = service.children()
        assert before["worker"] != after["worker"]
        assert before["worker-fork-server"] != after["worker-fork-server"]


@pytest.mark.parametrize("role", ["frontend", "frontend-fork-server"])
def test_a_killed_frontend_comes_back_and_the_client_goes_on(role: str) -> None:
    with serve(sim_step_us=5_000, listen=f"127.0.0.1:{_free_port()}") as service, Client(service.address) as client:
        expected = client.generate([4, 5], max_tokens=200, ignore_eos=True, seed=3).outputs[0].token_ids
        got: list[int] = []
        stream = client.stream([4, 5], max_tokens=200, ignore_eos=True, seed=3, timeout_s=LIMIT_S)
        killed = False
        for event in stream:
            tokens = getattr(event, "tokens", ())
            got += [token.id for token in tokens]
            if not killed and len(got) > 50:
                service.children()[role].kill()
                killed = True
        assert got == list(expected)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_several_frontends_share_one_port() -> None:
    with serve(frontends=2, sim_step_us=1_000) as service:
        frontends = [
            child
            for child in psutil.Process(service.process.pid).children(True)
            if {"pagewire.scheduler_svc.frontend", "run"} <= set(child.cmdline())
        ]
        assert len(frontends) == 2
        outputs: set[tuple[int, ...]] = set()

        def ask() -> None:
            # A connection of its own: connections, not calls, are spread over the frontends.
            with grpc.insecure_channel(service.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                stub = type(service.inference)(channel)
                call = stub.StreamGenerate(stream_request([1, 2], stopping={"max_tokens": 20}, sampling={"seed": 2}))
                outputs.add(tuple(ids_of(call)))

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        assert len(outputs) == 1


def test_draining_through_the_admin_service_ends_the_server_with_0() -> None:
    with serve() as service:
        service.admin.Drain(admin_pb2.DrainRequest(), timeout=LIMIT_S)
        assert service.process.wait(LIMIT_S) == 0


def test_a_start_that_fails_says_why_and_exits_with_1(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StartFailed, match="1"), serve(model="/no/such/model"):
        pass
    assert "/no/such/model" in capfd.readouterr().err


@pytest.mark.parametrize("where", ["a shared port", "a Unix socket"])
def test_of_two_servers_that_start_at_the_same_moment_one_serves(where: str, capfd: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="pw") as directory, socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{found.getsockname()[1]}" if where == "a shared port" else f"unix:{directory}/socket"
        found.close()
        settings = {"listen": listen, "frontends": 2 if where == "a shared port" else 1}

        def run() -> str:
            """Once one serves, both have said what becomes of them."""
            try:
                with serve(**settings) as service:
                    both_know.wait(LIMIT_S)
                    list(service.inference.StreamGenerate(stream_request([1, 2]), timeout=LIMIT_S))
                    return "served"
            except StartFailed as failed:
                both_know.wait(LIMIT_S)
                return f"status {failed.args[0]}"

        both_know = threading.Barrier(2)
        with ThreadPoolExecutor(2) as threads:
            ends = sorted(future.result(4 * LIMIT_S) for future in [threads.submit(run) for _ in range(2)])
    assert ends == ["served", "status 2"]
    assert f"listen = '{listen}' cannot be listened on" in capfd.readouterr().err


def test_workers_port_that_is_taken_is_said_in_a_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_curve_keys(tmp_path / "keys")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        transport = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartFailed), serve(worker_transport=transport, curve_dir=tmp_path / "keys"):
            pass
    said = capfd.readouterr().err
    assert f"engine cannot start: cannot listen on {transport}: Address already in use" in said
    assert "Traceback" not in said
