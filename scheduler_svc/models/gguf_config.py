"""GGUF configuration: a file's metadata → `DecoderConfig` and the defaults of sampling.

Keys are those of ggml's docs/gguf.md and of the gguf package, the older spellings included, read as llama.cpp reads
them. `llama` files hold Mistral models too, which differ in no flag of ours. Keys that are not read are `gguf_keys`',
`tokenizer.*` is `gguf_tokenizer`'s.
"""

import math
from collections.abc import Mapping
from typing import Any

from pagewire.scheduler_svc.models.decoder_limits import check_decoder
from pagewire.scheduler_svc.models.gguf_keys import OFF, Warn, check_keys
from pagewire.scheduler_svc.models.gguf_parts import GgufModel
from pagewire.scheduler_svc.models.hf_generation import sampling_defaults
from pagewire.scheduler_svc.startup_errors import ModelError, shown
from pagewire.wire.model import Architecture, DecoderConfig, RopeScaling
from pagewire.wire.sampling import PARAMETERS, SamplingParams

_ARCHITECTURES: dict[str, Architecture] = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}

_NAMES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_layers": "block_count",
    "num_heads": "attention.head_count",
    "num_kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "vocab_size": "rows of token_embd.weight",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
}
"""A decoder's fields as the format spells them."""

_SAMPLING_NAMES = {"temp": "temperature"}
"""Where a key of `general.sampling` is not the parameter's name."""

_UNAPPLIED_SAMPLING = {
    "xtc_probability": OFF,
    "xtc_threshold": None,  # without effect where the probability is 0
    "penalty_last_n": None,  # the same of penalty_repeat
    "penalty_repeat": (1,),
    "mirostat": OFF,
    "mirostat_tau": None,
    "mirostat_eta": None,
    "sequence": None,  # the order of samplers
}


def decoder_config(model: GgufModel, origin: str, warn: Warn) -> DecoderConfig:
    """The decoder's shape. Raises ModelError naming key and value."""
    return _Reader(model, origin).decoder(warn)


def sampling(values: Mapping[str, Any], vocab_size: int, origin: str, warn: Warn) -> SamplingParams:
    """What `general.sampling.*` recommends, as llama.cpp takes it where a request says nothing. Raises ModelError."""
    found = {
        key.removeprefix("general.sampling."): value
        for key, value in values.items()
        if key.startswith("general.sampling.")
    }
    for name, value in found.items():
        if _SAMPLING_NAMES.get(name, name) not in PARAMETERS:
            neutral = _UNAPPLIED_SAMPLING.get(name, ())
            if neutral is not None and value not in neutral:
                warn(f"{origin} sets general.sampling.{name} = {shown(value)}, which is not applied")
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ModelError(f"{origin}: general.sampling.{name} = {shown(value)} must be a number")
    asked: dict[str, float] = {}
    for written, value in found.items():
        name = _SAMPLING_NAMES.get(written, written)
        if name in PARAMETERS:
            value = int(value) if PARAMETERS[name].dtype == "<i4" else as_written(value)
            # What is below 0 asks for nothing there, or of a temperature for the likeliest.
            asked[name] = max(0, value) if PARAMETERS[name].least == 0 else value
    return sampling_defaults(asked, vocab_size, f"{origin}: general.sampling")


def as_written(value: float) -> float:
    """Undo float32's rounding of a number that somebody wrote in decimals: 9.999999747378752e-06 is 1e-05."""
    return float(f"{value:.7g}")


class _Reader:
    """A file's keys, looked up by what stands after the architecture's name."""

    def __init__(self, model: GgufModel, origin: str) -> None:
        self._values = model.values
        self._tensors = model.tensors
        self._origin = origin
        architecture = model.values.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
            raise ModelError(
                f"{origin}: general.architecture = {shown(architecture)} is not served; {', '.join(_ARCHITECTURES)} are"
            )
        self._architecture = architecture

    def decoder(self, warn: Warn) -> DecoderConfig:
        check_keys(self._values, self._architecture, self._origin, warn)
        vocab_size, hidden = self._embedding()
        num_layers = self._layers()
        heads = self._integer("attention.head_count")
        if heads < 1:
            raise self._error("attention.head_count", heads, "must be at least 1")
        head_dim = self._integer("attention.key_length", hidden // heads)
        for key in ("rope.dimension_count", "attention.value_length"):
            if self._integer(key, head_dim) != head_dim:
                raise self._error(key, self._integer(key), f"differs from attention.key_length = {head_dim}")
        window = self._integer("attention.sliding_window", 0)
        decoder = DecoderConfig(
            architecture=_ARCHITECTURES[self._architecture],
            hidden_size=hidden,
            intermediate_size=self._integer("feed_forward_length"),
            num_layers=num_layers,
            num_heads=heads,
            num_kv_heads=self._integer("attention.head_count_kv", heads),
            head_dim=head_dim,
            vocab_size=vocab_size,
            max_position_embeddings=self._integer("context_length"),
            rms_norm_eps=as_written(self._number("attention.layer_norm_rms_epsilon")),
            rope_theta=as_written(self._number("rope.freq_base", 10000.0)),
            rope_scaling=self._rope_scaling(),
            tie_word_embeddings="output.weight" not in self._tensors,
            qk_norm="blk.0.attn_q_norm.weight" in self._tensors,
            qkv_bias="blk.0.attn_q.bias" in self._tensors,
            o_bias="blk.0.attn_output.bias" in self._tensors,
            mlp_bias="blk.0.ffn_gate.bias" in self._tensors,
            sliding_window=window or None,  # 0 is none in the format
        )
        names = {field: f"{self._architecture}.{key}" for field, key in _NAMES.items() if field != "vocab_size"}
        check_decoder(decoder, self._origin, names | {"vocab_size": _NAMES["vocab_size"]})
        return decoder

    def _embedding(self) -> tuple[int, int]:
        """Number of tokens and hidden size."""
        embedding = self._tensors.get("token_embd.weight")
        shape = () if embedding is None else embedding.shape
        if len(shape) != 2:
            raise ModelError(
                f"{self._origin}: tensor token_embd.weight has shape {shape}; two dimensions were expected"
            )
        hidden = self._integer("embedding_length")
        if shape[1] != hidden:
            raise self._error("embedding_length", hidden, f"differs from token_embd.weight's {shape[1]}")
        if (vocab_size := self._integer("vocab_size", shape[0])) != shape[0]:
            raise self._error("vocab_size", vocab_size, f"differs from token_embd.weight's {shape[0]} rows")
        if "rope_freqs.weight" in self._tensors:
            raise ModelError(
                f"{self._origin}: tensor rope_freqs.weight (Llama 3.1's frequency scaling) is not served from GGUF; "
                "the same model from its safetensors is"
            )
        return shape[0], shape[1]

    def _layers(self) -> int:
        """`block_count`, of which every one has tensors."""
        num_layers = self._integer("block_count")
        found = {name.split(".")[1] for name in self._tensors if name.startswith("blk.")}
        if num_layers > len(found):
            raise self._error("block_count", num_layers, f"is more than the {len(found)} blocks that have tensors")
        return num_layers

    def _rope_scaling(self) -> RopeScaling | None:
        """As llama.cpp has it: a factor without a type is linear, and an older key holds it too."""
        factor = self._number("rope.scaling.factor", self._number("rope.scale_linear", 0.0))
        kind = self._values.get(f"{self._architecture}.rope.scaling.type", "linear")
        if kind == "none" or (kind == "linear" and factor in (0, 1)):
            return None
        if kind not in ("linear", "yarn"):
            raise self._error("rope.scaling.type", kind, "is not served; none, linear and yarn are")
        if factor <= 0:
            raise self._error("rope.scaling.factor", factor, f"of type {kind!r} must be above 0")
        if kind == "linear":
            return RopeScaling(kind="linear", factor=as_written(factor))
        return RopeScaling(
            kind="yarn",
            factor=as_written(factor),
            original_max_position_embeddings=self._integer(
                "rope.scaling.original_context_length", self._integer("context_length")
            ),
            beta_fast=self._optional("rope.scaling.yarn_beta_fast"),
            beta_slow=self._optional("rope.scaling.yarn_beta_slow"),
        )

    def _optional(self, key: str) -> float | None:
        return as_written(self._number(key)) if f"{self._architecture}.{key}" in self._values else None

    def _integer(self, key: str, default: float | None = None) -> int:
        value = self._number(key, default)
        if value != int(value):
            raise self._error(key, value, "must be a whole number")
        return int(value)

    def _number(self, key: str, default: float | None = None) -> float:
        value = self._values.get(f"{self._architecture}.{key}", default)
        if isinstance(value, list):  # one for each layer
            if not value or any(item != value[0] for item in value):
                raise self._error(key, value, "differs between layers, which is not served")
            if len(value) != self._values.get(f"{self._architecture}.block_count"):
                raise self._error(key, value, f"has {len(value)} entries, which is not block_count")
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._error(key, value, "must be a number")
        return value

    def _error(self, key: str, value: object, what: str) -> ModelError:
        return ModelError(f"{self._origin}: {self._architecture}.{key} = {shown(value)} {what}")
