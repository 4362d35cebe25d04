"""Two hundred models of which one file is corrupted, the same every time: what a person may be handed, or a disk makes.

Each stands beside what its error has to name: the file, and the key, tensor or token where there is one. The models
they are made of are whole (`whole_models`), so a refusal is the corruption's.
"""

import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from support.hostile_files import broken_json, made_gguf, made_safetensors
from support.model_files import TINY_QWEN3, GgufSource, HfDirectory

from pagewire.scheduler_svc.models.hf_config import read_config
from pagewire.wire.tensors import decoder_tensors

GGUF_NAME = "tiny.gguf"
CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer.json"
TOKENIZER_CONFIG, JINJA, WEIGHTS = "tokenizer_config.json", "chat_template.jinja", "model.safetensors"
INDEX, SHARD = "model.safetensors.index.json", "model-00001-of-00001.safetensors"
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
EMBED, UP = "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"


@dataclass(frozen=True, slots=True)
class Corrupted:
    """One model."""

    name: str
    names: tuple[str, ...]
    """All of them stand in the error."""
    changes: dict[str, bytes | Path | None]
    """By file: its content, where it is a link to, or that it is not there. Other files are the whole model's."""
    is_gguf: bool = False

    def write(self, folder: Path, whole: dict[str, bytes]) -> Path:
        """Into an empty folder; returns what `--model` is given."""
        for name, content in (whole | self.changes).items():
            match content:
                case bytes():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(content)
                case Path():
                    (folder / name).symlink_to(content)
        return folder / GGUF_NAME if self.is_gguf else folder


def whole_models(folder: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """By file, a model in Hugging Face layout and one in GGUF, which can be served."""
    directory = HfDirectory(folder / "hf")
    directory.tokenizer_config(chat_template=TEMPLATE, eos_token="<|end|>")
    directory.write(GENERATION, {"temperature": 0.7, "top_k": 20, "eos_token_id": 258})
    files = {file.name: file.read_bytes() for file in directory.path.iterdir()}
    files[WEIGHTS] = weights()
    source = GgufSource()
    source.chat_template = TEMPLATE
    hidden, heads, kv_heads, inner = 64, 128, 64, 96
    source.tensors = {"output_norm.weight": (hidden,)}
    for layer in range(2):
        shapes = {
            "attn_q": (heads, hidden),
            "attn_k": (kv_heads, hidden),
            "attn_v": (kv_heads, hidden),
            "attn_output": (hidden, heads),
            "attn_q_norm": (32,),
            "attn_k_norm": (32,),
            "ffn_norm": (hidden,),
            "ffn_gate": (inner, hidden),
            "ffn_up": (inner, hidden),
            "ffn_down": (hidden, inner),
        }
        source.tensors |= {f"blk.{layer}.{part}.weight": shape for part, shape in shapes.items()}
    return files, {GGUF_NAME: source.write(folder / GGUF_NAME).read_bytes()}


def weights() -> bytes:
    """Of the tiny model, all zero."""
    shapes = decoder_tensors(read_config(json.dumps(TINY_QWEN3).encode()).decoder)
    return save({name: np.zeros(shape, np.float16) for name, shape in shapes.items()})


def corrupted_models(hf: dict[str, bytes], gguf: bytes) -> Iterator[Corrupted]:
    """All of them."""
    yield from _config()
    yield from _generation(hf[GENERATION])
    yield from _tokenizer(hf[TOKENIZER])
    yield from _tokenizer_config(hf[TOKENIZER_CONFIG])
    yield from _templates()
    yield from _safetensors(hf[WEIGHTS])
    yield from _index(hf[WEIGHTS])
    yield from _gguf(gguf)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _values(file: str, content: dict[str, Any], changes: list[tuple[str, Any]]) -> Iterator[Corrupted]:
    """Of a JSON object: another value of one key."""
    for key, value in changes:
        made = {file: _json(content | {key: value})}
        yield Corrupted(f"{file}: {key} = {str(value)[:30]}", (file, key), made)


def _broken(file: str, content: dict[str, Any], kinds: tuple[str, ...]) -> Iterator[Corrupted]:
    """A JSON file that is none."""
    for what, changed in broken_json(content):
        if what in kinds:
            yield Corrupted(f"{file}: {what}", (file,), {file: changed})
    whole = _json(content)
    yield Corrupted(f"{file}: cut off", (file,), {file: whole[: len(whole) // 2]})
    yield Corrupted(f"{file}: a list", (file,), {file: b"[" + whole + b"]"})
    yield Corrupted(f"{file}: zeros", (file,), {file: bytes(len(whole))})


def _config() -> Iterator[Corrupted]:
    numbers = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    numbers += ("num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings")
    for key in numbers:
        yield from _values(CONFIG, TINY_QWEN3, [(key, value) for value in ("64", -1, 10**40)])
    others: list[tuple[str, Any]] = [
        *(("rms_norm_eps", value) for value in ("x", 0, 2)),
        *(("rope_theta", value) for value in ("x", -1, 1e300)),
        *(("rope_scaling", value) for value in ([], {"rope_type": "magic", "factor": 2}, "yarn")),
        *(("layer_types", value) for value in (["full_attention"], ["other", "other"], "full")),
        *(("model_type", value) for value in ("gpt9", 5)),
        *(("architectures", value) for value in (["Other"], "Qwen3ForCausalLM")),
        *(("eos_token_id", value) for value in ("end", [1.5])),
        *(("attention_bias", value) for value in ("x", True)),
        ("quantization_config", {"quant_method": "magic"}),
        ("hidden_act", "gelu"),
        ("tie_word_embeddings", "yes"),
        ("sliding_window", "x"),
        ("num_experts", 8),
    ]
    bias = "self_attn.q_proj.bias"  # what attention_bias = true asks of the weights
    for case in _values(CONFIG, TINY_QWEN3, others):
        names = case.names
        if case.name.endswith("attention_bias = True"):
            names = (WEIGHTS, bias)
        elif "magic', 'factor" in case.name:
            names = (CONFIG, "rope_type")
        yield Corrupted(case.name, names, case.changes)
    kinds = ("empty", "not UTF-8", "UTF-16", "deep lists", "32 MiB", "5,000 digits", "NaN")
    yield from _broken(CONFIG, TINY_QWEN3, kinds)
    yield Corrupted("config.json: not there", (CONFIG,), {CONFIG: None})
    yield Corrupted("config.json: a link to itself", (CONFIG,), {CONFIG: Path(CONFIG)})
    # Whole by itself, and of another model than the weights.
    for key, value, tensor in (
        ("hidden_size", 128, EMBED),
        ("vocab_size", 301, EMBED),
        ("num_hidden_layers", 3, "model.layers.2."),
        ("num_hidden_layers", 1, "model.layers.1."),
        ("intermediate_size", 100, "mlp."),
        ("tie_word_embeddings", False, "lm_head.weight"),
        ("head_dim", 16, "self_attn."),
    ):
        changes = {CONFIG: _json(TINY_QWEN3 | {key: value})}
        yield Corrupted(f"config.json: {key} = {value}, of other weights", (WEIGHTS, tensor), changes)


def _generation(whole: bytes) -> Iterator[Corrupted]:
    changes: list[tuple[str, Any]] = [
        *(("temperature", value) for value in ("hot", -1, 10**40)),
        *(("top_p", value) for value in (2, "x")),
        *(("top_k", value) for value in (-5, 1.5)),
        *(("eos_token_id", value) for value in ("x", [1.5])),
        ("do_sample", "yes"),
        ("repetition_penalty", 0),
        ("min_p", 2),
    ]
    yield from _values(GENERATION, json.loads(whole), changes)
    yield from _broken(GENERATION, json.loads(whole), ("empty", "not UTF-8", "deep objects"))


def _tokenizer(whole: bytes) -> Iterator[Corrupted]:
    content = json.loads(whole)

    def changed(key: str, value: object) -> bytes:
        return _json(content | {key: value})

    def model(**keys: object) -> bytes:
        return changed("model", content["model"] | keys)

    vocab = content["model"]["vocab"]
    added = content["added_tokens"][0]
    made: list[tuple[str, str, bytes]] = [
        ("no model", "model", _json({key: value for key, value in content.items() if key != "model"})),
        ("model = 5", "model", changed("model", 5)),
        ("a type nobody knows", "model", model(type="Magic")),
        ("an id that is a text", "vocab", model(vocab=vocab | {"x": "1"})),
        ("an id below 0", "vocab", model(vocab=vocab | {"x": -1})),
        ("a vocabulary that is a number", "vocab", model(vocab=5)),
        ("merges of numbers", "merges", model(merges=[5])),
        ("merges of three", "merges", model(merges=[["a", "b", "c"]])),
        ("merges of unknown tokens", "merges", model(merges=[["nobody", "knows"]])),
        ("a dropout", "dropout", model(dropout=0.5)),
        ("added tokens that are an object", "added_tokens", changed("added_tokens", {})),
        ("an added token's id that is a text", "added_tokens", changed("added_tokens", [added | {"id": "x"}])),
        ("an added token without a text", "added_tokens", changed("added_tokens", [{"id": 256}])),
        ("a normalizer nobody knows", "normalizer", changed("normalizer", {"type": "Magic"})),
        ("a pre-tokenizer nobody knows", "pre_tokenizer", changed("pre_tokenizer", {"type": "Magic"})),
        ("a decoder nobody knows", "decoder", changed("decoder", {"type": "Magic"})),
        ("a post-processor nobody knows", "post_processor", changed("post_processor", {"type": "Magic"})),
    ]
    for what, key, definition in made:
        yield Corrupted(f"{TOKENIZER}: {what}", (TOKENIZER, key), {TOKENIZER: definition})
    split = {"type": "Split", "pattern": {"Regex": "((("}, "behavior": "Isolated", "invert": False}
    changes: dict[str, bytes | Path | None] = {TOKENIZER: changed("pre_tokenizer", split)}
    yield Corrupted(f"{TOKENIZER}: a pattern that is none", (TOKENIZER, "pre_tokenizer"), changes)
    yield from _broken(TOKENIZER, content, ("empty", "not UTF-8", "UTF-16", "deep and whole"))


def _tokenizer_config(whole: bytes) -> Iterator[Corrupted]:
    changes: list[tuple[str, Any]] = [
        *(("chat_template", value) for value in (5, [{"name": 1}], {"default": "x"})),
        ("fast_tokenizer_files", ["tokenizer.4.0.json"]),
        ("fix_mistral_regex", True),
        ("added_tokens_decoder", {"x": {"content": "y"}}),
        ("added_tokens_decoder", {"5": {"content": 7}}),
        ("eos_token", 5),
    ]
    yield from _values(TOKENIZER_CONFIG, json.loads(whole), changes)
    yield from _broken(TOKENIZER_CONFIG, json.loads(whole), ("empty", "not UTF-8"))


def _templates() -> Iterator[Corrupted]:
    broken = {
        "a block without an end": "{% for message in messages %}",
        "a tag nobody knows": "{% magic %}",
        "a filter nobody knows": "{{ messages | magic }}",
        "an end without a block": "{% endfor %}",
        "half an expression": "{{ messages[ }}",
        "parentheses without end": "{{ " + "(" * 50_000 + " }}",
    }
    for what, text in broken.items():
        yield Corrupted(f"{JINJA}: {what}", (JINJA,), {JINJA: text.encode()})
    config = _json({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{% if %}"})
    yield Corrupted("a template in the configuration", (TOKENIZER_CONFIG, "template"), {TOKENIZER_CONFIG: config})
    yield Corrupted(f"{JINJA}: not UTF-8", (JINJA,), {JINJA: b"\xff"})
    yield Corrupted(f"{JINJA}: a byte-order mark", (JINJA,), {JINJA: b"\xef\xbb\xbf{{ messages }}"})
    yield Corrupted(f"{JINJA}: 32 MiB", (JINJA,), {JINJA: b" " * (32 << 20)})


def _safetensors(whole: bytes) -> Iterator[Corrupted]:
    for what, content in made_safetensors():
        yield Corrupted(f"{WEIGHTS}: {what}", (WEIGHTS,), {WEIGHTS: content})
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]

    def file(change: Callable[[dict[str, Any]], object], tail: bytes = b"") -> dict[str, bytes | Path | None]:
        changed = json.loads(json.dumps(header))
        change(changed)
        text = _json(changed)
        return {WEIGHTS: struct.pack("<Q", len(text)) + text + data + tail}

    entry = header[UP]
    first, stop = entry["data_offsets"]
    entries: list[tuple[str, Any]] = [
        *(("dtype", value) for value in ("F32", "U8", "I64", "magic", 5, None, "F8_E4M3")),
        *(("shape", value) for value in ([96], [64, 96], [-1, 64], [2**62, 64], "x", [96, 64, 1], [96.5, 64])),
        ("data_offsets", [first, stop + 2]),
        ("data_offsets", [stop, first]),
        ("data_offsets", [first - 64, stop - 64]),
        ("data_offsets", [first + 64, stop + 64]),
        ("data_offsets", [len(data), len(data) + stop - first]),
        ("data_offsets", [2**63, 2**63 + stop - first]),
        ("data_offsets", [first]),
        ("data_offsets", None),
    ]
    for key, value in entries:
        made = file(lambda tensors, key=key, value=value: tensors[UP].__setitem__(key, value))  # type: ignore[misc]
        # Offsets that cross a neighbour's may be told of either.
        names = (WEIGHTS, "data_offsets" if key == "data_offsets" else UP)
        yield Corrupted(f"{WEIGHTS}: {key} = {value}", names, made)
    yield Corrupted(f"{WEIGHTS}: a tensor less", (WEIGHTS,), file(lambda tensors: tensors.pop(UP)))
    yield Corrupted(f"{WEIGHTS}: an entry that is a list", (WEIGHTS, UP), file(lambda t: t.__setitem__(UP, [])))
    yield Corrupted(f"{WEIGHTS}: another name", (WEIGHTS, UP), file(lambda t: t.__setitem__("x", t.pop(UP))))
    yield Corrupted(f"{WEIGHTS}: bytes behind", (WEIGHTS,), file(lambda t: None, b"x" * 100))
    metadata = file(lambda t: t.__setitem__("__metadata__", {"format": 5}))
    yield Corrupted(f"{WEIGHTS}: metadata of numbers", (WEIGHTS, "__metadata__"), metadata)
    for part in (5, 100, 8 + length, len(whole) // 2, len(whole) - 1):
        yield Corrupted(f"{WEIGHTS}: the first {part} bytes", (WEIGHTS,), {WEIGHTS: whole[:part]})
    yield Corrupted(f"{WEIGHTS}: a pickle", (WEIGHTS,), {WEIGHTS: b"\x80\x04\x95" + bytes(5) + b"\x8c\x02os\x94."})
    yield Corrupted(f"{WEIGHTS}: not there", (WEIGHTS,), {WEIGHTS: None})
    yield Corrupted(f"{WEIGHTS}: a link to nowhere", (WEIGHTS,), {WEIGHTS: Path("nowhere")})
    yield Corrupted(f"{WEIGHTS}: a link to /etc/passwd", (WEIGHTS,), {WEIGHTS: Path("/etc/passwd")})


def _index(whole: bytes) -> Iterator[Corrupted]:
    in_one = {EMBED: SHARD}
    indices: list[tuple[str, object]] = [
        ("a path upwards", in_one | {"x": "../model.safetensors"}),
        ("a path from the root", in_one | {"x": "/etc/passwd"}),
        ("a folder", in_one | {"x": "."}),
        ("a NUL", in_one | {"x": "a\0.safetensors"}),
        ("no name", in_one | {"x": ""}),
        ("a pickled file", in_one | {"x": "pytorch_model.bin"}),
        ("a file that is not there", in_one | {"x": "nowhere.safetensors"}),
        ("a number", in_one | {"x": 5}),
        ("nothing", {}),
        ("a list", []),
    ]
    for what, weight_map in indices:
        changes: dict[str, bytes | Path | None] = {WEIGHTS: None, SHARD: whole}
        yield Corrupted(f"{INDEX}: {what}", (INDEX,), changes | {INDEX: _json({"weight_map": weight_map})})
    for what, content in (
        ("empty", b""),
        ("no weight_map", b"{}"),
        ("cut off", b'{"weight_map": {"x"'),
        ("zeros", b"\0"),
    ):
        yield Corrupted(f"{INDEX}: {what}", (INDEX,), {WEIGHTS: None, SHARD: whole, INDEX: content})
    twice = {EMBED: SHARD, UP: "b.safetensors"}
    made: dict[str, bytes | Path | None] = {WEIGHTS: None, SHARD: whole, "b.safetensors": whole}
    named = (SHARD, "b.safetensors", EMBED)
    yield Corrupted(f"{INDEX}: each tensor twice", named, made | {INDEX: _json({"weight_map": twice})})
    link = {WEIGHTS: None, SHARD: Path("/etc/passwd"), INDEX: _json({"weight_map": in_one})}
    yield Corrupted(f"{INDEX}: a shard that is a link to /etc/passwd", (SHARD,), link)


def _gguf(whole: bytes) -> Iterator[Corrupted]:
    def case(what: str, names: tuple[str, ...], content: bytes) -> Corrupted:
        return Corrupted(f"{GGUF_NAME}: {what}", (GGUF_NAME, *names), {GGUF_NAME: content}, is_gguf=True)

    for what, content in made_gguf():
        yield case(what, (), content)
    for part in (3, 20, 200, len(whole) // 2, len(whole) - 1):
        yield case(f"the first {part} bytes", (), whole[:part])
    yield case("version 9", ("version",), whole[:4] + struct.pack("<I", 9) + whole[8:])
    yield case("big-endian", ("version",), whole[:4] + struct.pack(">I", 3) + whole[8:])
    yield case("a pickle", (), b"\x80\x04\x95" + bytes(5) + b"\x8c\x02os\x94.")

    # A tensor's entry: its name, the number of its dimensions, these, its type, where it begins.
    name = "blk.1.ffn_up.weight"
    at = whole.index(name.encode()) + len(name)
    for what, offset, form, value in (
        ("0 dimensions", 0, "<I", 0),
        ("9 dimensions", 0, "<I", 9),
        ("rows of 2^62 values", 4, "<Q", 2**62),
        ("rows of 65 values", 4, "<Q", 65),
        ("2^62 rows", 12, "<Q", 2**62),
        ("no row", 12, "<Q", 0),
        ("a type nobody knows", 20, "<I", 99),
        ("a type that was taken away", 20, "<I", 4),
        ("a type of blocks", 20, "<I", 10),
        ("an offset of 2^62", 24, "<Q", 2**62),
        ("an offset at the end", 24, "<Q", len(whole)),
    ):
        content = bytearray(whole)
        struct.pack_into(form, content, at + offset, value)
        yield case(f"{name}: {what}", (name if offset else "tensor",), bytes(content))
    yield case("a name twice", ("twice",), whole.replace(b"blk.1.ffn_up.", b"blk.0.ffn_up."))
    yield case(
        "a name nobody knows",
        ("model.layers.1.mlp.up_proj.weight",),
        whole.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_magiccc_x"),
    )

    # Metadata: a key, its type, its value.
    for key, value in (
        ("qwen3.block_count", 0),
        ("qwen3.block_count", 3),
        ("qwen3.embedding_length", 0),
        ("qwen3.embedding_length", 128),
        ("qwen3.feed_forward_length", 2**31),
        ("qwen3.attention.head_count", 0),
        ("qwen3.attention.head_count_kv", 3),
        ("qwen3.attention.key_length", 31),
        ("qwen3.context_length", 0),
    ):
        start = whole.index(key.encode() + struct.pack("<I", 4)) + len(key) + 4
        content = bytearray(whole)
        struct.pack_into("<I", content, start, value)
        # What fits by itself is told of where it does not fit the tensors.
        names = () if value in (3, 128) and key != "qwen3.attention.head_count_kv" else (key.removeprefix("qwen3."),)
        yield case(f"{key} = {value}", names, bytes(content))
    for key in ("general.architecture", "qwen3.block_count", "tokenizer.ggml.tokens", "tokenizer.ggml.model"):
        hidden = whole.replace(key.encode(), key[:-1].encode() + b"_", 1)
        yield case(f"without {key}", (key.removeprefix("qwen3."),), hidden)
        typed = bytearray(whole)
        struct.pack_into("<I", typed, whole.index(key.encode()) + len(key), 77)
        yield case(f"{key} of type 77", (key,), bytes(typed))


def sample(cases: list[Corrupted], count: int, seed: int) -> list[Corrupted]:
    """Some of them, of every part of the list."""
    drawn = random.Random(seed)
    step = len(cases) / count
    return [cases[int(step * index + drawn.random() * step)] for index in range(count)]
