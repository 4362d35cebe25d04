"""A GGUF file → `ModelSpec` and a tokenizer.json, read through the `gguf` package.

`gguf` walks the vocabulary in Python: 2.2 s for SmolLM2's 49,152 tokens. What it gave is therefore kept in the cache
folder under the file's digest, size and modification time, and a second start reads only that, in 20 ms. No tensor's
data is read but for the digest.

Keys are those of ggml's docs/gguf.md; `llama` files hold Mistral models too, which differ in no flag of ours.
"""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from pagewire.scheduler_svc.models.cache import make_cache_folder, write_atomically, writing_cache
from pagewire.scheduler_svc.models.digest import sha256_of, weights_digest
from pagewire.scheduler_svc.models.gguf_tokenizer import GgufTokenizer, build_tokenizer
from pagewire.scheduler_svc.models.hf_config import check_decoder
from pagewire.scheduler_svc.progress import Progress
from pagewire.scheduler_svc.startup_errors import ModelError
from pagewire.wire.model import Architecture, DecoderConfig, ModelSpec, RopeScaling

_READER_VERSION = 1
"""Part of the cache key: raise it when what is read from a file changes."""

_ARCHITECTURES: dict[str, Architecture] = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


class GgufMetadata(msgspec.Struct, frozen=True):
    """Key-value pairs as Python values, and the shape of each tensor, innermost dimension first."""

    values: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]


def read_gguf(path: Path, name: str, cache_dir: Path, progress: Progress) -> ModelSpec:
    """Describe the model in a GGUF file. Raises ModelError naming the key that is missing or cannot be served."""
    try:
        stat = path.stat()
        digest = weights_digest([path])
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    key = hashlib.sha256(f"{_READER_VERSION} {digest} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:32]
    folder = cache_dir / "gguf" / key
    spec = _from_cache(folder)
    if spec is None:
        stage = f"reading {path.name}"
        progress.report(stage, 0.0)
        metadata = read_metadata(path)
        with writing_cache(folder):
            spec = _describe(metadata, folder, path.name, digest)
        progress.report(stage, 1.0)
    return msgspec.structs.replace(spec, name=name, weights_files=(str(path),))


def read_metadata(path: Path) -> GgufMetadata:
    """Read what stands before the tensors' data. Raises ModelError for a file that is no GGUF."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        values = {key: field.contents() for key, field in reader.fields.items()}
        tensors = {tensor.name: tuple(int(size) for size in tensor.shape) for tensor in reader.tensors}
    except (ValueError, KeyError, IndexError, OverflowError, TypeError, MemoryError, OSError) as error:
        raise ModelError(f"{path} is not a GGUF file that can be read: {error}") from error
    return GgufMetadata(values, tensors)


def decoder_config(metadata: GgufMetadata, origin: str) -> DecoderConfig:
    """The decoder's shape. Raises ModelError."""
    architecture = metadata.values.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
        raise ModelError(
            f"{origin}: general.architecture = {architecture!r} is not served; {', '.join(_ARCHITECTURES)} are"
        )

    def number(key: str, default: float | None = None) -> Any:
        value = metadata.values.get(f"{architecture}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelError(f"{origin}: {architecture}.{key} = {value!r} must be a number")
        return value

    if number("expert_count", 0):
        raise ModelError(f"{origin}: {architecture}.expert_count = {number('expert_count')} is not served")
    embedding = metadata.tensors.get("token_embd.weight", ())
    if len(embedding) != 2:
        raise ModelError(f"{origin}: tensor token_embd.weight has shape {embedding}; two dimensions were expected")
    if "rope_freqs.weight" in metadata.tensors:
        raise ModelError(
            f"{origin}: tensor rope_freqs.weight (Llama 3.1's frequency scaling) is not served from GGUF; "
            "the same model from its safetensors is"
        )
    hidden, heads = int(number("embedding_length")), int(number("attention.head_count"))
    head_dim = int(number("attention.key_length", hidden // heads if heads else 0))
    for key, default in (("rope.dimension_count", head_dim), ("attention.value_length", head_dim)):
        if number(key, default) != head_dim:
            raise ModelError(f"{origin}: {architecture}.{key} = {number(key)} differs from head_dim = {head_dim}")
    window = int(number("attention.sliding_window", 0))
    decoder = DecoderConfig(
        architecture=_ARCHITECTURES[architecture],
        hidden_size=hidden,
        intermediate_size=int(number("feed_forward_length")),
        num_layers=int(number("block_count")),
        num_heads=heads,
        num_kv_heads=int(number("attention.head_count_kv", heads)),
        head_dim=head_dim,
        vocab_size=embedding[1],
        max_position_embeddings=int(number("context_length")),
        rms_norm_eps=_as_written(number("attention.layer_norm_rms_epsilon")),
        rope_theta=_as_written(number("rope.freq_base", 10000.0)),
        rope_scaling=_rope_scaling(metadata, architecture, origin),
        tie_word_embeddings="output.weight" not in metadata.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in metadata.tensors,
        qkv_bias="blk.0.attn_q.bias" in metadata.tensors,
        o_bias="blk.0.attn_output.bias" in metadata.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in metadata.tensors,
        sliding_window=window or None,
    )
    check_decoder(decoder, origin)
    return decoder


def _rope_scaling(metadata: GgufMetadata, architecture: str, origin: str) -> RopeScaling | None:
    values = {
        key.removeprefix(f"{architecture}.rope.scaling."): value
        for key, value in metadata.values.items()
        if key.startswith(f"{architecture}.rope.scaling.")
    }
    kind = values.get("type", "none")
    if kind == "none":
        return None
    try:
        if kind == "linear":
            return RopeScaling(kind="linear", factor=float(values["factor"]))
        if kind == "yarn":
            return RopeScaling(
                kind="yarn",
                factor=float(values["factor"]),
                original_max_position_embeddings=int(values["original_context_length"]),
                beta_fast=values.get("yarn_beta_fast"),
                beta_slow=values.get("yarn_beta_slow"),
            )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{origin}: {architecture}.rope.scaling of type {kind!r}: {error}") from error
    raise ModelError(f"{origin}: {architecture}.rope.scaling.type = {kind!r} is not served; none, linear and yarn are")


def _as_written(value: float) -> float:
    """Undo float32's rounding of a number that somebody wrote in decimals: 9.999999747378752e-06 is 1e-05."""
    return float(f"{value:.7g}")


def _describe(metadata: GgufMetadata, folder: Path, origin: str, digest: str) -> ModelSpec:
    """Read the metadata, and leave spec and tokenizer in `folder`."""
    decoder = decoder_config(metadata, origin)
    tokenizer: GgufTokenizer = build_tokenizer(metadata.values, decoder.vocab_size, origin)
    make_cache_folder(folder)
    content = tokenizer.definition.encode()
    write_atomically(folder / "tokenizer.json", content)
    spec = ModelSpec(
        name="",
        decoder=decoder,
        weights_format="gguf",
        weights_files=(),
        weights_digest=digest,
        eos_token_ids=tokenizer.eos_token_ids,
        tokenizer_file=str(folder / "tokenizer.json"),
        tokenizer_digest=sha256_of(content),
        add_bos=tokenizer.add_bos,
        chat_template=tokenizer.chat_template,
        special_tokens=tokenizer.special_tokens,
    )
    write_atomically(folder / "spec.json", msgspec.json.encode(spec))
    return spec


def _from_cache(folder: Path) -> ModelSpec | None:
    """What an earlier start left: spec.json is written last, so tokenizer.json is there when it is."""
    try:
        spec = msgspec.json.decode((folder / "spec.json").read_bytes(), type=ModelSpec)
        definition = (folder / "tokenizer.json").read_bytes()
    except (OSError, msgspec.DecodeError):
        return None
    if sha256_of(definition) != spec.tokenizer_digest:
        return None
    return msgspec.structs.replace(spec, tokenizer_file=str(folder / "tokenizer.json"))
