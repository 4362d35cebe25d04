"""A real worker process on a real socket, driven by a scripted engine and a scripted supervisor."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq
from support.decoders import KINDS
from support.worker_plans import PlanMaker, admit
from support.worker_process import ScriptedEngine, WorkerProcess, curve_endpoint, ipc_address, sim_launch

from pagewire.wire.columns import unpack
from pagewire.wire.control import Drain, EngineRestarted, Failed, Loading, Ready, Stop
from pagewire.wire.launch import CpuKernelKind
from pagewire.wire.lifeline import ORPHANED_STATUS
from pagewire.wire.plan import PROTOCOL_VERSION, Begin, StepResult, WorkerFailed, WorkerHello
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.native.library import LIBRARY_FILE


@pytest.fixture
def address() -> Iterator[str]:
    with ipc_address() as address:
        yield address


@pytest.fixture
def engine(address: str) -> Iterator[ScriptedEngine]:
    with ScriptedEngine(address) as engine:
        yield engine


@pytest.fixture
def worker(address: str, engine: ScriptedEngine, tmp_path: Path) -> Iterator[WorkerProcess]:
    """A sim worker that has said hello."""
    with WorkerProcess(sim_launch(address), tmp_path) as worker:
        assert isinstance(engine.receive(), WorkerHello)
        ready = worker.news()
        assert isinstance(ready, Ready)
        assert ready.num_blocks > 0, "what it is told if it has to be started again"
        yield worker


def open_epoch(engine: ScriptedEngine, epoch: int = 1) -> PlanMaker:
    """Begin, and one sequence that decodes from the next plan on."""
    maker = PlanMaker(epoch)
    engine.send(Begin(epoch))
    engine.send(maker.make(admits=[admit(0, [1, 2, 3], [0, 1, 2, 3])], chunks=[(0, 3)]))
    return maker


def result(engine: ScriptedEngine) -> StepResult:
    message = engine.receive()
    assert isinstance(message, StepResult), message
    return message


def test_hello(address: str, engine: ScriptedEngine, tmp_path: Path) -> None:
    with WorkerProcess(sim_launch(address, incarnation=4), tmp_path):
        hello = engine.receive()
        assert engine.identity == b"0:4"
        assert isinstance(hello, WorkerHello)
        assert hello.versions.keys() == {"python", "numpy"}
        assert len(hello.terms_digest) == 64
        assert msgspec.structs.replace(hello, versions={}, terms_digest="") == WorkerHello(
            protocol_version=PROTOCOL_VERSION,
            rank=0,
            incarnation=4,
            num_blocks=128,
            block_size=16,
            max_num_seqs=8,
            max_model_len=256,
            vocab_size=1000,
            weights_bytes=0,
            kv_cache_bytes=0,
            attention_backend="none",
            linear_backend="none",
            versions={},
            recomputes_exactly=True,
        )


def test_plans_two_deep_are_answered_in_order(engine: ScriptedEngine, worker: WorkerProcess) -> None:
    maker = open_epoch(engine)
    engine.send(maker.make())
    results = []
    for _ in range(30):
        results.append(result(engine))
        engine.send(maker.make())
    assert [(answer.epoch, answer.step_id) for answer in results] == [(1, step) for step in range(30)]
    assert all(len(unpack(answer.tokens)) == 1 for answer in results)
    assert results[0].idle_us == 0
    assert all(answer.busy_us > 0 for answer in results)
    assert all(answer.idle_us > 0 for answer in results[1:])


def test_a_new_epoch_starts_from_nothing(engine: ScriptedEngine, worker: WorkerProcess) -> None:
    open_epoch(engine, 1)
    first = result(engine)
    open_epoch(engine, 2)
    second = result(engine)
    assert (second.epoch, second.step_id, second.idle_us) == (2, 0, 0)
    assert second.tokens == first.tokens


@pytest.mark.parametrize("wrong", ["step", "epoch", "content"])
def test_a_wrong_plan_ends_the_worker(engine: ScriptedEngine, worker: WorkerProcess, wrong: str) -> None:
    maker = open_epoch(engine)
    result(engine)
    match wrong:
        case "step":
            maker.make()
            engine.send(maker.make())
            expected = "refused plan 2 of epoch 1: plan 2 of epoch 1 came where plan 1 of epoch 1 was next"
        case "epoch":
            engine.send(PlanMaker(9).make())
            expected = "refused plan 0 of epoch 9: plan 0 of epoch 9 came where plan 1 of epoch 1 was next"
        case _:
            engine.send(maker.make(release=[5]))
            expected = "refused plan 1 of epoch 1: release names slot 5, which is empty"
    assert engine.receive() == WorkerFailed(expected)
    assert worker.news() == Failed(expected)
    assert worker.exit_status() == 3
    assert worker.stderr() == f"worker: {expected}\n"


def test_its_log_is_json_where_the_server_s_is(address: str, engine: ScriptedEngine, tmp_path: Path) -> None:
    with WorkerProcess(sim_launch(address, log_format="json"), tmp_path) as worker:
        engine.receive()
        engine.send(PlanMaker().make())
        failed = engine.receive()
        assert isinstance(failed, WorkerFailed)
        assert worker.exit_status() == 3
        (line,) = [msgspec.json.decode(line) for line in worker.stderr().splitlines()]
        assert (line["process"], line["level"], line["message"]) == ("worker 0", "error", failed.message)


def test_a_plan_before_begin_ends_the_worker(engine: ScriptedEngine, worker: WorkerProcess) -> None:
    engine.send(PlanMaker().make())
    failed = engine.receive()
    assert isinstance(failed, WorkerFailed)
    assert "before any Begin" in failed.message
    assert worker.exit_status() == 3


def test_garbage_is_dropped_and_service_goes_on(engine: ScriptedEngine, worker: WorkerProcess) -> None:
    maker = open_epoch(engine)
    first = result(engine)
    for frames in ([b"\xff" * 40], [b""], [b"[" * 1000], [b"\x91\xa4plan"], [b"a", b"b"], [msgspec.msgpack.encode([])]):
        engine.send_frames(*frames)
    engine.send(maker.make())
    assert result(engine).step_id == first.step_id + 1


def test_the_supervisor_s_death_ends_the_worker(worker: WorkerProcess) -> None:
    started = time.monotonic()
    worker.hang_up()
    assert worker.exit_status() == ORPHANED_STATUS
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("how", ["command", "SIGTERM"])
def test_stop(worker: WorkerProcess, how: str) -> None:
    if how == "command":
        worker.tell(Stop())
    else:
        worker.process.send_signal(signal.SIGTERM)
    assert worker.exit_status(5) == 0
    assert worker.stderr() == ""


def test_ctrl_c_is_the_supervisor_s_business(engine: ScriptedEngine, worker: WorkerProcess) -> None:
    worker.process.send_signal(signal.SIGINT)
    worker.tell(Drain(delay_s=0, grace_s=1))  # nor is a drain the worker's
    open_epoch(engine)
    assert result(engine).step_id == 0


def test_engine_restarted(address: str, tmp_path: Path) -> None:
    with ScriptedEngine(address) as old, WorkerProcess(sim_launch(address), tmp_path) as worker:
        hello = old.receive()
        open_epoch(old)
        result(old)
        old.__exit__(None, None, None)
        with ScriptedEngine(address) as new:
            worker.tell(EngineRestarted(incarnation=2))
            assert new.receive() == hello
            open_epoch(new)
            assert result(new).step_id == 0
            worker.tell(Stop())
            assert worker.exit_status(5) == 0


def test_a_plan_of_the_old_epoch_is_refused_after_a_restart(address: str, tmp_path: Path) -> None:
    with ScriptedEngine(address) as engine, WorkerProcess(sim_launch(address), tmp_path) as worker:
        engine.receive()
        maker = open_epoch(engine)
        result(engine)
        worker.tell(EngineRestarted(incarnation=2))
        assert isinstance(engine.receive(), WorkerHello)
        engine.send(maker.make())
        assert isinstance(engine.receive(), WorkerFailed)
        assert worker.exit_status() == 3


def test_the_worker_may_start_before_the_engine(address: str, tmp_path: Path) -> None:
    with WorkerProcess(sim_launch(address), tmp_path) as worker:
        assert isinstance(worker.news(), Ready)
        with ScriptedEngine(address) as engine:
            assert isinstance(engine.receive(), WorkerHello)


def test_curve_over_tcp(tmp_path: Path) -> None:
    public, secret = zmq.curve_keypair()
    with ScriptedEngine("tcp://127.0.0.1:0", curve=(public, secret)) as engine:
        launch = sim_launch("ipc:///unused", engine=curve_endpoint(engine.address, public))
        with WorkerProcess(launch, tmp_path):
            assert isinstance(engine.receive(), WorkerHello)
            open_epoch(engine)
            assert result(engine).step_id == 0


def test_curve_with_another_server_s_key_does_not_connect(tmp_path: Path) -> None:
    with ScriptedEngine("tcp://127.0.0.1:0", curve=zmq.curve_keypair()) as engine:
        other_public, _ = zmq.curve_keypair()
        launch = sim_launch("ipc:///unused", engine=curve_endpoint(engine.address, other_public))
        with WorkerProcess(launch, tmp_path) as worker:
            assert isinstance(worker.news(), Ready)
            assert engine.silent_for(300)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization is 1.5; it must be greater than 0 and at most 1"),
        ({"world_size": 2, "device": "cpu"}, "world_size is 2, and no group says where the ranks meet"),
        ({"rank": 1}, "rank is 1; ranks are numbered from 0, and world_size is 1"),
        ({"incarnation": -1}, "incarnation is -1, which only a rank after 0 of a group may have"),
        ({"max_num_batched_tokens": 7}, "max_num_batched_tokens is 7; it must be at least max_num_seqs, 8"),
        ({"num_threads": 0}, "num_threads is 0; it must be at least 1"),
        ({"sim_step_us": -1}, "sim_step_us is -1; it must be at least 0"),
        ({"kv_cache_bytes": 1000}, "kv_cache_bytes is 1000, which is 0 blocks"),
    ],
)
def test_a_launch_that_cannot_work(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with WorkerProcess(sim_launch("ipc:///nowhere", **changes), tmp_path) as worker:
        failed = worker.news()
        assert isinstance(failed, Failed)
        assert message in failed.message
        assert worker.exit_status() == 1
        lines = worker.stderr().splitlines()
        assert len(lines) == 1
        assert message in lines[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is wrong"),
        (b'{"model": 1}', "is wrong"),
        (msgspec.json.encode(sim_launch("ipc:///x")).replace(b'"rank":0', b'"rank":0,"rnak":0'), "rnak"),
        (msgspec.json.encode(sim_launch("ipc:///x")).replace(b"ipc:///x", b"tcp://1.2.3.4:5"), "needs CURVE keys"),
    ],
)
def test_a_launch_file_that_is_wrong(tmp_path: Path, content: bytes, message: str) -> None:
    with WorkerProcess(content, tmp_path) as worker:
        failed = worker.news()
        assert isinstance(failed, Failed)
        assert message in failed.message
        assert worker.exit_status() == 1
        assert "Traceback" not in worker.stderr()


@pytest.mark.parametrize("kind", KINDS)
def test_cpu_from_hello_to_tokens(address: str, engine: ScriptedEngine, tmp_path: Path, kind: CpuKernelKind) -> None:
    if kind == "native" and not LIBRARY_FILE.exists():
        pytest.skip("built without the native library")
    launch = sim_launch(address, device="cpu", dtype="float32", num_threads=1, cpu_kernels=kind)
    with WorkerProcess(launch, tmp_path) as worker:
        news = [worker.news()]
        while not isinstance(news[-1], Ready):
            assert isinstance(news[-1], Loading), news[-1]
            news.append(worker.news())
        assert len(news) > 1
        hello = engine.receive()
        assert isinstance(hello, WorkerHello)
        assert hello.attention_backend == f"paged-{kind}"
        assert hello.weights_bytes > 0
        assert hello.kv_cache_bytes == hello.num_blocks * 16 * 2 * 2 * 16 * 4  # tokens, K and V, layers, dim, fp32
        assert hello.versions.keys() == {"python", "numpy", "torch"}
        drawn = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=3)
        tokens: list[list[int]] = []
        for epoch in (1, 2):
            maker = PlanMaker(epoch)
            engine.send(Begin(epoch))
            engine.send(maker.make(admits=[admit(0, [1, 2, 3], [0, 1], sampling=drawn)], chunks=[(0, 3)]))
            engine.send(maker.make())
            tokens.append([int(unpack(result(engine).tokens)[0]) for _ in range(2)])
        assert tokens[0] == tokens[1]


def test_stop_while_loading(address: str, tmp_path: Path) -> None:
    launch = sim_launch(address, device="cpu")
    with WorkerProcess(launch, tmp_path) as worker:
        worker.tell(Stop())
        assert worker.exit_status() == 0
        assert worker.stderr() == ""


def test_weights_that_are_not_there(address: str, tmp_path: Path) -> None:
    launch = sim_launch(address, device="cpu")
    model = msgspec.structs.replace(launch.model, weights_format="gguf", weights_files=("/nowhere/model.gguf",))
    with WorkerProcess(msgspec.structs.replace(launch, model=model), tmp_path) as worker:
        news = worker.news()
        while isinstance(news, Loading):
            news = worker.news()
        assert isinstance(news, Failed)
        assert "/nowhere/model.gguf" in news.message
        assert worker.exit_status() == 1
        assert "Traceback" not in worker.stderr()
