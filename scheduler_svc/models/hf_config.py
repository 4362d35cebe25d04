"""`config.json` and `generation_config.json` of a Hugging Face model → `DecoderConfig`, end-of-sequence ids, sampling.

Typed readers of our own stand in for transformers' configuration classes, because importing those imports torch: 2.0 s
and 240 MB in a process that never touches a tensor (transformers 5.23, 2 Zen 5 cores). Each family's defaults are those
of transformers' class, and tests compare the results with transformers' own objects. Both of its spellings are read:
`rope_theta` with `rope_scaling` (version 4) and `rope_parameters` (version 5).

What the decoder does not do is refused with the key and its value; keys that change nothing in the forward pass are let
through unread.
"""

from typing import Any, TypeVar

import msgspec

from pagewire.scheduler_svc.models.hf_rope import read_rope
from pagewire.scheduler_svc.startup_errors import ModelError
from pagewire.wire.model import Architecture, DecoderConfig, SamplingDefaults

_T = TypeVar("_T")

_MAX_SIZE = 2**24
"""Largest number that any size in a configuration may be; far above all published ones."""


class _Head(msgspec.Struct):
    """What is read before the family is known."""

    model_type: str = ""
    architectures: list[str] | None = None
    quantization_config: dict[str, Any] | None = None


class _Config(msgspec.Struct, kw_only=True):
    """Keys of all families; a family's class sets its own defaults."""

    vocab_size: int
    hidden_size: int = 4096
    intermediate_size: int
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[str] | None = None
    eos_token_id: int | list[int] | None = None
    original_max_position_embeddings: int | None = None
    partial_rotary_factor: float | None = None
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None


class _Qwen(_Config, kw_only=True):
    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768


class _Qwen3(_Qwen, kw_only=True):
    head_dim: int | None = 128


class _Llama(_Config, kw_only=True):
    vocab_size: int = 32000
    intermediate_size: int = 11008
    num_key_value_heads: int | None = None
    max_position_embeddings: int = 2048
    eos_token_id: int | list[int] | None = 2


class _Mistral(_Config, kw_only=True):
    vocab_size: int = 32000
    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    eos_token_id: int | list[int] | None = 2


_FAMILIES: dict[str, tuple[Architecture, type[_Config], str]] = {
    "qwen3": ("qwen3", _Qwen3, "Qwen3ForCausalLM"),
    "qwen2": ("qwen2", _Qwen, "Qwen2ForCausalLM"),
    "llama": ("llama", _Llama, "LlamaForCausalLM"),
    "mistral": ("mistral", _Mistral, "MistralForCausalLM"),
}


class _GenerationConfig(msgspec.Struct):
    """What generation_config.json may say."""

    eos_token_id: int | list[int] | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None


class HfConfig(msgspec.Struct, frozen=True):
    """What config.json says."""

    decoder: DecoderConfig
    eos_token_ids: tuple[int, ...]


class HfGeneration(msgspec.Struct, frozen=True):
    """What generation_config.json says; no ids where it names none."""

    eos_token_ids: tuple[int, ...]
    sampling: SamplingDefaults


def read_config(content: bytes) -> HfConfig:
    """Read config.json. Raises ModelError naming the key and value that cannot be served."""
    head = _decode(content, _Head, "config.json")
    if head.model_type not in _FAMILIES:
        raise ModelError(f"config.json: model_type = {head.model_type!r} is not served; {', '.join(_FAMILIES)} are")
    architecture, reader, causal_lm = _FAMILIES[head.model_type]
    if head.architectures and head.architectures != [causal_lm]:
        raise ModelError(f"config.json: architectures = {head.architectures!r} is not served; [{causal_lm!r}] is")
    if head.quantization_config is not None:
        method = head.quantization_config.get("quant_method")
        raise ModelError(f"config.json: quantization_config with quant_method = {method!r} is not served")
    config = _decode(content, reader, "config.json")
    if config.hidden_act != "silu":
        raise ModelError(f"config.json: hidden_act = {config.hidden_act!r} is not served; 'silu' is")
    decoder = _decoder(architecture, config)
    check_decoder(decoder, "config.json")
    return HfConfig(decoder, _ids(config.eos_token_id, decoder.vocab_size))


def read_generation_config(content: bytes, vocab_size: int) -> HfGeneration:
    """Read generation_config.json. `do_sample: false` means greedy; sampling that it leaves out is neutral."""
    config = _decode(content, _GenerationConfig, "generation_config.json")
    for name, value, low, high in (
        ("temperature", config.temperature, 0.0, 2.0),
        ("top_k", config.top_k, 0, _MAX_SIZE),
        ("top_p", config.top_p, 0.0, 1.0),
    ):
        if value is not None and not low <= value <= high:
            raise ModelError(f"generation_config.json: {name} = {value!r} must be {low} to {high}")
    sampling = SamplingDefaults(
        temperature=0.0 if config.do_sample is False else 1.0 if config.temperature is None else config.temperature,
        top_k=config.top_k or 0,
        top_p=config.top_p or 1.0,
    )
    return HfGeneration(_ids(config.eos_token_id, vocab_size), sampling)


def check_decoder(decoder: DecoderConfig, origin: str) -> None:
    """Hold a shape to what can be a decoder at all, wherever it was read. Raises ModelError."""
    for name in (
        "hidden_size",
        "intermediate_size",
        "num_layers",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
    ):
        value = getattr(decoder, name)
        if not 1 <= value <= _MAX_SIZE:
            raise ModelError(f"{origin}: {name} = {value} must be 1 to {_MAX_SIZE}")
    if decoder.num_heads % decoder.num_kv_heads:
        raise ModelError(
            f"{origin}: {decoder.num_heads} heads cannot share {decoder.num_kv_heads} key-value heads evenly"
        )
    if decoder.head_dim % 2:
        raise ModelError(f"{origin}: head_dim = {decoder.head_dim} is odd; rotary embedding needs pairs")
    if not 0 < decoder.rms_norm_eps < 1 or not 0 < decoder.rope_theta < float("inf"):
        raise ModelError(
            f"{origin}: rms_norm_eps = {decoder.rms_norm_eps} or rope_theta = {decoder.rope_theta} is out of range"
        )


def _decoder(architecture: Architecture, config: _Config) -> DecoderConfig:
    if config.num_attention_heads < 1:
        raise ModelError(f"config.json: num_attention_heads = {config.num_attention_heads} must be at least 1")
    rope_theta, rope_scaling = read_rope(
        scaling=config.rope_scaling or config.rope_parameters or {},
        rope_theta=config.rope_theta,
        partial_rotary_factor=config.partial_rotary_factor,
        max_position_embeddings=config.max_position_embeddings,
        original_max_position_embeddings=config.original_max_position_embeddings,
    )
    return DecoderConfig(
        architecture=architecture,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_attention_heads if config.num_key_value_heads is None else config.num_key_value_heads,
        head_dim=config.hidden_size // config.num_attention_heads if config.head_dim is None else config.head_dim,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_word_embeddings=config.tie_word_embeddings,
        qk_norm=architecture == "qwen3",
        qkv_bias=architecture == "qwen2" or (architecture in ("qwen3", "llama") and config.attention_bias),
        o_bias=architecture in ("qwen3", "llama") and config.attention_bias,
        mlp_bias=architecture == "llama" and config.mlp_bias,
        sliding_window=_window(architecture, config),
    )


def _window(architecture: Architecture, config: _Config) -> int | None:
    """The window, where some layer has one."""
    match architecture:
        case "mistral":
            return config.sliding_window
        case "qwen2" | "qwen3" if config.use_sliding_window:
            if config.layer_types is not None:
                windowed = "sliding_attention" in config.layer_types
            else:
                windowed = config.max_window_layers < config.num_hidden_layers
            return config.sliding_window if windowed else None
        case _:
            return None


def _ids(value: int | list[int] | None, vocab_size: int) -> tuple[int, ...]:
    """Ids that a model can emit; some files name ids beyond the embedding, which never come."""
    ids = [] if value is None else [value] if isinstance(value, int) else value
    return tuple(dict.fromkeys(token for token in ids if 0 <= token < vocab_size))


def _decode(content: bytes, kind: type[_T], name: str) -> _T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelError(f"{name}: {error}") from error
