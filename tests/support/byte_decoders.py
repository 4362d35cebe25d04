"""Every decoder of bytes in the tree, as one function each: what it may raise, and an input that it takes.

`tests/house` holds that no file decodes bytes without being named here.
"""

import socket
import ssl
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pagewire.client.cli import inputs
from pagewire.client.cli.batch_file import read_entry
from pagewire.client.cli.parameters import _json_object
from pagewire.client.cli.tools import tools_of
from pagewire.client.errors import InvalidRequest
from pagewire.client.gateway.bodies import ChatBody
from pagewire.client.gateway.bodies import read as read_body
from pagewire.client.json_text import NotJson, from_json
from pagewire.scheduler_svc.engine.admission import read_submission
from pagewire.scheduler_svc.engine.bench import EngineWorkload
from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.sequence import SequenceKey
from pagewire.scheduler_svc.frontend.errors import InvalidArgument, Unauthenticated
from pagewire.scheduler_svc.frontend.rpc.auth import KeysFileError, read_keys
from pagewire.scheduler_svc.frontend.rpc.certificate_name import certificate_name
from pagewire.scheduler_svc.frontend.rpc.tenant_limits import LimitsFileError, read_limits
from pagewire.scheduler_svc.frontend.text.chat_format import ToolCallFormat
from pagewire.scheduler_svc.frontend.text.detokenizer import TokenBytes, UnsupportedTokenizerError
from pagewire.scheduler_svc.frontend.text.grammar_process import (
    Compile,
    Compiled,
    FromCompiler,
    ToCompiler,
    added_tokens,
)
from pagewire.scheduler_svc.frontend.text.grammar_process import Prepare as PrepareCompiler
from pagewire.scheduler_svc.frontend.text.helper_process import Invalid, Prepared, Refused
from pagewire.scheduler_svc.frontend.text.json_text import JsonReader
from pagewire.scheduler_svc.frontend.text.languages import Answer as AnswerLanguage
from pagewire.scheduler_svc.frontend.text.languages import (
    AnswerReasoning,
    CallableTool,
    Calls,
    Choice,
    JsonObject,
    JsonSchema,
    Regex,
    StructuralTags,
    Tag,
)
from pagewire.scheduler_svc.frontend.text.template_process import (
    FromRenderer,
    Prepare,
    Render,
    Rendered,
    ToRenderer,
)
from pagewire.scheduler_svc.frontend.text.template_variables import JsonText, Variables
from pagewire.scheduler_svc.frontend.text.tokenizer import faulty_part
from pagewire.scheduler_svc.launch import EngineLaunch, FrontendLaunch, read_launch
from pagewire.scheduler_svc.models import bundled, gguf_file
from pagewire.scheduler_svc.settings import auto_device, sources
from pagewire.scheduler_svc.startup_errors import SettingsError, StartupError
from pagewire.scheduler_svc.supervisor.curve_keys import make_curve_keys, read_worker_keys
from pagewire.wire.codec import Codec, JsonCodec, WireError, decode_json
from pagewire.wire.columns import pack, unpack, unpack_pairs
from pagewire.wire.control import Drain, FromChild, Loading, Ready, ToChild
from pagewire.wire.fork_server import Ended, Fork, Forked, FromForkServer, NotForked, Reap, ToForkServer
from pagewire.wire.kv_events import AllBlocksCleared, KvEventBatch, removed, stored
from pagewire.wire.lifeline import Lifeline
from pagewire.wire.logits import LogitControls, LogprobsRequest
from pagewire.wire.plan import (
    NO_TOKEN,
    PROTOCOL_VERSION,
    Admit,
    Begin,
    ChunkLogprobs,
    DeviceMemory,
    FromWorker,
    RowFailure,
    RowLogprobs,
    StepPlan,
    StepResult,
    ToWorker,
    WorkerFailed,
    WorkerHello,
)
from pagewire.wire.requests import (
    Abort,
    AbortRequest,
    Answer,
    EngineInfo,
    EngineState,
    FinishKind,
    FromFrontend,
    Load,
    PromptLogprobs,
    Register,
    Rejected,
    RejectKind,
    SeqFinished,
    SeqStarted,
    Submit,
    ToFrontend,
    TokenBatch,
    TokenLogprobs,
)
from pagewire.wire.safetensors_header import SafetensorsDirectory
from pagewire.wire.sampling import SamplingParams
from pagewire.wire.tensors import WeightsError
from pagewire.worker.launch import LaunchError
from pagewire.worker.launch import read_launch as read_worker_launch
from pagewire.worker.parallel.rendezvous import GroupNotice
from pagewire.worker.slots.columns import SlotLimits
from pagewire.worker.slots.plan_check import PlanError, decode_column, decode_pairs
from pagewire.worker.slots.state import Slots

Errors = tuple[type[Exception], ...]


@dataclass(frozen=True, slots=True)
class ByteDecoder:
    """One way from bytes to values."""

    file: str
    """Of the tree: where it is, or where its codec is used."""
    decode: Callable[[bytes], object]
    errors: Errors
    """All that may come out of it."""
    samples: tuple[bytes, ...]
    """Inputs that it takes, as a start for worse ones."""


_SAMPLING = SamplingParams(0.7, 5, 0.9, 2**64 - 1)
_MEMORY = DeviceMemory(1, 2, 3, 4, 5, 6)
_CONTROLS = LogitControls(pack([1]), b"\0\0\0\0", pack([1, 2]), pack([3]), [pack([4, 5])], 2, pack([0]))
_ASKED = (_CONTROLS, LogprobsRequest(2, pack([7]), True), 1)
SUBMIT = Submit(
    1, "r", pack([1, 2, 3]), pack([4]), _SAMPLING, 5, [7], False, 0, b"salt", 1.5, *_ASKED
)  # fmt: skip
HELLO = WorkerHello(PROTOCOL_VERSION, 0, 0, 8, 4, 4, 32, 100, 1, 2, "a", "l", {"python": "3"}, "t", _MEMORY)
PLAN = StepPlan(
    0, 0, b"", [Admit(0, pack([1, 2, 3, 4]), 3, 0, pack([0]), _SAMPLING, *_ASKED)], b"", pack([0, 4]), b""
)  # fmt: skip
_FROM_FRONTEND = (Register(0, 0), SUBMIT, Abort(pack([1])), AbortRequest(1, "r"))
_TO_FRONTEND = (
    TokenBatch(
        [SeqStarted(1, 0, 0.5)],
        pack([1]),
        pack([2]),
        [SeqFinished(1, FinishKind.EOS)],
        [TokenLogprobs(0, -0.5, pack([2]), b"\0\0\0\0")],
        [PromptLogprobs(1, 1, b"\0\0\0\0", pack([3]), b"\0\0\0\0")],
    ),
    Rejected(1, RejectKind.INVALID, "f", "m", 1.0),
    EngineInfo(EngineState.READY, 1, 1, 1, 1, 1, "a", "l", {"python": "3"}, 0, _MEMORY),
    Load(EngineState.READY, *range(13)),
    Answer(1, 2),
)
_FROM_WORKER = (
    HELLO,
    StepResult(
        0,
        0,
        pack([1, NO_TOKEN]),
        1,
        1,
        pack([1, 1]),
        [RowFailure(1, "r", True)],
        [RowLogprobs(0, -0.5, pack([1]), b"\0\0\0\0")],
        [ChunkLogprobs(0, 1, b"\0\0\0\0", b"", b"")],
    ),
    WorkerFailed("m"),
)
_TO_WORKER = (Begin(0), PLAN)
_CONFIG = SchedulerConfig(
    max_num_seqs=4,
    max_num_batched_tokens=16,
    max_prefill_tokens_per_step=8,
    max_model_len=32,
    max_queued=4,
    max_queued_tokens=1 << 20,
    vocab_size=100,
    eos_token_ids=(0,),
    num_blocks=8,
    block_size=4,
    enable_prefix_caching=True,
)
_LIMITS = SlotLimits(
    max_num_seqs=4, max_model_len=32, max_num_batched_tokens=16, block_size=4, num_blocks=8, vocab_size=100
)


def _der(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    assert len(content) < 0x80
    return bytes((tag, len(content))) + content


def byte_decoders(folder: Path) -> Iterator[ByteDecoder]:
    """All of them. Those that read files read them from `folder`, which is theirs."""
    wire: Errors = (WireError,)
    yield from _sockets(wire)
    yield ByteDecoder("proto/wire/columns.py", unpack, wire, (pack([1, 2]),))
    yield ByteDecoder("proto/wire/columns.py", unpack_pairs, wire, (pack([1, 2]),))
    fields = "worker/slots/plan_check.py"
    yield ByteDecoder(fields, lambda data: decode_column(data, "f"), (PlanError,), (pack([1]),))
    yield ByteDecoder("worker/slots/plan_check.py", lambda data: decode_pairs(data, "f"), (PlanError,), (pack([1, 2]),))
    yield ByteDecoder("proto/wire/lifeline.py", _through_a_lifeline, wire, (_line(ToChild, Drain(1.0, 2.0)),))
    from_child = JsonCodec[FromChild](FromChild)
    samples = (_line(FromChild, Loading("s", 0.5)), _line(FromChild, Ready("a", "b", 3)))
    yield ByteDecoder("scheduler_svc/supervisor/child.py", from_child.decode, wire, samples)
    from_forks, to_forks = JsonCodec[FromForkServer](FromForkServer), JsonCodec[ToForkServer](ToForkServer)
    said = (Forked(7), NotForked("no more processes"), Ended(7, -9))
    samples = tuple(_line(FromForkServer, each) for each in said)
    yield ByteDecoder("scheduler_svc/supervisor/fork_server.py", from_forks.decode, wire, samples)
    samples = (_line(ToForkServer, Fork("/a/worker-0.json")), _line(ToForkServer, Reap(7)))
    yield ByteDecoder("proto/wire/fork_server.py", to_forks.decode, wire, samples)
    notice = GroupNotice(1, {"device": "cpu"})
    rendezvous = JsonCodec[GroupNotice](GroupNotice)
    yield ByteDecoder("worker/parallel/rendezvous.py", rendezvous.decode, wire, (rendezvous.encode_line(notice),))
    yield from _files(folder)
    yield from _client()


def _sockets(wire: Errors) -> Iterator[ByteDecoder]:
    from_frontend = Codec[FromFrontend](FromFrontend)
    from_worker, to_worker = Codec[FromWorker](FromWorker), Codec[ToWorker](ToWorker)
    links = "scheduler_svc/engine/links.py"
    yield ByteDecoder(links, from_frontend.decode, wire, tuple(map(from_frontend.encode, _FROM_FRONTEND)))
    yield ByteDecoder(links, from_worker.decode, wire, tuple(map(from_worker.encode, _FROM_WORKER)))
    batches: Codec[KvEventBatch] = Codec(KvEventBatch)
    told = [stored([1, 2**64 - 1], None, [3, 4], 1, "salt"), removed([1]), AllBlocksCleared()]
    batch = batches.encode(KvEventBatch(1.5, told, 0))
    for user in ("scheduler_svc/engine/kv_event_publisher.py", "scheduler_svc/frontend/streams/kv_event_link.py"):
        yield ByteDecoder(user, batches.decode, wire, (batch,))
    yield ByteDecoder("scheduler_svc/engine/bench.py", from_worker.decode, wire, (from_worker.encode(_FROM_WORKER[1]),))
    to_frontend = Codec[ToFrontend](ToFrontend)
    samples = tuple(map(to_frontend.encode, _TO_FRONTEND))
    yield ByteDecoder("scheduler_svc/frontend/streams/engine_link.py", to_frontend.decode, wire, samples)
    yield ByteDecoder("worker/link.py", to_worker.decode, wire, tuple(map(to_worker.encode, _TO_WORKER)))
    to_renderer, from_renderer = Codec[ToRenderer](ToRenderer), Codec[FromRenderer](FromRenderer)
    variables = Variables(
        {"messages": [{"role": "user"}], "n": 2.5}, objects=[JsonText("chat.tools[0]", '{"a": 1}', ["tools", 0])]
    )
    asked = (Prepare({"default": "{{ messages }}"}, 1.0, 1, 1), Render("default", variables))
    answers = (Rendered("text", {"f": {"a": ["string"]}}), Refused("m"), Invalid("chat", "is wrong"), Prepared())
    renderer = "scheduler_svc/frontend/text/template_process.py"
    yield ByteDecoder(renderer, to_renderer.decode, wire, tuple(map(to_renderer.encode, asked)))
    chat = "scheduler_svc/frontend/text/chat_template.py"
    yield ByteDecoder(chat, from_renderer.decode, wire, tuple(map(from_renderer.encode, answers)))

    to_compiler, from_compiler = Codec[ToCompiler](ToCompiler), Codec[FromCompiler](FromCompiler)
    tags = StructuralTags((Tag("<", "<a>", JsonSchema("{}"), ";"),))
    calls = Calls(ToolCallFormat.QWEN3, (CallableTool(0, "f", "{}"),), True, False)
    answer = AnswerLanguage(Regex("a"), AnswerReasoning("<", ">", True, 3), calls)
    languages = (tags, Regex("a"), Choice(("b",)), JsonObject(), answer)
    asked = (PrepareCompiler("/t", (1,), 9, 1.0, 2.0, 1), *map(Compile, languages))
    answers = (Compiled("start: x"), Refused("m"), Prepared())
    compiler = "scheduler_svc/frontend/text/grammar_process.py"
    yield ByteDecoder(compiler, to_compiler.decode, wire, tuple(map(to_compiler.encode, asked)))
    definition = b'{"added_tokens": [{"id": 3, "content": "<s>", "special": true}]}'
    yield ByteDecoder(compiler, added_tokens, wire, (definition,))
    grammars = "scheduler_svc/frontend/text/grammar_compiler.py"
    yield ByteDecoder(grammars, from_compiler.decode, wire, tuple(map(from_compiler.encode, answers)))

    def submit(frame: bytes) -> object:
        message = from_frontend.decode(frame)
        return read_submission(SequenceKey(0, 0), message, _CONFIG, 0.0) if isinstance(message, Submit) else None

    def apply(frame: bytes) -> object:
        message = to_worker.decode(frame)
        slots = Slots(_LIMITS)
        slots.begin(0)
        return slots.apply(message) if isinstance(message, StepPlan) else None

    # What decodes is not yet sound: these check every field, and say so in the same way.
    yield ByteDecoder("scheduler_svc/engine/admission.py", submit, (ValueError,), (from_frontend.encode(SUBMIT),))
    yield ByteDecoder("worker/slots/state.py", apply, (WireError, PlanError), (to_worker.encode(PLAN),))


def _files(folder: Path) -> Iterator[ByteDecoder]:
    file = folder / "file"

    def written(read: Callable[[Path], object]) -> Callable[[bytes], object]:
        def decode(content: bytes) -> object:
            file.write_bytes(content)
            return read(file)

        return decode

    launch = "scheduler_svc/launch.py"
    some = b'{"incarnation": 0, "frontends": {"address": "ipc:///f"}, "rank": 0, "model": {"name": "m", "decoder": {}}}'
    startup: Errors = (StartupError,)
    yield ByteDecoder(launch, written(lambda path: read_launch(path, EngineLaunch)), startup, (some,))
    yield ByteDecoder(launch, written(lambda path: read_launch(path, FrontendLaunch)), startup, (some,))
    yield ByteDecoder("worker/launch.py", written(read_worker_launch), (LaunchError,), (some,))
    settings = written(lambda path: sources.render(sources.resolve({}, {}, str(path))))
    toml = b'max_n = 4\nmodel = "m"\nload_interval_s = 0.5\n[table]\na.b.c = [1, {x = 1979-05-27}]\n'
    driver = b'["x", 9, 0]'
    yield ByteDecoder(
        "scheduler_svc/settings/auto_device.py",
        auto_device.read_answer,
        (WireError,),
        (b'{"error": "no"}', b'{"version": 13000, "devices": [' + driver + b"]}"),
    )
    yield ByteDecoder(
        "scheduler_svc/settings/auto_device.py", auto_device.read_version_file, (WireError,), (b"cuda = None\n",)
    )
    yield ByteDecoder("scheduler_svc/settings/sources.py", settings, (SettingsError,), (toml, b"max_n = 4\n"))
    keys = b"tenant:0123456789abcdef\n# comment\n"
    read = written(lambda path: read_keys(str(path)))

    def read_certificate(signed: bytes) -> object:
        """A certificate, behind the length of a name and the name, which gRPC tells of it."""
        length = int.from_bytes(signed[:1]) % 32
        name, certificate = signed[1 : 1 + length], signed[1 + length :]
        pem = ssl.DER_cert_to_PEM_cert(certificate).encode()
        context = {"x509_common_name": [name], "peer_dns": [name], "x509_pem_cert": [pem]}
        return certificate_name(context, "common_name"), certificate_name(context, "dns")

    common_name = _der(0x30, _der(0x06, b"\x55\x04\x03"), _der(0x0C, b"admin"))
    alternative_name = _der(0x30, _der(0x06, b"\x55\x1d\x11"), _der(0x04, _der(0x30, _der(0x82, b"admin"))))
    fields = (
        *[_der(0x30)] * 4,
        _der(0x30, _der(0x31, common_name)),
        _der(0x30),
        _der(0xA3, _der(0x30, alternative_name)),
    )
    yield ByteDecoder("scheduler_svc/frontend/rpc/auth.py", read, (KeysFileError,), (keys,))
    yield ByteDecoder(
        "scheduler_svc/frontend/rpc/certificate_name.py",
        read_certificate,
        (Unauthenticated,),
        tuple(b"\x05admin" + _der(0x30, _der(0x30, *version, *fields)) for version in ((), (_der(0xA0),))),
    )
    limits = b'{"ann": {"max_priority": 0, "requests_per_minute": 60}, "*": {"tokens_per_minute": 1000}}'
    read_them = written(lambda path: read_limits(str(path)))
    yield ByteDecoder("scheduler_svc/frontend/rpc/tenant_limits.py", read_them, (LimitsFileError,), (limits,))
    curve = folder / "curve"
    make_curve_keys(curve)

    def read_curve(content: bytes) -> object:
        (curve / "worker.json").write_bytes(content)
        return read_worker_keys(curve, {})

    sample = (curve / "worker.json").read_bytes()
    yield ByteDecoder("scheduler_svc/supervisor/curve_keys.py", read_curve, (SettingsError,), (sample,))

    def read_marker(content: bytes) -> object:
        file.write_bytes(content)
        return bundled._still_verified(bundled.BUNDLED_MODELS["smollm2-135m"], file, file)

    def read_safetensors(content: bytes) -> object:
        file.write_bytes(content)
        return SafetensorsDirectory([str(file)]).shapes

    tensors = b'{"a": {"dtype": "F16", "shape": [2, 1], "data_offsets": [0, 4]}, "__metadata__": {"format": "pt"}}'
    tensors = len(tensors).to_bytes(8, "little") + tensors + bytes(4)
    yield ByteDecoder("proto/wire/safetensors_header.py", read_safetensors, (WeightsError,), (tensors,))

    def read_spec(content: bytes) -> object:
        (folder / "spec.json").write_bytes(content)
        return gguf_file._from_cache(folder)

    marker = b'{"sha256": "00", "size": 1, "mtime_ns": 2}'
    yield ByteDecoder("scheduler_svc/models/bundled.py", read_marker, (), (marker,))
    yield ByteDecoder("scheduler_svc/models/gguf_file.py", read_spec, (), (some,))
    definition = b'{"decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}}'
    yield ByteDecoder(
        "scheduler_svc/frontend/text/detokenizer.py", TokenBytes, (UnsupportedTokenizerError,), (definition,)
    )

    yield ByteDecoder("scheduler_svc/frontend/text/tokenizer.py", faulty_part, (), (definition,))

    def argument(content: bytes) -> object:
        return JsonReader("chat", 1000).object(content.decode(errors="replace"), "chat.tools[0].parameters")

    arguments = b'{"type": "object", "properties": {"n": {"minimum": 1.5, "enum": [1, 2]}}}'
    yield ByteDecoder("scheduler_svc/frontend/text/json_text.py", argument, (InvalidArgument,), (arguments,))
    workload = msgspec.json.encode({"running": 4})
    yield ByteDecoder(
        "scheduler_svc/engine/bench.py", lambda content: decode_json(content, EngineWorkload), (WireError,), (workload,)
    )


def _client() -> Iterator[ByteDecoder]:
    line = b'{"messages": [{"role": "user", "content": "text \\u00e9"}]}'
    yield ByteDecoder("client/json_text.py", from_json, (NotJson,), (line, b'{"token_ids": [1, 2]}'))
    ready = b'{"address": "a", "admin_address": "", "model": "m", "pid": 1}'
    for file in ("client/installed.py", "client/local.py", "client/bench/engine.py"):
        yield ByteDecoder(file, from_json, (NotJson,), (ready,))

    def prompt(content: bytes) -> object:
        return inputs._from_json(content.decode(errors="replace"), "line 1")

    yield ByteDecoder("client/cli/inputs.py", prompt, (InvalidRequest,), (line, b'{"prompt": "x"}'))

    def batch_entry(content: bytes) -> object:
        return read_entry(content, ["ab"], "line 1")

    yield ByteDecoder("client/cli/batch_file.py", batch_entry, (InvalidRequest,), (b'{"index": 0, "request": "ab"}',))

    def parameter(content: bytes) -> object:
        return _json_object(content.decode(errors="replace"))

    yield ByteDecoder("client/cli/parameters.py", parameter, (ArgumentTypeError,), (b'{"type": "object"}',))

    def body(content: bytes) -> object:
        return read_body(content, ChatBody)

    chat_body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "n": 2, "stop": ["a"]}'
    yield ByteDecoder("client/gateway/bodies.py", body, (InvalidRequest,), (chat_body,))

    def tools_file(content: bytes) -> object:
        return tools_of(content.decode(errors="replace"))

    yield ByteDecoder("client/cli/tools.py", tools_file, (NotJson,), (b'[{"type": "function"}]',))


def _through_a_lifeline(content: bytes) -> object:
    ours, theirs = socket.socketpair()
    with ours:
        lifeline = Lifeline(theirs.detach())
        ours.sendall(content[:60_000] + b"\n")
        try:
            return lifeline.receive(0)
        finally:
            lifeline._socket.close()


def _line(kind: object, message: object) -> bytes:
    return JsonCodec[object](kind).encode_line(message)


def registered_files() -> set[str]:
    """Files of the tree that some decoder stands for."""
    with tempfile.TemporaryDirectory() as folder:
        return {decoder.file for decoder in byte_decoders(Path(folder))}
