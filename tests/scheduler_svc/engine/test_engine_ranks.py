"""The engine before several ranks: who makes a group, what each is sent, and what the loss of one means."""

import time
from collections.abc import Callable, Iterator

import pytest
from support.content_worker import expected_output
from support.engine_process import LIMIT_S, VOCAB_SIZE, EngineProcess, Peer, PlayedWorker, engine_process, tokens_of

from pagewire.wire.columns import pack
from pagewire.wire.control import Ready, WorkerLost
from pagewire.wire.plan import Begin, StepPlan, StepResult
from pagewire.wire.requests import EngineInfo, EngineState, FromFrontend, Register, Submit, ToFrontend, TokenBatch
from pagewire.wire.sampling import SamplingParams

PROMPT = [5, 6, 7]
NUM_TOKENS = 12
EXPECTED = expected_output(PROMPT, 1, NUM_TOKENS, frozenset(), VOCAB_SIZE)


@pytest.fixture
def engine() -> Iterator[EngineProcess]:
    with engine_process(world_size=2) as engine:
        yield engine


class Frontend:
    """A frontend with one sequence, which remembers what it is told."""

    def __init__(self, engine: EngineProcess) -> None:
        self.peer: Peer[FromFrontend, ToFrontend] = engine.frontend()
        self.tokens: list[int] = []
        self.info: EngineInfo | None = None
        self.peer.send(Register(0, 0))
        sampling = SamplingParams(0.0, 0, 1.0, 1)
        self.peer.send(Submit(1, "r", pack(PROMPT), b"", sampling, NUM_TOKENS, [], True, 0, b"", None))

    def wait(self, wanted: Callable[[], bool], worker: PlayedWorker | None = None) -> None:
        """Read until this holds, and let the worker answer."""
        deadline_s = time.monotonic() + LIMIT_S
        while not wanted():
            assert time.monotonic() < deadline_s, (self.tokens, self.info)
            if worker is not None and worker.peer.socket.poll(10):
                worker.answer_one()
            if self.peer.socket.poll(10):
                match self.peer.receive():
                    case TokenBatch(tokens=tokens):
                        self.tokens += tokens_of(tokens)
                    case EngineInfo() as info:
                        self.info = info
                    case _:
                        pass

    def wait_for(self, state: EngineState, restarts: int = 0) -> None:
        self.wait(lambda: self.info is not None and (self.info.state, self.info.worker_restarts) == (state, restarts))

    def all_tokens(self, worker: PlayedWorker) -> list[int]:
        self.wait(lambda: len(self.tokens) >= NUM_TOKENS, worker)
        return self.tokens


def test_every_rank_gets_the_same_plans_and_the_first_answers(engine: EngineProcess) -> None:
    frontend = Frontend(engine)
    second = PlayedWorker(engine.workers, rank=1)
    assert not second.peer.socket.poll(200), "half a group begins nothing"
    first = PlayedWorker(engine.workers)
    frontend.wait_for(EngineState.READY)
    assert frontend.info is not None
    assert frontend.info.weights_bytes == 2
    second.peer.send(StepResult(0, 0, pack([1]), 10, 1))  # says nothing to the engine
    assert frontend.all_tokens(first) == EXPECTED
    seen = [second.peer.receive() for _ in range(1 + NUM_TOKENS)]
    assert isinstance(seen[0], Begin)
    assert [plan.step_id for plan in seen[1:] if isinstance(plan, StepPlan)] == list(range(NUM_TOKENS))
    assert seen[1].admit, "the prompt"


def test_the_loss_of_one_rank_is_one_loss_of_all(engine: EngineProcess) -> None:
    frontend = Frontend(engine)
    ranks = [PlayedWorker(engine.workers, rank=rank) for rank in range(2)]
    ranks[0].answer(3)
    for incarnation in (1, 2):
        for rank in range(2):
            ranks[rank].peer.close()
            engine.command(WorkerLost(rank))
        frontend.wait_for(EngineState.RECOVERING, incarnation - 1)
        ranks = [PlayedWorker(engine.workers, incarnation, rank=rank) for rank in range(2)]
        frontend.wait_for(EngineState.READY, incarnation)
        ranks[0].answer()
    assert frontend.all_tokens(ranks[0]) == EXPECTED


def test_a_rank_of_an_earlier_start_completes_no_group(engine: EngineProcess) -> None:
    frontend = Frontend(engine)
    early = PlayedWorker(engine.workers, 0, rank=1)
    first = PlayedWorker(engine.workers, 1)
    assert not early.peer.socket.poll(300)
    _second = PlayedWorker(engine.workers, 1, rank=1)  # kept: its socket must stay open
    assert frontend.all_tokens(first) == EXPECTED


def wait_until_first_has_come(engine: EngineProcess) -> None:
    """Hellos on two sockets come in any order; here rank 0's must be known before the next is sent."""
    observer: Peer[FromFrontend, ToFrontend] = engine.frontend(1)
    deadline_s = time.monotonic() + LIMIT_S
    weights_bytes = 0
    while weights_bytes == 0:
        assert time.monotonic() < deadline_s
        observer.send(Register(1, 0))
        info = observer.until(lambda message: isinstance(message, EngineInfo))
        assert isinstance(info, EngineInfo)
        weights_bytes = info.weights_bytes


@pytest.mark.parametrize("wrong", ["terms", "rank"])
def test_a_rank_that_fits_no_group_is_refused(engine: EngineProcess, wrong: str) -> None:
    frontend = Frontend(engine)
    first = PlayedWorker(engine.workers, terms_digest="a")
    wait_until_first_has_come(engine)
    other = PlayedWorker(engine.workers, rank=1 if wrong == "terms" else 2, terms_digest="b")
    assert not other.peer.socket.poll(300)
    other.peer.close()
    _second = PlayedWorker(engine.workers, rank=1, terms_digest="a")
    assert engine.reports(Ready())
    assert frontend.all_tokens(first) == EXPECTED
