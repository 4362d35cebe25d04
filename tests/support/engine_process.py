"""A real engine process with a scripted frontend and a content worker at the wire seam.

The test plays both peers over real sockets: `Peer` is one DEALER with typed messages; every wait has a limit.
"""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
import zmq
from support.content_worker import ContentWorker

from pagewire.scheduler_svc.launch import EngineLaunch
from pagewire.wire.codec import Codec, JsonCodec
from pagewire.wire.columns import pack, unpack
from pagewire.wire.control import FromChild, ToChild
from pagewire.wire.launch import Endpoint
from pagewire.wire.plan import PROTOCOL_VERSION, Begin, FromWorker, StepPlan, StepResult, ToWorker, WorkerHello
from pagewire.wire.requests import EngineInfo, FromFrontend, Register, Submit, ToFrontend
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.slots.columns import SlotLimits

LIMIT_S = 10.0
VOCAB_SIZE = 101
MAX_NUM_SEQS = 4
MAX_MODEL_LEN = 200
BLOCK_SIZE = 4

Sent = TypeVar("Sent")
Received = TypeVar("Received")
News = TypeVar("News", bound=FromChild)


class Peer(Generic[Sent, Received]):
    """One DEALER that sends and receives typed messages."""

    def __init__(self, address: str, identity: bytes, sends: object, receives: object) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.connect(address)
        self._sends: Codec[Sent] = Codec(sends)
        self._receives: Codec[Received] = Codec(receives)

    def send(self, message: Sent) -> None:
        self.socket.send(self._sends.encode(message))

    def receive(self) -> Received:
        """The next message. An empty one only asks whether this peer is still there, and is dropped as it should be."""
        frame = b""
        while not frame:
            assert self.socket.poll(int(LIMIT_S * 1000)), "nothing came"
            frame = self.socket.recv()
        return self._receives.decode(frame)

    def until(self, wanted: Callable[[Received], bool]) -> Received:
        """The first message that is wanted; others are passed over."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            if wanted(message := self.receive()):
                return message
        raise AssertionError("the message that was waited for did not come")

    def close(self) -> None:
        self.socket.close(0)


class PlayedWorker:
    """A content worker at the other end of the engine's socket, answering one plan per call."""

    def __init__(
        self, address: str, incarnation: int = 0, num_blocks: int = 64, rank: int = 0, terms_digest: str = ""
    ) -> None:
        identity = f"{rank}:{incarnation}".encode()
        self.peer: Peer[FromWorker, ToWorker] = Peer(address, identity, FromWorker, ToWorker)
        self._worker = ContentWorker(
            SlotLimits(
                max_num_seqs=MAX_NUM_SEQS,
                max_model_len=MAX_MODEL_LEN,
                max_num_batched_tokens=64,
                block_size=BLOCK_SIZE,
                num_blocks=num_blocks,
                vocab_size=VOCAB_SIZE,
            )
        )
        self.peer.send(
            WorkerHello(
                protocol_version=PROTOCOL_VERSION,
                rank=rank,
                incarnation=incarnation,
                num_blocks=num_blocks,
                block_size=BLOCK_SIZE,
                max_num_seqs=MAX_NUM_SEQS,
                max_model_len=MAX_MODEL_LEN,
                vocab_size=VOCAB_SIZE,
                weights_bytes=1,
                kv_cache_bytes=2,
                attention_backend="played",
                linear_backend="played",
                versions={},
                terms_digest=terms_digest,
            )
        )

    def answer(self, steps: int = 1) -> None:
        """Run this many plans, and whatever epochs begin between them."""
        while steps:
            steps -= self.answer_one()

    def answer_one(self) -> bool:
        """Act on one message; whether it was a plan."""
        message = self.peer.receive()
        if isinstance(message, Begin):
            self.begin(message)
            return False
        assert isinstance(message, StepPlan)
        self.run(message)
        return True

    def begin(self, begin: Begin) -> None:
        """Open an epoch."""
        self._worker.begin(begin.epoch)

    def run(self, plan: StepPlan, busy_us: int = 10, idle_us: int = 1, dropped_frames: int = 0) -> None:
        """Run one plan and answer it."""
        tokens = self._worker.execute(plan)
        self.peer.send(
            StepResult(plan.epoch, plan.step_id, pack(tokens), busy_us, idle_us, dropped_frames=dropped_frames)
        )


class EngineProcess:
    """The process, its addresses, and the supervisor's end of its lifeline."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, frontends: str, workers: str) -> None:
        self.process = process
        self.control = control
        self.frontends = frontends
        self.workers = workers

    def command(self, message: ToChild) -> None:
        self.control.sendall(JsonCodec[ToChild](ToChild).encode_line(message))

    def news(self) -> list[FromChild]:
        """What the engine reports, as soon as it reports something; signs of life count."""
        self.control.settimeout(LIMIT_S)
        lines = self.control.recv(65536).splitlines()
        return [JsonCodec[FromChild](FromChild).decode(line) for line in lines]

    def reports(self, wanted: FromChild) -> bool:
        """Wait until the engine reports this; false where it did not in time."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            if wanted in self.news():
                return True
        return False

    def told(self, kind: type[News]) -> News:
        """The first report of this kind."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            for news in self.news():
                if isinstance(news, kind):
                    return news
        raise AssertionError(f"the engine did not say {kind.__name__}")

    def frontend(self, index: int = 0, incarnation: int = 0) -> Peer[FromFrontend, ToFrontend]:
        identity = f"frontend-{index}:{incarnation}".encode()
        return Peer(self.frontends, identity, FromFrontend, ToFrontend)


def registered(engine: EngineProcess, index: int = 0, incarnation: int = 0) -> Peer[FromFrontend, ToFrontend]:
    """A frontend that the engine has answered."""
    frontend = engine.frontend(index, incarnation)
    frontend.send(Register(index, incarnation))
    assert isinstance(frontend.receive(), EngineInfo)
    return frontend


def submit(
    handle: int, prompt: list[int], max_tokens: int, request_id: str = "r", generated: tuple[int, ...] = ()
) -> Submit:
    """A submission, whose seed is its handle."""
    sampling = SamplingParams(0.0, 0, 1.0, handle)
    return Submit(
        handle, request_id, pack(prompt), pack(generated), sampling, max_tokens, [], True, 0, b"", None
    )  # fmt: skip


@contextmanager
def engine_process(
    program: Sequence[str] = ("-m", "pagewire.scheduler_svc.engine"), **changes: object
) -> Iterator[EngineProcess]:
    """Start an engine; it is gone when the block ends. `program` is what Python runs."""
    directory = Path(tempfile.mkdtemp(prefix="pw"))
    frontends, workers = f"ipc://{directory}/f", f"ipc://{directory}/w"
    defaults = EngineLaunch(
        incarnation=0,
        frontends=Endpoint(address=frontends),
        workers=Endpoint(address=workers),
        world_size=1,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=(0,),
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=64,
        max_prefill_tokens_per_step=32,
        max_queued=8,
        max_queued_tokens=1 << 20,
        enable_prefix_caching=True,
        pipeline_depth=2,
        load_interval_s=0.05,
        hang_timeout_s=0.0,
        step_slack_s=1.5,
    )
    launch = msgspec.structs.replace(defaults, **changes)
    file = directory / "engine.json"
    file.write_bytes(msgspec.json.encode(launch))
    ours, theirs = socket.socketpair()
    command = [sys.executable, *program, "--launch", str(file)]
    process = subprocess.Popen([*command, "--lifeline-fd", str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()
    try:
        yield EngineProcess(process, ours, frontends, workers)
    finally:
        ours.close()
        process.kill()
        process.wait()
        shutil.rmtree(directory)


def tokens_of(column: bytes) -> list[int]:
    """A column's values."""
    values: list[int] = unpack(column).tolist()
    return values
