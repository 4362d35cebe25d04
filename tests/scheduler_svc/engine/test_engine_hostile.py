"""The engine as a process against peers that send what they should not: nobody else notices.

Each test ends with a sequence of a well-behaved frontend that gets exactly its tokens.
"""

import math
import os
from collections.abc import Iterator
from random import Random

import msgspec
import pytest
from support.engine_process import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    VOCAB_SIZE,
    EngineProcess,
    PlayedWorker,
    engine_process,
    tokens_of,
)
from support.worse_bytes import always, worse

from pagewire.wire.codec import Codec
from pagewire.wire.columns import pack
from pagewire.wire.control import WorkerLost
from pagewire.wire.plan import PROTOCOL_VERSION, Begin, FromWorker, StepPlan, StepResult, WorkerHello
from pagewire.wire.requests import (
    Abort,
    EngineInfo,
    EngineState,
    FinishKind,
    FromFrontend,
    Load,
    Pause,
    Register,
    Rejected,
    RejectKind,
    TokenBatch,
)
from pagewire.wire.sampling import SamplingParams

from .test_engine_process import Frontend, collect, expected, registered, submit

GOOD = SamplingParams(0.0, 0, 1.0, 5)
ROUNDS = int(os.environ.get("PAGEWIRE_TEST_RUNS", "300"))
HELLO = WorkerHello(
    protocol_version=PROTOCOL_VERSION,
    rank=0,
    incarnation=9,
    num_blocks=64,
    block_size=BLOCK_SIZE,
    max_num_seqs=4,
    max_model_len=MAX_MODEL_LEN,
    vocab_size=VOCAB_SIZE,
    weights_bytes=1,
    kv_cache_bytes=2,
    attention_backend="",
    linear_backend="",
    versions={},
)


@pytest.fixture
def engine() -> Iterator[EngineProcess]:
    with engine_process() as process:
        yield process


def serves(engine: EngineProcess, worker: PlayedWorker, index: int = 9) -> None:
    """Another frontend's sequence gets its tokens."""
    frontend = registered(engine, index)
    frontend.send(submit(1, [5, 6, 7], 6))
    got: dict[int, list[int]] = {}
    assert collect(frontend, worker, got, 1) == {1: FinishKind.LENGTH}
    assert got == {1: expected(1, [5, 6, 7], 6)}
    assert engine.process.poll() is None


def dropped(frontend: Frontend, least: int) -> int:
    load = frontend.until(lambda m: isinstance(m, Load) and m.dropped_frames >= least)
    assert isinstance(load, Load)
    return load.dropped_frames


def test_a_frame_that_is_no_utf_8_is_counted_on_both_sockets(engine: EngineProcess) -> None:
    frontend, worker = registered(engine), PlayedWorker(engine.workers)
    for socket in (frontend.socket, worker.peer.socket):
        socket.send(b"\x92\xa1\xff\x01")
    assert dropped(frontend, 2) == 2
    serves(engine, worker)


BAD_FIELDS: dict[str, dict[str, object]] = {
    "temperature is nan": {"sampling": msgspec.structs.replace(GOOD, temperature=math.nan)},
    "temperature is inf": {"sampling": msgspec.structs.replace(GOOD, temperature=math.inf)},
    "temperature is 1e+300": {"sampling": msgspec.structs.replace(GOOD, temperature=1e300)},
    "top_k is -1": {"sampling": msgspec.structs.replace(GOOD, top_k=-1)},
    "top_p is nan": {"sampling": msgspec.structs.replace(GOOD, top_p=math.nan)},
    "top_p is 0.0": {"sampling": msgspec.structs.replace(GOOD, top_p=0.0)},
    "seed is -1": {"sampling": msgspec.structs.replace(GOOD, seed=-1)},
    "token ids 101 to 101": {"prompt": pack([VOCAB_SIZE])},
    "token ids -1 to -1": {"generated": pack([-1])},
    "no column of int32": {"prompt": b"abcde"},
    "3 bytes are no column": {"generated": b"abc"},
    "0 prompt tokens": {"prompt": b""},
    "max_tokens 0": {"max_tokens": 0},
    "exceed 200": {"max_tokens": 2**62},
    "5 tokens are generated; max_tokens is 4": {"generated": pack([1] * 5), "max_tokens": 4},
    "token 0 of 2 generated ends the output": {"generated": pack([7, 8]), "stop_token_ids": [7]},
    "stop_token_ids has 101": {"stop_token_ids": [VOCAB_SIZE]},
    "stop_token_ids has -1": {"stop_token_ids": [-1]},
    "priority is 4611686018427387904": {"priority": 2**62},
    "request_id has 2000 characters": {"request_id": "r" * 2000},
    "salt has 2000 bytes": {"salt": b"s" * 2000},
    "max_queue_time_s is nan": {"max_queue_time_s": math.nan},
    "max_queue_time_s is inf": {"max_queue_time_s": math.inf},
    "max_queue_time_s is -1.0": {"max_queue_time_s": -1.0},
}


@pytest.mark.parametrize("is_early", [False, True], ids=["with a worker", "before the worker"])
def test_a_bad_submission_is_refused_by_its_handle_and_nothing_else_is_disturbed(is_early: bool) -> None:
    with engine_process(max_queued=64) as engine:
        frontend = registered(engine)
        worker = None if is_early else PlayedWorker(engine.workers)
        frontend.send(submit(1, [5, 6, 7], 6))
        for handle, change in enumerate(BAD_FIELDS.values(), start=2):
            frontend.send(msgspec.structs.replace(submit(handle, [1, 2], 4), **change))
        worker = worker or PlayedWorker(engine.workers)
        messages: dict[int, str] = {}
        got: dict[int, list[int]] = {}
        while len(messages) < len(BAD_FIELDS) or len(got.get(1, [])) < 6:
            if worker.peer.socket.poll(20):
                worker.answer_one()
            while frontend.socket.poll(0):
                match frontend.receive():
                    case Rejected(handle=handle, kind=kind, message=message):
                        assert kind is RejectKind.INVALID
                        assert handle not in messages
                        messages[handle] = message
                    case TokenBatch(handles=handles, tokens=tokens):
                        for handle, token in zip(tokens_of(handles), tokens_of(tokens), strict=True):
                            got.setdefault(handle, []).append(token)
                    case _:
                        pass
        assert got == {1: expected(1, [5, 6, 7], 6)}
        for handle, part in enumerate(BAD_FIELDS, start=2):
            assert part in messages[handle], messages[handle]
        serves(engine, worker)


def test_what_cannot_be_named_is_counted(engine: EngineProcess) -> None:
    frontend, worker = registered(engine), PlayedWorker(engine.workers)
    frontend.send(submit(1, [5, 6, 7], 6))
    bad = [submit(handle, [1, 2], 4) for handle in (2**40, -1, 2**31)]
    for message in (*bad, submit(1, [9], 2), Abort(b"\0" * 4 * 70_000), Abort(b"abc"), Pause(b"abc")):
        frontend.send(message)
    got: dict[int, list[int]] = {}
    assert collect(frontend, worker, got, 1) == {1: FinishKind.LENGTH}
    assert got == {1: expected(1, [5, 6, 7], 6)}, "the sequence whose handle came twice goes on"
    assert dropped(frontend, 7) == 7
    serves(engine, worker)


@pytest.mark.parametrize("incarnation", [2**40, 2**30], ids=["no number of a process", "a number too high"])
def test_a_wrong_incarnation_locks_nobody_out(engine: EngineProcess, incarnation: int) -> None:
    worker = PlayedWorker(engine.workers)
    frontend = registered(engine)
    frontend.send(Register(0, incarnation))  # a slip of its own: it is known by another already
    assert dropped(frontend, 1) == 1
    frontend.send(submit(1, [5, 6, 7], 6))
    got: dict[int, list[int]] = {}
    collect(frontend, worker, got, 1)
    assert got == {1: expected(1, [5, 6, 7], 6)}
    stranger = engine.frontend(0, 77)
    stranger.send(Register(0, incarnation))
    if incarnation < 2**31:
        assert isinstance(stranger.receive(), EngineInfo)
    stranger.close()
    frontend.close()
    while True:  # the socket notices in its own time; a frontend registers again until it is heard
        heir = engine.frontend(0, 1)
        heir.send(Register(0, 1))
        if heir.socket.poll(200):
            break
        heir.close()
    assert isinstance(heir.receive(), EngineInfo)
    serves(engine, worker)


def test_a_hello_that_cannot_be_takes_no_workers_place(engine: EngineProcess) -> None:
    frontend, worker = registered(engine), PlayedWorker(engine.workers)
    frontend.until(lambda m: isinstance(m, EngineInfo) and m.state is EngineState.READY)
    encoder = Codec[FromWorker](FromWorker)
    changes: list[dict[str, object]] = [
        {"rank": 1},
        {"rank": 2**40},
        {"incarnation": 2**40},
        {"num_blocks": 0},
        {"num_blocks": 2**30},
        {"num_blocks": 2**62},
        {"block_size": 0},
        {"block_size": 2**30},
        {"vocab_size": VOCAB_SIZE + 1},
        {"max_num_seqs": 5},
        {"max_model_len": 199},
        {"weights_bytes": -1},
        {"kv_cache_bytes": 2**63},
        {"versions": {"v": "x" * 5000}},
        {"protocol_version": PROTOCOL_VERSION + 1},
    ]
    stranger = engine.frontend(5)
    stranger.socket.connect(engine.workers)
    stranger.socket.disconnect(engine.frontends)
    for change in changes:
        stranger.socket.send(encoder.encode(msgspec.structs.replace(HELLO, **change)))
    assert dropped(frontend, len(changes)) == len(changes)
    serves(engine, worker)


def test_a_step_whose_times_are_nonsense_counts_for_none(engine: EngineProcess) -> None:
    frontend, worker = registered(engine), PlayedWorker(engine.workers)
    frontend.send(submit(1, [5, 6, 7], 6))
    begin, plan = worker.peer.receive(), worker.peer.receive()
    assert isinstance(begin, Begin)
    assert isinstance(plan, StepPlan)
    worker.begin(begin)
    worker.run(plan, busy_us=2**63, idle_us=-(2**63))
    got: dict[int, list[int]] = {}
    collect(frontend, worker, got, 1)
    assert got == {1: expected(1, [5, 6, 7], 6)}
    serves(engine, worker)


def test_random_bytes_and_messages_end_nothing() -> None:
    random = Random(11)
    from_frontend, from_worker = Codec[FromFrontend](FromFrontend), Codec[FromWorker](FromWorker)
    asked = [from_frontend.encode(m) for m in (submit(3, [1, 2], 4), Register(0, 0), Abort(pack([3])))]
    said = [from_worker.encode(m) for m in (HELLO, StepResult(2**30, 0, pack([1]), 1, 1))]
    with engine_process(max_queued=2000) as engine:
        frontend, worker = registered(engine), PlayedWorker(engine.workers)
        stranger = engine.frontend(6, 3)
        away = engine.frontend(7)
        away.socket.connect(engine.workers)
        away.socket.disconnect(engine.frontends)
        for frame in (*always(), *(worse(random.choice(asked), random) for _ in range(ROUNDS))):
            frontend.socket.send(frame)
            stranger.socket.send(frame)
        for frame in (*always(), *(worse(said[1], random) for _ in range(ROUNDS))):
            away.socket.send(frame)
        assert dropped(frontend, 100) >= 100
        frontend.send(Register(0, 0))  # whatever was taken over of all that ends
        serves(engine, worker)


def ready(frontend: Frontend, num_blocks: int) -> EngineInfo:
    info = frontend.until(
        lambda m: isinstance(m, EngineInfo) and m.state is EngineState.READY and m.num_blocks == num_blocks
    )
    assert isinstance(info, EngineInfo)
    return info


def test_a_worker_that_comes_back_with_fewer_blocks_serves_what_they_hold(engine: EngineProcess) -> None:
    frontend, worker = registered(engine), PlayedWorker(engine.workers)
    assert ready(frontend, 64).max_model_len == MAX_MODEL_LEN
    frontend.send(submit(1, [5, 6, 7], 6))
    frontend.send(submit(2, [8] * 30, 30))  # comes to 60 tokens
    frontend.send(submit(3, [9] * 60, 100))  # has more than 40 already
    worker.answer(3)
    worker.peer.close()
    engine.command(WorkerLost(0))
    heir = PlayedWorker(engine.workers, incarnation=1, num_blocks=10)
    got: dict[int, list[int]] = {}
    kinds: dict[int, FinishKind] = {}
    limits: dict[int, int] = {}
    infos: list[EngineInfo] = []
    while len(kinds) < 3:
        if heir.peer.socket.poll(20):
            heir.answer_one()
        while frontend.socket.poll(0):
            match frontend.receive():
                case TokenBatch(handles=handles, tokens=tokens, finished=finished):
                    for handle, token in zip(tokens_of(handles), tokens_of(tokens), strict=True):
                        got.setdefault(handle, []).append(token)
                    kinds.update({end.handle: end.kind for end in finished})
                    limits.update({end.handle: end.limit for end in finished})
                case EngineInfo() as info:
                    infos.append(info)
                case _:
                    pass
    assert kinds == {1: FinishKind.LENGTH, 2: FinishKind.NO_ROOM, 3: FinishKind.NO_ROOM}
    assert limits == {1: 0, 2: 41, 3: 41}
    assert got[1] == expected(1, [5, 6, 7], 6)
    assert got[2] == expected(2, [8] * 30, 30)[:11], "it got all that there is room for"
    assert (infos[-1].num_blocks, infos[-1].max_model_len) == (10, 41)
    frontend.send(submit(4, [1] * 20, 22))
    rejected = frontend.until(lambda m: isinstance(m, Rejected))
    assert isinstance(rejected, Rejected)
    assert (rejected.kind, "exceed 41" in rejected.message) == (RejectKind.INVALID, True)
    serves(engine, heir)
    # More again: the first count is not a limit.
    heir.peer.close()
    engine.command(WorkerLost(0))
    another = PlayedWorker(engine.workers, incarnation=2, num_blocks=80)
    assert ready(frontend, 80).max_model_len == MAX_MODEL_LEN
    frontend.send(submit(5, [8] * 30, 30))
    got.clear()
    assert collect(frontend, another, got, 1) == {5: FinishKind.LENGTH}
    assert got == {5: expected(5, [8] * 30, 30)}
    serves(engine, another, index=8)


def test_a_new_engine_continues_a_stream_as_far_as_less_memory_holds_it() -> None:
    whole = expected(4, [1] * 20, 40)
    with engine_process(incarnation=1) as engine:
        frontend = registered(engine)
        worker = PlayedWorker(engine.workers, num_blocks=8)
        ready(frontend, 8)
        frontend.send(submit(4, [1] * 20, 40, generated=tuple(whole[:7])))
        got: dict[int, list[int]] = {}
        assert collect(frontend, worker, got, 1) == {4: FinishKind.NO_ROOM}
        assert got == {4: whole[7:13]}, "33 tokens fit"
        frontend.send(submit(5, [1] * 20, 40, generated=tuple(whole[:20])))
        assert collect(frontend, worker, got, 1) == {5: FinishKind.NO_ROOM}
        assert engine.process.poll() is None
