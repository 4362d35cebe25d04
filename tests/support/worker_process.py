"""A real worker process, its supervisor's end of the lifeline, and a scripted engine on a real socket."""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec
import zmq

from pagewire.wire.codec import Codec, JsonCodec
from pagewire.wire.control import FromChild, ToChild
from pagewire.wire.launch import CurveKeys, Endpoint, WorkerLaunch
from pagewire.wire.model import DecoderConfig, ModelSpec
from pagewire.wire.plan import FromWorker, ToWorker

TIMEOUT_S = 30.0


def sim_launch(address: str, **changes: object) -> WorkerLaunch:
    """A worker on the sim device, with a small model."""
    decoder = DecoderConfig(
        architecture="qwen3",
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        vocab_size=1000,
        max_position_embeddings=512,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=True,
        qk_norm=True,
        qkv_bias=False,
    )
    model = ModelSpec(
        name="tiny",
        decoder=decoder,
        weights_format="random",
        weights_files=(),
        weights_digest="",
        eos_token_ids=(7,),
        tokenizer_file=None,
    )
    launch = WorkerLaunch(
        model=model,
        device="sim",
        dtype="bfloat16",
        rank=0,
        world_size=1,
        incarnation=1,
        engine=Endpoint(address=address),
        max_num_seqs=8,
        max_model_len=256,
        max_num_batched_tokens=512,
        block_size=16,
        kv_cache_bytes=None,
        num_threads=None,
    )
    return msgspec.structs.replace(launch, **changes)


@contextlib.contextmanager
def ipc_address() -> Iterator[str]:
    """An ipc address short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="pw") as directory:
        yield f"ipc://{directory}/w"


class WorkerProcess:
    """`python -m pagewire.worker run`, as a supervisor runs it. Ends the process when left."""

    def __init__(self, launch: WorkerLaunch | bytes, directory: Path) -> None:
        path = directory / "worker.json"
        path.write_bytes(launch if isinstance(launch, bytes) else msgspec.json.encode(launch))
        self.lifeline, child = socket.socketpair()
        self.lifeline.settimeout(TIMEOUT_S)
        self._lines = self.lifeline.makefile("rb")
        self._from_child: JsonCodec[FromChild] = JsonCodec(FromChild)
        self._to_child: JsonCodec[ToChild] = JsonCodec(ToChild)
        command = [sys.executable, "-m", "pagewire.worker", "run", "--launch", str(path)]
        self._stderr = directory / "worker.stderr"
        with child, self._stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [*command, "--lifeline-fd", str(child.fileno())], pass_fds=[child.fileno()], stderr=stderr
            )

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._lines.close()
        self.lifeline.close()

    def tell(self, command: ToChild) -> None:
        """Send a command over the lifeline."""
        self.lifeline.sendall(self._to_child.encode_line(command))

    def news(self) -> FromChild:
        """The next message from the worker."""
        return self._from_child.decode(self._lines.readline())

    def hang_up(self) -> None:
        """What a supervisor's death looks like."""
        self.lifeline.shutdown(socket.SHUT_RDWR)

    def exit_status(self, timeout_s: float = TIMEOUT_S) -> int:
        """Wait for the end."""
        return self.process.wait(timeout_s)

    def stderr(self) -> str:
        """Everything it wrote; call after its end."""
        return self._stderr.read_text()


class ScriptedEngine:
    """An engine's end of the socket, without an engine."""

    def __init__(self, address: str, *, curve: tuple[bytes, bytes] | None = None) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.router_handover = True
        self._socket.rcvtimeo = int(TIMEOUT_S * 1000)
        if curve is not None:
            self._socket.curve_server = True
            self._socket.curve_publickey, self._socket.curve_secretkey = curve
        self._socket.bind(address)
        self.address = self._socket.last_endpoint.decode()
        self.identity = b""
        self._from_worker: Codec[FromWorker] = Codec(FromWorker)
        self._to_worker: Codec[ToWorker] = Codec(ToWorker)

    def __enter__(self) -> "ScriptedEngine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._socket.close()
        self._context.term()

    def receive(self) -> FromWorker:
        """The next message; remembers who sent it."""
        self.identity, frame = self._socket.recv_multipart()
        return self._from_worker.decode(frame)

    def silent_for(self, timeout_ms: int) -> bool:
        """Whether nothing arrives."""
        return not self._socket.poll(timeout_ms)

    def send(self, message: ToWorker) -> None:
        """Send to the worker heard last."""
        self.send_frames(self._to_worker.encode(message))

    def send_frames(self, *frames: bytes) -> None:
        """Send anything."""
        self._socket.send_multipart([self.identity, *frames])


def curve_endpoint(address: str, server_public: bytes) -> Endpoint:
    """A worker's endpoint with fresh keys of its own."""
    public, secret = zmq.curve_keypair()
    keys = CurveKeys(server_public=server_public.decode(), own_public=public.decode(), own_secret=secret.decode())
    return Endpoint(address=address, curve=keys)


def probe() -> dict[str, object]:
    """What `python -m pagewire.worker probe` prints."""
    command = [sys.executable, "-m", "pagewire.worker", "probe"]
    result: dict[str, object] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return result
