"""Model files that lie, from a seed: reads each in this process, and prints as JSON what came of it.

    python hostile_files.py KIND FOLDER SEED COUNT

KIND is `gguf` or `directory`, read as the supervisor reads them, or `weights`, read as a worker does. The outcome has
to be a model or one error of ours that names the file; time is the processor's, so that a busy machine changes nothing.
"""

import json
import random
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any

MEMORY_LIMIT_BYTES = 4 << 30
"""Of addresses: where a reader runs away, it ends here and not with the machine's memory."""

EXTREMES = (0, 1, 2, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1)

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256},
    "sliding_window": None,
    "use_sliding_window": False,
    "max_window_layers": 2,
    "layer_types": ["full_attention", "full_attention"],
    "tie_word_embeddings": True,
    "eos_token_id": [258],
    "partial_rotary_factor": 1.0,
}
GENERATION: dict[str, Any] = {
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "eos_token_id": [258, 257],
    "repetition_penalty": 1.0,
}
INDEX: dict[str, Any] = {"metadata": {"total_size": 32}, "weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
VALUES: tuple[Any, ...] = (
    *EXTREMES,
    -1,
    -(2**63),
    10**7,
    10**40,
    10**4000,
    0.0,
    -0.0,
    0.5,
    1e308,
    5e-324,
    None,
    True,
    False,
    "",
    "2",
    "x" * 1_000_000,
    "\x00\udcff",
    [],
    [[]],
    [1] * 100_000,
    ["full_attention"] * 100_000,
    {},
    {"rope_type": "default"},
    {"full_attention": {"rope_type": "default"}},
)


def main() -> None:
    kind, folder, seed, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    cases, read, error_type = {"gguf": gguf_kind, "directory": directory_kind, "weights": weights_kind}[kind](folder)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    rng = random.Random(seed)
    outcomes = {"read": 0, "refused": 0}
    failures = []
    slowest, largest = (0.0, ""), (0, "")
    for index in range(count):
        name, expected = cases(rng, index)
        before_kib = memory_kib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        started = time.process_time()
        try:
            read()
            outcomes["read"] += 1
        except error_type as error:
            outcomes["refused"] += 1
            if expected not in str(error) or len(str(error)) > 4000 or "Traceback" in str(error):
                failures.append([name, f"names no file: {str(error)[:300]}"])
        except BaseException as error:
            failures.append([name, f"{type(error).__name__}: {str(error)[:300]}"])
        slowest = max(slowest, (time.process_time() - started, name))
        largest = max(largest, (memory_kib("VmHWM") - before_kib, name))
    print(
        json.dumps(
            {
                "outcomes": outcomes,
                "failures": failures,
                "slowest_s": slowest,
                "largest_kib": largest,
            }
        )
    )


def memory_kib(what: str) -> int:
    """VmRSS: now; VmHWM: the most since the peak was last cleared."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


Kind = tuple[Callable[[random.Random, int], tuple[str, str]], Callable[[], object], type[Exception]]


def gguf_kind(folder: Path) -> Kind:
    from pagewire.scheduler_svc.models.gguf_file import read_gguf
    from pagewire.scheduler_svc.progress import QuietProgress
    from pagewire.scheduler_svc.startup_errors import ModelError

    file = folder / "m.gguf"
    spans = list(number_spans(file.read_bytes()))
    whole = file.read_bytes()
    fixed = made_gguf()

    def case(rng: random.Random, index: int) -> tuple[str, str]:
        name, content = next(fixed, None) or mutated_gguf(rng, whole, spans)
        file.write_bytes(content)
        return name, "m.gguf"

    return case, lambda: read_gguf(file, "m", folder / "cache", QuietProgress()), ModelError


def weights_kind(folder: Path) -> Kind:
    """Both formats in turn; the folder has one file of each."""
    import torch

    from pagewire.wire.model import DecoderConfig
    from pagewire.wire.tensors import WeightsError, check_tensors
    from pagewire.worker.weights.gguf_source import GgufSource
    from pagewire.worker.weights.source import SafetensorsSource, TensorSource

    files = {ending: folder / f"m.{ending}" for ending in ("gguf", "safetensors")}
    whole = {ending: file.read_bytes() for ending, file in files.items()}
    spans = list(number_spans(whole["gguf"]))
    fixed = chain((("gguf", *case) for case in made_gguf()), (("safetensors", *case) for case in made_safetensors()))
    config = DecoderConfig(
        architecture="llama", hidden_size=64, intermediate_size=96, num_layers=10**7, num_heads=4, num_kv_heads=2,
        head_dim=32, vocab_size=300, max_position_embeddings=512, rms_norm_eps=1e-6, rope_theta=1e4,
        tie_word_embeddings=True, qk_norm=False, qkv_bias=False,
    )  # fmt: skip
    current = "gguf"

    def case(rng: random.Random, index: int) -> tuple[str, str]:
        nonlocal current
        if made := next(fixed, None):
            current, name, content = made
        else:
            current = rng.choice(["gguf", "safetensors"])
            name, content = (
                mutated_gguf(rng, whole["gguf"], spans) if current == "gguf" else mutated(rng, whole["safetensors"])
            )
        files[current].write_bytes(content)
        return name, f"m.{current}"

    def read() -> None:
        file = str(files[current])
        source: TensorSource = GgufSource([file], config) if current == "gguf" else SafetensorsSource([file])
        for tensor, shape in list(source.shapes.items())[:3]:
            if shape and all(0 < size < 4096 for size in shape) and len(shape) <= 2:
                source.copy_to(tensor, torch.empty(shape))
        check_tensors(source, config)

    return case, read, WeightsError


def directory_kind(folder: Path) -> Kind:
    from pagewire.scheduler_svc.models.hf_directory import read_directory
    from pagewire.scheduler_svc.startup_errors import ModelError

    names = ("config.json", "generation_config.json", "model.safetensors.index.json")
    contents = dict(zip(names, (CONFIG, GENERATION, INDEX), strict=True))
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).write_bytes(bytes(64))

    fixed = {name: broken_json(content) for name, content in contents.items()}

    def case(rng: random.Random, index: int) -> tuple[str, str]:
        for name, content in contents.items():
            (folder / name).write_text(json.dumps(content))
        name = names[index % len(names)]
        what, changed = next(fixed[name], None) or changed_json(rng, contents[name])
        (folder / name).write_bytes(changed)
        return f"{name}: {what}", name

    return case, lambda: read_directory(folder, "m", weights_needed=True, cache_dir=folder / "cache"), ModelError


def broken_json(content: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    whole = json.dumps(content).encode()
    yield "empty", b""
    yield "not UTF-8", whole.replace(b'"', b'"\xff', 1)
    yield "UTF-16", whole.decode().encode("utf-16")
    yield "byte-order mark", b"\xef\xbb\xbf" + whole
    yield "deep lists", b"[" * 200_000
    yield "deep objects", b'{"a":' * 200_000
    yield "deep and whole", whole[:-1] + b', "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    yield "NaN", whole[:-1] + b', "rope_theta": NaN, "top_p": NaN}'
    yield "Infinity", whole[:-1] + b', "rope_theta": Infinity, "top_p": Infinity}'
    yield "1e999", whole[:-1] + b', "rope_theta": 1e999, "top_p": 1e999}'
    yield "5,000 digits", whole[:-1] + b', "hidden_size": 1' + b"0" * 5000 + b', "top_k": 1' + b"0" * 5000 + b"}"
    yield "32 MiB", whole + b" " * (32 << 20)
    yield "a lone surrogate", whole[:-1] + b', "\\ud800": "\\ud800"}'
    yield "many keys", json.dumps(content | {f"k{i}": i for i in range(100_000)}).encode()


def changed_json(rng: random.Random, content: dict[str, Any]) -> tuple[str, bytes]:
    whole = json.dumps(content).encode()
    if rng.random() < 0.3:
        return mutated(rng, whole)
    changed = json.loads(whole)
    for _ in range(rng.randint(1, 3)):
        target = changed
        key = rng.choice(list(target))
        if isinstance(target[key], dict) and target[key] and rng.random() < 0.7:
            target = target[key]
            key = rng.choice(list(target))
        target[key] = deepcopy(rng.choice(VALUES))
    return f"values {str(changed)[:200]}", json.dumps(changed).encode()


def mutated(rng: random.Random, whole: bytes) -> tuple[str, bytes]:
    content = bytearray(whole)
    changes = []
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(content), 4096))
        match rng.randrange(4):
            case 0:
                content[at] = rng.randrange(256)
            case 1:
                content[at : at + 8] = struct.pack("<Q", rng.choice(EXTREMES))
            case 2:
                del content[at : at + rng.randint(1, 64)]
            case 3:
                content[at:at] = content[max(0, at - rng.randint(1, 64)) : at]
        changes.append(at)
        if not content:
            break
    if rng.random() < 0.2:
        del content[rng.randrange(len(content) + 1) :]
    return f"bytes changed at {changes}", bytes(content)


def mutated_gguf(rng: random.Random, whole: bytes, spans: list[tuple[int, int]]) -> tuple[str, bytes]:
    """Mostly at the places of counts, types and numbers."""
    if rng.random() < 0.3:
        return mutated(rng, whole)
    content = bytearray(whole)
    changes = []
    for _ in range(rng.randint(1, 3)):
        at, size = rng.choice(spans)
        value = rng.choice((*EXTREMES, rng.randrange(16), rng.getrandbits(64)))
        content[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        changes.append((at, value))
    return f"numbers changed: {changes}", bytes(content)


def number_spans(content: bytes) -> Iterator[tuple[int, int]]:
    """Where a well-formed GGUF file has counts, lengths, types and values, and of how many bytes; of arrays, the first
    items."""
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    at = 8
    num_tensors, num_pairs = struct.unpack_from("<QQ", content, at)
    yield 4, 4
    yield 8, 8
    yield 16, 8
    at = 24

    def text(at: int) -> int:
        return at + 8 + int.from_bytes(content[at : at + 8], "little")

    for _ in range(num_pairs):
        yield at, 8
        at = text(at)
        yield at, 4
        kind = int.from_bytes(content[at : at + 4], "little")
        at += 4
        if kind == 8:
            yield at, 8
            at = text(at)
        elif kind == 9:
            yield at, 4
            yield at + 4, 8
            item, count = struct.unpack_from("<IQ", content, at)
            at += 12
            for index in range(count):
                if index < 3:
                    yield at, 8 if item == 8 else sizes[item]
                at = text(at) if item == 8 else at + sizes[item]
        else:
            yield at, sizes[kind]
            at += sizes[kind]
    for _ in range(num_tensors):
        yield at, 8
        at = text(at)
        yield at, 4
        num_dims = int.from_bytes(content[at : at + 4], "little")
        at += 4
        for _ in range(num_dims):
            yield at, 8
            at += 8
        yield at, 4
        yield at + 4, 8
        at += 12


def made_gguf() -> Iterator[tuple[str, bytes]]:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    def header(num_tensors: int, num_pairs: int, rest: bytes) -> bytes:
        return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_pairs) + rest

    yield "an array of 2^62 in 49 bytes", header(0, 1, text(b"a") + struct.pack("<IIQ", 9, 8, 1 << 62))
    yield "an array of 2^62 bytes", header(0, 1, text(b"a") + struct.pack("<IIQ", 9, 0, 1 << 62) + bytes(64))
    yield "arrays nested 5,000 deep", header(0, 1, text(b"a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000)
    yield "2^62 keys", header(0, 1 << 62, bytes(1 << 20))
    yield "2^62 tensors", header(1 << 62, 0, bytes(1 << 20))
    yield "40,000 empty keys", header(0, 40_000, bytes(13 * 40_000))
    yield "200,000 tensors", header(200_000, 0, bytes(32 * 200_000))
    yield "three million empty texts", header(0, 1, text(b"a") + struct.pack("<IIQ", 9, 8, 3 << 20) + bytes(24 << 20))
    yield "two million empty texts", header(0, 1, text(b"a") + struct.pack("<IIQ", 9, 8, 2_000_000) + bytes(16 << 20))
    yield (
        "100 MB in an array of bytes",
        header(0, 1, text(b"a") + struct.pack("<IIQ", 9, 0, 100 << 20) + bytes(100 << 20)),
    )
    yield "100 MB in a text", header(0, 1, text(b"a") + struct.pack("<I", 8) + text(b"a" * (100 << 20)))
    inner = struct.pack("<IQ", 0, 0) * 1_500_000
    yield "arrays within an array", header(0, 1, text(b"a") + struct.pack("<IIQ", 9, 9, 1_500_000) + inner)
    yield "a name of 2^40 bytes", header(1, 0, struct.pack("<Q", 1 << 40) + bytes(100))
    for key in (b"block_count", b"vocab_size", b"attention.head_count", b"context_length"):
        pair = text(b"llama." + key) + struct.pack("<II", 4, 10_000_000)
        architecture = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
        yield f"{key.decode()} of 10^7", header(0, 2, architecture + pair)


def made_safetensors() -> Iterator[tuple[str, bytes]]:
    def file(header: bytes, data: bytes = b"") -> bytes:
        return struct.pack("<Q", len(header)) + header + data

    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    yield "empty", b""
    yield "a header of 2^62 bytes", struct.pack("<Q", 1 << 62) + b"{}"
    yield "a header of 90 MB", file(b"{" + b" " * (90 << 20) + b"}")
    yield "deep", file(b'{"a":' * 100_000)
    yield "deep metadata", file(b'{"__metadata__": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    yield "not UTF-8", file(b'{"\xff": 1}')
    yield "offsets past the end", file(json.dumps({"a": entry | {"data_offsets": [0, 1 << 40]}}).encode(), bytes(8))
    yield "offsets backwards", file(json.dumps({"a": entry | {"data_offsets": [8, 0]}}).encode(), bytes(8))
    yield "a shape of 2^62", file(json.dumps({"a": entry | {"shape": [1 << 62, 4]}}).encode(), bytes(8))
    yield "a shape of 10^40", file(json.dumps({"a": entry | {"shape": [10**40]}}).encode(), bytes(8))
    many = {f"t{i}": entry | {"shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    yield "100,000 tensors", file(json.dumps(many).encode())


if __name__ == "__main__":
    main()
