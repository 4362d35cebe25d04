"""`config.json` of a Hugging Face model → `DecoderConfig` and end-of-sequence ids.

Typed readers of our own stand in for transformers' configuration classes, because importing those imports torch: 2.0 s
and 240 MB in a process that never touches a tensor (transformers 5.23, 2 Zen 5 cores). Each family's defaults are those
of transformers' class, and tests compare the results with transformers' own objects. Both of its spellings are read:
`rope_theta` with `rope_scaling` (version 4) and `rope_parameters` (version 5).

What the decoder does not do is refused with the key and its value; `hf_keys` knows the keys that are not read.
"""

import logging
from typing import Any

import msgspec

from pagewire.scheduler_svc.models.decoder_limits import check_decoder
from pagewire.scheduler_svc.models.files import decode_json, decode_object
from pagewire.scheduler_svc.models.hf_generation import eos_ids
from pagewire.scheduler_svc.models.hf_keys import check_keys
from pagewire.scheduler_svc.models.hf_rope import read_rope
from pagewire.scheduler_svc.startup_errors import ModelError, shown
from pagewire.wire.model import Architecture, DecoderConfig

_log = logging.getLogger(__name__)


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
    use_sliding_window: bool | None = False
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
    use_sliding_window: bool | None = None
    sliding_window: int | None = None
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


_NAMES = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
}
"""Keys whose field has another name."""


class HfConfig(msgspec.Struct, frozen=True):
    """What config.json says."""

    decoder: DecoderConfig
    eos_token_ids: tuple[int, ...]


def read_config(content: bytes) -> HfConfig:
    """Read config.json. Raises ModelError naming the key and value that cannot be served."""
    head = decode_json(content, _Head, "config.json")
    if head.model_type not in _FAMILIES:
        raise ModelError(
            f"config.json: model_type = {shown(head.model_type)} is not served; {', '.join(_FAMILIES)} are"
        )
    architecture, reader, causal_lm = _FAMILIES[head.model_type]
    if head.architectures and head.architectures != [causal_lm]:
        raise ModelError(f"config.json: architectures = {shown(head.architectures)} is not served; [{causal_lm!r}] is")
    if head.quantization_config is not None:
        method = head.quantization_config.get("quant_method")
        raise ModelError(f"config.json: quantization_config with quant_method = {shown(method)} is not served")
    config = decode_json(content, reader, "config.json")
    raw = decode_object(content, "config.json")
    check_keys(raw, reader.__struct_fields__ + _Head.__struct_fields__, architecture)
    _warn_of_foreign_biases(architecture, config)
    if config.hidden_act not in ("silu", "swish"):  # two names for one function
        raise ModelError(f"config.json: hidden_act = {shown(config.hidden_act)} is not served; 'silu' is")
    decoder = _decoder(architecture, config)
    check_decoder(decoder, "config.json", _NAMES)
    return HfConfig(decoder, eos_ids(config.eos_token_id, decoder.vocab_size, "config.json"))


def _decoder(architecture: Architecture, config: _Config) -> DecoderConfig:
    if config.num_attention_heads < 1:
        raise ModelError(f"config.json: num_attention_heads = {shown(config.num_attention_heads)} must be at least 1")
    if config.rope_scaling and config.rope_parameters and config.rope_scaling != config.rope_parameters:
        _log.warning("config.json: rope_scaling and rope_parameters differ; rope_scaling counts, as in transformers")
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
    _check_layer_types(config)
    match architecture:
        case "mistral":
            return config.sliding_window
        case "qwen2" | "qwen3":
            window = config.sliding_window if config.use_sliding_window else None
            if config.layer_types is None:
                return window if config.max_window_layers < config.num_hidden_layers else None
            if "sliding_attention" not in config.layer_types:
                return None
            if window is None:
                raise ModelError(
                    "config.json: layer_types has 'sliding_attention', but use_sliding_window and sliding_window name "
                    "no window"
                )
            return window
        case "llama" if config.sliding_window is not None and config.use_sliding_window is not False:
            # transformers leaves the key out, vLLM goes by it.
            raise ModelError(
                f"config.json: sliding_window = {shown(config.sliding_window)} is not served for model_type 'llama'; "
                "null is, or use_sliding_window = false"
            )
        case "llama" if "sliding_attention" in (config.layer_types or ()):
            raise ModelError("config.json: layer_types has 'sliding_attention', not served for model_type 'llama'")
        case _:
            return None


def _check_layer_types(config: _Config) -> None:
    if config.layer_types is None:
        return
    for kind in config.layer_types:
        if kind not in ("full_attention", "sliding_attention"):
            raise ModelError(
                f"config.json: layer_types has {shown(kind)}, which is not served; 'full_attention' and "
                "'sliding_attention' are"
            )
    if len(config.layer_types) != config.num_hidden_layers:
        raise ModelError(
            f"config.json: layer_types has {len(config.layer_types)} entries for num_hidden_layers = "
            f"{shown(config.num_hidden_layers)}"
        )


def _warn_of_foreign_biases(architecture: Architecture, config: _Config) -> None:
    """Flags that the family's class does not read. Weights with other biases than it has are refused when they load."""
    read = {"qwen3": ("attention_bias",), "llama": ("attention_bias", "mlp_bias")}.get(architecture, ())
    for key in ("attention_bias", "mlp_bias"):
        if getattr(config, key) and key not in read:
            _log.warning("config.json: %s = true is left out: model_type %r has no such key", key, architecture)
