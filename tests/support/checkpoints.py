"""Tiny random checkpoints of every family, made by transformers, and the same shapes as our own configuration."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pagewire.wire.model import DecoderConfig, ModelSpec, RopeScaling, WeightsFormat

TINY: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    # Larger than the families' 0.02, so that attention and logits are far from uniform.
    "initializer_range": 0.2,
    "attn_implementation": "eager",
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}

FAMILIES: dict[str, Callable[[], tuple[type[PreTrainedModel], PreTrainedConfig]]] = {
    "qwen3-tied": lambda: (Qwen3ForCausalLM, Qwen3Config(**TINY, head_dim=16, tie_word_embeddings=True)),
    "qwen3-untied": lambda: (Qwen3ForCausalLM, Qwen3Config(**TINY, head_dim=16, tie_word_embeddings=False)),
    "qwen3-yarn": lambda: (Qwen3ForCausalLM, Qwen3Config(**TINY, head_dim=32, rope_parameters=YARN_ROPE)),
    "llama": lambda: (LlamaForCausalLM, LlamaConfig(**TINY)),
    "llama-llama3-rope": lambda: (LlamaForCausalLM, LlamaConfig(**TINY, head_dim=32, rope_parameters=LLAMA3_ROPE)),
    "llama-linear-rope": lambda: (
        LlamaForCausalLM,
        LlamaConfig(**TINY, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}),
    ),
    "llama-biases": lambda: (LlamaForCausalLM, LlamaConfig(**TINY, attention_bias=True, mlp_bias=True)),
    "mistral": lambda: (MistralForCausalLM, MistralConfig(**TINY, head_dim=8, sliding_window=None)),
    "qwen2": lambda: (Qwen2ForCausalLM, Qwen2Config(**TINY, tie_word_embeddings=True)),
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk and the model it was saved from."""

    directory: Path
    spec: ModelSpec
    hf_model: PreTrainedModel

    @property
    def config(self) -> DecoderConfig:
        return self.spec.decoder


def build_hf_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A model in fp32 with random weights, biases and norms included: transformers starts those at 0 and 1, where a
    mistake in them would not show."""
    model_class, config = FAMILIES[family]()
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(0.0, 0.5)
            elif name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    return model


def save_checkpoint(model: PreTrainedModel, directory: Path, max_shard_size: str = "1GB") -> Checkpoint:
    """Saves as safetensors, in as many shards as the size asks for."""
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    files = tuple(str(path) for path in sorted(directory.glob("*.safetensors")))
    return Checkpoint(directory, model_spec(decoder_config(model.config), "safetensors", files), model)


def checkpoints_in(new_folder: Callable[[str], Path]) -> Callable[[str], Checkpoint]:
    """Builds each family's checkpoint once, when it is first asked for, in a folder of its own."""
    return cache(lambda family: save_checkpoint(build_hf_model(family), new_folder(family)))


def model_spec(
    config: DecoderConfig, weights_format: WeightsFormat, files: tuple[str, ...] = (), random_seed: int = 0
) -> ModelSpec:
    return ModelSpec(
        name="test",
        decoder=config,
        weights_format=weights_format,
        weights_files=files,
        weights_digest="",
        random_seed=random_seed,
        eos_token_ids=(0,),
        tokenizer_file=None,
    )


def decoder_config(hf: PreTrainedConfig) -> DecoderConfig:
    """Our configuration, field by field from transformers' classes."""
    rope = dict(hf.rope_parameters)
    kind = rope.pop("rope_type")
    theta = rope.pop("rope_theta")
    is_llama = hf.model_type == "llama"
    return DecoderConfig(
        architecture=hf.model_type,
        hidden_size=hf.hidden_size,
        intermediate_size=hf.intermediate_size,
        num_layers=hf.num_hidden_layers,
        num_heads=hf.num_attention_heads,
        num_kv_heads=hf.num_key_value_heads,
        head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        vocab_size=hf.vocab_size,
        max_position_embeddings=hf.max_position_embeddings,
        rms_norm_eps=hf.rms_norm_eps,
        rope_theta=theta,
        rope_scaling=None if kind == "default" else RopeScaling(kind=kind, **rope),
        tie_word_embeddings=hf.tie_word_embeddings,
        qk_norm=hf.model_type == "qwen3",
        qkv_bias=hf.model_type == "qwen2" or (is_llama and hf.attention_bias),
        o_bias=is_llama and hf.attention_bias,
        mlp_bias=is_llama and hf.mlp_bias,
    )
