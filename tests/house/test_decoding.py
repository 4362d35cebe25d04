"""Bytes become values through one door: where a library decodes beside it, this says why that is safe."""

import ast
from collections.abc import Iterator

from house.test_policies import ROOT, product_files
from support.byte_decoders import registered_files

DOORS = {"proto/wire/codec.py", "proto/wire/columns.py", "client/json_text.py"}
DOOR_CALLS = {"decode_json", "decode_toml", "decode_text", "from_json", "Codec", "JsonCodec"}

DECODERS = (
    "msgspec.json.decode",
    "msgspec.json.Decoder",
    "msgspec.msgpack.decode",
    "msgspec.msgpack.Decoder",
    "msgspec.toml",
    "msgspec.yaml",
    "json.load",
    "json.loads",
    "tomllib",
    "struct.unpack",
    "np.frombuffer",
    "numpy.frombuffer",
    "base64.",
    "binascii.",
    "plistlib.",
    "xml.",
    "csv.",
    "configparser.",
)
DECODING_METHODS = {"decode", "read_text", "unpack_from", "ParseFromString", "FromString", "Unpack", "fromhex"}

SAFE = {
    # Its own bytes, or what a child of ours has just encoded.
    "scheduler_svc/frontend/streams/output.py": {"np.frombuffer(self.received, dtype=np.intc)"},
    # Of codecs that the kinds of helpers bring along.
    "scheduler_svc/frontend/text/helper_pool.py": {
        "self._kind.from_helper.decode(await stdout.readexactly(length))",
    },
    "scheduler_svc/frontend/text/helper_process.py": {"incoming.decode(frame)"},
    "scheduler_svc/frontend/text/grammar_text.py": {"json.loads(_whole_text(part))"},
    "scheduler_svc/frontend/request/constraint.py": {"np.frombuffer(text.encode(), np.uint8)"},
    "scheduler_svc/supervisor/curve_keys.py": {"key.decode('ascii')"},
    "worker/native/library.py": {"chosen.decode()"},
    # The detokenizer's own incremental decoder, which replaces; and a question, whose error is the answer.
    "scheduler_svc/frontend/text/detokenizer.py": {
        "decoder.decode(raw, final)",
        "(b''.join([detokenizer.take(token) for token in ids]) + detokenizer.flush()).decode()",
        "text.decode()",
    },
    "client/responses.py": {"message.text.decode()"},
    # Encodes.
    "client/gateway/engine_watch.py": {
        "base64.b64encode(message.uses)",
        "base64.b64encode(message.uses).decode()",
    },
    # Every byte is a character of it.
    "scheduler_svc/metrics/listener.py": {"head.decode('latin-1')"},
    # A door of its own, for texts of callers: exact, and with the path of what is wrong.
    "scheduler_svc/frontend/text/json_text.py": {"_DECODER.decode(text)"},
    # protobuf's own error is caught where it is called.
    "scheduler_svc/frontend/rpc/boundary.py": {"kind.FromString(frame)"},
    "client/bench/summary.py": {"StreamGenerateResponse.FromString(frame)"},
    "client/errors.py": {"status.ParseFromString(value)", "detail.Unpack(found)"},
    # An example of the bare stub: its own file, and what a server says of an error.
    "client/examples/python/client.py": {
        "SERVICE_CONFIG.read_text()",
        "packed.Unpack(refused)",
        "packed.Unpack(info)",
    },
    # A definition that the tokenizers library has read before.
    "scheduler_svc/frontend/text/text_bound.py": {"msgspec.json.decode(definition)"},
    # Another thing that is named alike: token ids to text.
    "scheduler_svc/frontend/rpc/whole_answer.py": {
        "b''.join([token.text for token in completion.tokens]).decode()",
    },
    # What a model wrote, as text that is whole; the error is the answer.
    "scheduler_svc/frontend/chat/json_calls.py": {"json.loads(''.join(characters))"},
    "scheduler_svc/frontend/chat/parameter_calls.py": {"json.loads(text)"},
    "scheduler_svc/frontend/streams/parts.py": {"text.decode()"},
    # In a process with limits.
    "scheduler_svc/frontend/text/call_grammar.py": {"json.loads(tool.schema)"},
    "scheduler_svc/frontend/rpc/inference.py": {
        "tokenizer.decode(ids, skip_special_tokens=skip, client=self._generations.client(context))",
    },
    # The project's own Dockerfile, in a command of the operator's.
    "deploy/prove_dockerfile.py": {
        "(PROJECT / 'deploy' / 'Dockerfile').read_text()",
        "json.loads(rest)",
        "json.loads(rest.split(' CMD ', 1)[1])",
    },
    # The kernel's own files.
    "worker/native/machine.py": {
        "path.read_text()",
        "Path('/proc/meminfo').read_text()",
        "Path('/sys/fs/cgroup/memory.max').read_text()",
        "Path('/sys/fs/cgroup/memory.current').read_text()",
    },
}
MODEL_FILES = ("scheduler_svc/models/", "worker/weights/", "proto/wire/gguf_header.py")
"""Their readers have a door of their own, with ModelError, and a fuzz of their own."""


def calls(name: str) -> Iterator[tuple[ast.Call, str]]:
    """Every call in a file, with its function as text."""
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def codecs_of(name: str) -> set[str]:
    """What a file names its codecs, which are the door."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        match node:
            case ast.AnnAssign(target=target, annotation=annotation) if "Codec[" in ast.unparse(annotation):
                found.add(ast.unparse(target))
            case ast.Assign(targets=targets, value=ast.Call(func=function)) if "Codec" in ast.unparse(function):
                names = [element for target in targets for element in getattr(target, "elts", [target])]
                found.update(ast.unparse(element) for element in names)
            case ast.Assign(targets=[ast.Tuple(elts=elements)], value=ast.Tuple(elts=values)):
                pairs = zip(elements, values, strict=False)
                found.update(ast.unparse(target) for target, value in pairs if "Codec" in ast.unparse(value))
    return found


def decodes(name: str) -> Iterator[str]:
    """Calls in a file that turn bytes into values and may raise a library's error."""
    codecs = codecs_of(name)
    for call, function in calls(name):
        if function.startswith(DECODERS):
            yield ast.unparse(call)
        if not isinstance(call.func, ast.Attribute) or call.func.attr not in DECODING_METHODS:
            continue
        receiver = call.func.value
        errors = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}.get("errors", "")
        is_own_text = isinstance(receiver, ast.Call) and ast.unparse(receiver.func).endswith(("encode", "encode_line"))
        is_codec = ast.unparse(receiver) in codecs or "Codec[" in ast.unparse(receiver)
        if not (is_codec or is_own_text or errors in ("'replace'", "'ignore'")) and not function.startswith(DECODERS):
            yield ast.unparse(call)


def test_no_decoding_beside_the_door() -> None:
    for name in product_files():
        if name in DOORS or name.startswith(MODEL_FILES):
            continue
        found = set(decodes(name)) - SAFE.get(name, set())
        assert not found, f"{name} decodes bytes beside the door of pagewire.wire.codec: {found}"


def test_every_decoder_is_in_the_fuzz() -> None:
    registered = registered_files()
    for name in product_files():
        if name in DOORS or name.startswith(MODEL_FILES):
            continue
        used = {function.partition("[")[0] for _, function in calls(name)} & DOOR_CALLS
        assert not used or name in registered, f"{name} uses {used} and is not in tests/support/byte_decoders.py"


def test_the_exceptions_are_still_there() -> None:
    for name, expressions in SAFE.items():
        assert expressions <= set(decodes(name)), f"{name} has lost {expressions - set(decodes(name))}"
