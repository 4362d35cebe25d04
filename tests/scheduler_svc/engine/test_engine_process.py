"""The engine as a process: real sockets, with the test in the frontend's and the worker's place."""

import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from support.content_worker import expected_output
from support.engine_process import (
    LIMIT_S,
    VOCAB_SIZE,
    Peer,
    PlayedWorker,
    engine_process,
    registered,
    submit,
    tokens_of,
)

from pagewire.scheduler_svc.engine.links import Dropped
from pagewire.scheduler_svc.engine.loop import BORDERS
from pagewire.wire.codec import JsonCodec
from pagewire.wire.columns import pack
from pagewire.wire.control import Alive, Drain, Failed, FromChild, Ready, Served, StepOverdue, Stop, WorkerLost
from pagewire.wire.measures import DROPPED, EngineMeasured
from pagewire.wire.plan import Begin, StepPlan, StepResult
from pagewire.wire.requests import (
    CACHED_ALONE,
    Abort,
    AbortRequest,
    Answer,
    BlockUses,
    EngineInfo,
    EngineState,
    FinishKind,
    FlushCache,
    FromFrontend,
    Load,
    ReadBlocks,
    Register,
    Rejected,
    RejectKind,
    ToFrontend,
    TokenBatch,
)

Frontend = Peer[FromFrontend, ToFrontend]


def expected(handle: int, prompt: list[int], max_tokens: int) -> list[int]:
    return expected_output(prompt, handle, max_tokens, frozenset(), VOCAB_SIZE)


def collect(
    frontend: Frontend, worker: PlayedWorker | None, got: dict[int, list[int]], ends: int
) -> dict[int, FinishKind]:
    """Read token batches until this many sequences ended, letting the worker answer in between."""
    finished: dict[int, FinishKind] = {}
    while len(finished) < ends:
        if worker is not None and worker.peer.socket.poll(20):
            worker.answer()
        while frontend.socket.poll(0):
            match frontend.receive():
                case TokenBatch(handles=handles, tokens=tokens, finished=ended):
                    for handle, token in zip(tokens_of(handles), tokens_of(tokens), strict=True):
                        got.setdefault(handle, []).append(token)
                    for end in ended:
                        assert end.handle not in finished
                        finished[end.handle] = end.kind
                case _:
                    pass
    return finished


def test_sequences_submitted_before_and_after_the_worker_came_get_their_tokens() -> None:
    with engine_process() as engine:
        frontend = registered(engine)
        frontend.send(submit(1, [5, 6, 7], 6))
        worker = PlayedWorker(engine.workers)
        info = frontend.until(lambda m: isinstance(m, EngineInfo) and m.state is EngineState.READY)
        assert isinstance(info, EngineInfo)
        assert (info.num_blocks, info.block_size, info.max_model_len) == (64, 4, 200)
        frontend.send(submit(2, [9] * 30, 4))
        got: dict[int, list[int]] = {}
        finished = collect(frontend, worker, got, 2)
        assert finished == {1: FinishKind.LENGTH, 2: FinishKind.LENGTH}
        assert got == {1: expected(1, [5, 6, 7], 6), 2: expected(2, [9] * 30, 4)}


def test_two_plans_are_in_flight_before_any_result() -> None:
    with engine_process() as engine:
        frontend = registered(engine)
        worker = PlayedWorker(engine.workers)
        frontend.send(submit(1, [5, 6, 7], 6))
        worker.peer.receive()  # Begin
        worker.peer.receive()
        second = worker.peer.receive()
        assert second.step_id == 1
        assert not worker.peer.socket.poll(100), "the third plan waits for the first result"


def test_a_lost_worker_is_a_pause_and_nothing_is_repeated() -> None:
    with engine_process() as engine:
        frontend = registered(engine)
        worker = PlayedWorker(engine.workers)
        prompts = {handle: [handle, 2, 3, 4, 5] for handle in range(1, 7)}  # more than there are slots
        for handle, prompt in prompts.items():
            frontend.send(submit(handle, prompt, 12))
        worker.answer(5)
        worker.peer.close()
        engine.command(WorkerLost(0))
        got: dict[int, list[int]] = {}

        def recovering(message: ToFrontend) -> bool:
            if isinstance(message, TokenBatch):
                for handle, token in zip(tokens_of(message.handles), tokens_of(message.tokens), strict=True):
                    got.setdefault(handle, []).append(token)
            return isinstance(message, EngineInfo) and message.state is EngineState.RECOVERING

        frontend.until(recovering)
        assert got, "some tokens came before the loss"
        heir = PlayedWorker(engine.workers, incarnation=3)  # the supervisor needed three tries
        finished = collect(frontend, heir, got, len(prompts))
        assert set(finished.values()) == {FinishKind.LENGTH}
        assert got == {handle: expected(handle, prompt, 12) for handle, prompt in prompts.items()}
        another = engine.frontend(1)
        another.send(Register(1, 0))
        info = another.receive()
        assert isinstance(info, EngineInfo)
        assert info.worker_restarts == 3


def test_a_new_engine_continues_from_the_given_tokens() -> None:
    whole = expected(4, [1, 2, 3], 10)
    with engine_process(incarnation=1) as engine:
        frontend = registered(engine)
        worker = PlayedWorker(engine.workers)
        frontend.send(submit(4, [1, 2, 3], 10, generated=tuple(whole[:7])))
        got: dict[int, list[int]] = {}
        assert collect(frontend, worker, got, 1) == {4: FinishKind.LENGTH}
        assert got == {4: whole[7:]}


def test_aborted_sequences_are_silent_and_an_operator_s_abort_is_not() -> None:
    with engine_process() as engine:
        frontend = registered(engine)
        worker = PlayedWorker(engine.workers)
        for handle, request_id in ((1, "a"), (2, "b"), (3, "b")):
            frontend.send(submit(handle, [handle] * 5, 50, request_id))
        worker.answer(3)
        frontend.send(Abort(pack([1, 77])))
        frontend.send(AbortRequest(9, "b"))
        answers = []
        finished: dict[int, FinishKind] = {}
        while len(answers) < 1 or len(finished) < 2:
            match frontend.receive():
                case Answer() as answer:
                    answers.append(answer)
                case TokenBatch(finished=ended):
                    finished.update({end.handle: end.kind for end in ended})
                case _:
                    pass
        assert answers == [Answer(9, 2)]
        assert finished == {2: FinishKind.ABORTED, 3: FinishKind.ABORTED}
        load = frontend.until(lambda m: isinstance(m, Load) and m.running == 0)
        assert isinstance(load, Load)
        assert (load.waiting, load.used_blocks) == (0, 0)
        frontend.send(ReadBlocks(11, 0, 8192))
        cached = frontend.until(lambda m: isinstance(m, BlockUses))
        assert isinstance(cached, BlockUses)
        assert len(cached.uses) == cached.num_blocks == load.total_blocks
        assert set(cached.uses) == {0, CACHED_ALONE}
        frontend.send(FlushCache(10))
        flushed = frontend.until(lambda m: isinstance(m, Answer))
        assert isinstance(flushed, Answer)
        assert flushed.value == cached.uses.count(CACHED_ALONE) > 0
        frontend.send(ReadBlocks(12, load.total_blocks - 2, 8192))
        assert frontend.until(lambda m: isinstance(m, BlockUses)) == BlockUses(12, bytes(2), load.total_blocks)


def test_there_are_no_blocks_before_there_is_a_worker() -> None:
    with engine_process() as engine:
        frontend = registered(engine)
        frontend.send(ReadBlocks(1, 0, 10))
        assert frontend.until(lambda m: isinstance(m, BlockUses)) == BlockUses(1, b"", 0)


def test_a_frontend_that_registers_anew_leaves_nothing_behind() -> None:
    with engine_process() as engine:
        frontend = registered(engine)
        other = registered(engine, index=1)
        worker = PlayedWorker(engine.workers)
        frontend.send(submit(1, [1] * 5, 50))
        other.send(submit(1, [2] * 5, 3))
        got: dict[int, list[int]] = {}
        collect(other, worker, got, 1)
        assert got == {1: expected(1, [2] * 5, 3)}, "handles of different frontends do not meet"
        frontend.close()
        heir = registered(engine, incarnation=1)
        load = heir.until(lambda m: isinstance(m, Load))
        assert isinstance(load, Load)
        assert (load.running, load.used_blocks) == (0, 0)


def test_what_does_not_decode_is_counted_and_disturbs_nobody() -> None:
    with engine_process() as engine:
        frontend = registered(engine)
        stranger = engine.frontend(7)
        worker = PlayedWorker(engine.workers)
        frontend.send(submit(1, [1, 2], 3))
        stranger.send(submit(1, [1, 2], 3))  # never registered
        for frame in (b"", b"\xff" * 40, b"\x92\xa6submit\x01", b"\xdd\xff\xff\xff\xff"):
            frontend.socket.send(frame)
            worker.peer.socket.send(frame)
        frontend.send(Abort(b"abc"))
        got: dict[int, list[int]] = {}
        collect(frontend, worker, got, 1)
        assert got == {1: expected(1, [1, 2], 3)}
        load = frontend.until(lambda m: isinstance(m, Load) and m.dropped_frames >= 10)
        assert isinstance(load, Load)
        assert load.dropped_frames == 10


def test_what_workers_could_not_read_is_counted_over_all_of_them() -> None:
    with engine_process() as engine:
        frontend = registered(engine)
        for incarnation, dropped in ((0, 3), (1, 1)):
            worker = PlayedWorker(engine.workers, incarnation=incarnation)
            frontend.send(submit(incarnation + 1, [1, 2], 1))
            while isinstance(message := worker.peer.receive(), Begin):
                worker.begin(message)
            assert isinstance(message, StepPlan)
            worker.run(message, dropped_frames=dropped)
            frontend.until(lambda m: isinstance(m, TokenBatch) and bool(m.finished))
            engine.command(WorkerLost(0))
        load = frontend.until(lambda m: isinstance(m, Load) and m.dropped.get("worker.malformed", 0) > 3)
        assert isinstance(load, Load)
        assert load.dropped["worker.malformed"] == 4


def test_every_kind_of_what_is_dropped_is_counted_from_zero() -> None:
    kinds = {f"{border}.{kind}" for border in BORDERS for kind in (*Dropped, "refused_connections")}
    assert set(DROPPED) == kinds | {"worker.malformed"}
    with engine_process(measures=True) as engine:
        assert engine.told(EngineMeasured).counts.dropped_frames == dict.fromkeys(DROPPED, 0)


def test_a_last_step_is_charged_until_its_result() -> None:
    with engine_process(measures=True, load_interval_s=0.5) as engine:
        frontend = registered(engine)
        worker = PlayedWorker(engine.workers)
        frontend.send(submit(1, [1, 2], 1))
        assert collect(frontend, worker, {}, 1) == {1: FinishKind.LENGTH}
        while not (report := engine.told(EngineMeasured)).counts.output_tokens:
            pass
        assert report.counts.block_seconds[""] > 0.0, "it held a block from its plan to its result"


def test_refusals_reach_the_frontend() -> None:
    with engine_process(max_queued=1) as engine:
        frontend = registered(engine)
        worker = PlayedWorker(engine.workers)
        frontend.until(lambda m: isinstance(m, EngineInfo) and m.state is EngineState.READY)
        frontend.send(submit(1, [1] * 150, 51))
        rejected = frontend.until(lambda m: isinstance(m, Rejected))
        assert isinstance(rejected, Rejected)
        assert (rejected.kind, rejected.field) == (RejectKind.INVALID, "stopping.max_tokens")
        frontend.send(submit(2, [VOCAB_SIZE], 1))
        rejected = frontend.until(lambda m: isinstance(m, Rejected))
        assert isinstance(rejected, Rejected)
        assert "outside 0 to 100" in rejected.message
        worker.peer.close()


def test_time_without_a_worker_is_time_in_the_queue() -> None:
    with engine_process() as engine:
        frontend = registered(engine)
        frontend.send(msgspec.structs.replace(submit(1, [1, 2], 3), max_queue_time_s=0.2))
        frontend.send(msgspec.structs.replace(submit(2, [1, 2], 3), max_queue_time_s=1000.0))
        rejected = frontend.until(lambda m: isinstance(m, Rejected))
        assert isinstance(rejected, Rejected)
        assert (rejected.handle, rejected.kind) == (1, RejectKind.QUEUE_TIMEOUT)
        worker = PlayedWorker(engine.workers)
        got: dict[int, list[int]] = {}
        collect(frontend, worker, got, 1)
        assert got == {2: expected(2, [1, 2], 3)}
        worker.peer.close()


def test_draining_is_a_state_and_stopping_a_status_of_zero() -> None:
    with engine_process() as engine:
        frontend = registered(engine)
        engine.command(Drain(0.0, 1.0))
        frontend.until(lambda m: isinstance(m, EngineInfo) and m.state is EngineState.DRAINING)
        engine.command(Stop())
        assert engine.process.wait(LIMIT_S) == 0


def test_a_step_without_an_answer_is_reported_and_its_workers_loss_recovered() -> None:
    with engine_process(hang_timeout_s=0.4) as engine:
        frontend = registered(engine)
        worker = PlayedWorker(engine.workers)
        frontend.send(submit(1, [5, 6, 7], 6))
        worker.answer(2)
        assert engine.reports(StepOverdue(0.4, incarnation=0))
        worker.peer.close()
        engine.command(WorkerLost(0))
        worker = PlayedWorker(engine.workers, incarnation=1)
        assert engine.reports(StepOverdue(0.4, incarnation=1))
        got: dict[int, list[int]] = {}
        collect(frontend, worker, got, 1)
        assert got == {1: expected(1, [5, 6, 7], 6)}
        assert engine.reports(Served())
        # Without work there is nothing to answer, and the engine says all the time that it goes round.
        for _ in range(20):
            assert set(engine.news()) <= {Alive(), Ready(), Served()}


def test_a_launch_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "engine.json"
    for content in (b'{"incarnation": "\xff"}', b"[" * 100_000, b"{}"):
        file.write_bytes(content)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = [sys.executable, "-m", "pagewire.scheduler_svc.engine", "--launch", str(file)]
            fd = theirs.fileno()
            ended = subprocess.run(
                [*command, "--lifeline-fd", str(fd)], pass_fds=[fd], capture_output=True, check=False
            )
            said = JsonCodec[FromChild](FromChild).decode(ours.recv(65536))
        assert isinstance(said, Failed)
        assert said.message.startswith(f"the launch file {file} is wrong: ")
        assert (ended.returncode, ended.stderr) == (1, b"")


def test_an_orphaned_engine_ends() -> None:
    with engine_process() as engine:
        registered(engine)
        engine.control.close()
        assert engine.process.wait(LIMIT_S) != 0


@pytest.mark.parametrize("wrong", ["step", "count"])
def test_a_worker_that_answers_nonsense_ends_the_engine_loudly(wrong: str) -> None:
    with engine_process() as engine:
        frontend = registered(engine)
        worker = PlayedWorker(engine.workers)
        frontend.send(submit(1, [1, 2], 3))
        worker.peer.receive()
        plan = worker.peer.receive()
        assert isinstance(plan, StepPlan)
        result = StepResult(plan.epoch, plan.step_id + 1, pack([1]), 1, 1)
        if wrong == "count":
            result = StepResult(plan.epoch, plan.step_id, pack([1, 2]), 1, 1)
        worker.peer.send(result)
        assert engine.process.wait(LIMIT_S) not in (0, None)
