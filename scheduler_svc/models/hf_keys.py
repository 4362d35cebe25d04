"""Keys of config.json that are not read: harmless, harmless at certain values, or unknown.

A key that would change the forward pass is refused by name, also where transformers' class of the family leaves it out:
whoever wrote it meant something by it, and a model that says nothing but computes another thing is worse than one that
does not start. Keys that nobody knows are named in a warning.
"""

import logging
from collections.abc import Collection, Mapping
from typing import Any

from pagewire.scheduler_svc.models.hf_generation import GENERATION_KEYS
from pagewire.scheduler_svc.startup_errors import ModelError, shown
from pagewire.wire.model import Architecture

_log = logging.getLogger(__name__)

_HARMLESS = frozenset(
    {
        # Where the file is from.
        "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "model_type", "architectures",
        "tokenizer_class", "unsloth_version", "unsloth_fixed", "model_name", "_attn_implementation_autoset",
        # Types in memory are the `dtype` setting's.
        "dtype", "torch_dtype", "use_bfloat16",
        # Training.
        "initializer_range", "initializer_factor", "attention_dropout", "attn_dropout", "hidden_dropout",
        "hidden_dropout_prob", "attention_probs_dropout_prob", "resid_pdrop", "embd_pdrop", "classifier_dropout",
        "dropout", "gradient_checkpointing", "output_router_logits", "router_aux_loss_coef", "tf_legacy_loss",
        # How the same numbers are computed.
        "use_cache", "pretraining_tp", "chunk_size_feed_forward", "attn_implementation", "_attn_implementation",
        "_flash_attn_2_enabled", "use_flash_attn", "use_flash_attention", "torchscript", "fused_mlp",
        "return_dict", "output_attentions", "output_hidden_states", "tie_last_hidden_states", "is_decoder",
        "tie_encoder_decoder", "transformers.js_config", "base_model_tp_plan", "base_model_pp_plan",
        # Heads for other tasks.
        "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params",
        # Tokens: the tokenizer's files name them.
        "pad_token_id", "bos_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id", "prefix",
    }
)  # fmt: skip

_OFF = (False, 0)
_NEUTRAL: dict[str, tuple[object, ...]] = {
    # Other kinds of model.
    "is_encoder_decoder": _OFF,
    "add_cross_attention": _OFF,
    "cross_attention_hidden_size": (),
    "pruned_heads": ({},),
    "per_layer_config": ({},),
    "text_config": (),
    "vision_config": (),
    "audio_config": (),
    "compression_config": (),
    "quantization": (),
    # Mixtures of experts and what goes with them.
    "num_experts": _OFF,
    "num_local_experts": _OFF,
    "n_routed_experts": _OFF,
    "n_shared_experts": _OFF,
    "moe_intermediate_size": _OFF,
    "num_nextn_predict_layers": _OFF,
    "num_kv_shared_layers": _OFF,
    "q_lora_rank": _OFF,
    "kv_lora_rank": _OFF,
    # Factors and caps.
    "attn_logit_softcapping": _OFF,
    "final_logit_softcapping": _OFF,
    "logits_soft_cap": _OFF,
    "logit_softcapping": _OFF,
    "logit_scale": (1,),
    "logits_scale": (1,),
    "logits_scaling": (1,),
    "lm_head_multiplier": (1,),
    "embedding_multiplier": (1,),
    "embedding_scale": (1,),
    "scale_embeddings": _OFF,
    "scale_embedding": _OFF,
    "normalize_embedding": _OFF,
    "residual_multiplier": (1,),
    "residual_scale": (1,),
    "attention_multiplier": (),
    "attention_scale": (),
    "query_pre_attn_scalar": (),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": _OFF,
    "scale_emb": (1,),
    "scale_depth": (),
    "dim_model_base": (),
    "clip_qkv": (),
    "qkv_clip": (),
    # Positions.
    "position_embedding_type": ("rope", "rotary"),
    "alibi": _OFF,
    "use_alibi": _OFF,
    "use_rope": (True,),
    "use_rotary": (True,),
    "rotary_dim": (),
    "rotary_pct": (1,),
    "rotary_percent": (1,),
    "rope_pct": (1,),
    "rope_ratio": (1,),
    "rotary_emb_fraction": (1,),
    "rotary_base": (),
    "rotary_emb_base": (),
    "rope_base": (),
    "rope_local_base_freq": (),
    "rope_interleave": _OFF,
    "rope_interleaved": _OFF,
    "rotary_emb_interleaved": _OFF,
    "no_rope_layers": ([],),
    "no_rope_layer_interval": _OFF,
    "nope_layer_interval": _OFF,
    # Attention to a part of the context.
    "interleaved_sliding_window": (),
    "sliding_window_size": (),
    "sliding_window_pattern": (),
    "attention_window": (),
    "attention_window_size": (),
    "attention_chunk_size": (),
    "local_attention": _OFF,
    "window_size": (),
    "layer_type": (),
    "attention_sinks": _OFF,
    "use_attention_sinks": _OFF,
    "attn_output_gate": _OFF,
    # Layers built in another way.
    "mlp_layer_types": (),
    "parallel_attn": _OFF,
    "parallel_residual": _OFF,
    "use_parallel_residual": _OFF,
    "hidden_activation": ("silu", "swish"),
    "activation_function": ("silu", "swish"),
    "norm_type": ("rmsnorm", "rms_norm"),
    "rms_norm_add_unit_offset": _OFF,
    "norm_add_unit_offset": _OFF,
    "use_bias": _OFF,
    "no_bias": (True,),
    "bias": _OFF,
    "lm_head_bias": _OFF,
    "attention_out_bias": _OFF,
}
"""Keys that change what is computed unless they have one of these values or null. No class of the families that are
served reads most of them; related families' do."""

_QK_NORM = ("use_qk_norm", "qk_norm", "qk_layernorm", "use_qk_layernorm")
_QKV_BIAS = ("qkv_bias", "use_qkv_bias", "qkv_proj_bias")


def check_keys(raw: Mapping[str, Any], read: Collection[str], architecture: Architecture) -> None:
    """Refuse what changes the numbers, and warn of what is not known. `read` are the keys that the family's reader
    takes. Raises ModelError."""
    neutral = _NEUTRAL
    neutral = neutral | dict.fromkeys(_QK_NORM, (architecture == "qwen3",))
    neutral = neutral | dict.fromkeys(_QKV_BIAS, (architecture == "qwen2",))
    unknown = []
    for key, value in raw.items():
        if key in read or key in _HARMLESS or key in GENERATION_KEYS or value is None:
            continue
        if key not in neutral:
            unknown.append(key)
        elif value not in neutral[key]:
            served = " or ".join(repr(choice) for choice in neutral[key]) or "null"
            raise ModelError(
                f"config.json: {key} = {shown(value)} is not served for model_type {architecture!r}; {served} is"
            )
    if "auto_map" in unknown:
        unknown.remove("auto_map")
        _log.warning("config.json: auto_map names Python code beside the model; the %s of Pagewire runs", architecture)
    if unknown:
        _log.warning("config.json: keys that are not known, and not applied: %s", shown(sorted(unknown)))
