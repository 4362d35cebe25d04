"""Keys of a GGUF file's metadata that are not read: harmless, harmless at certain values, or unknown.

What would change the forward pass and is not built is refused with key and value. Keys that nobody knows are named in a
warning.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pagewire.scheduler_svc.startup_errors import ModelError, shown

Warn = Callable[[str], None]
"""Takes what a reader found and leaves out."""

_READ = frozenset(
    {
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "vocab_size",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "attention.sliding_window",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scale_linear",  # the older spelling of the two above
        "rope.scaling.original_context_length",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    }
)
_HARMLESS = frozenset(
    {
        "rope.scaling.finetuned",  # whether the model was trained with the scaling
        "decoder_start_token_id",
        "attention.layer_norm_epsilon",  # of the other kind of norm
    }
)

OFF = (0, False)
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "tensor_data_layout": ("Meta AI original pth", "reference"),
    "use_parallel_residual": OFF,
    "attention.max_alibi_bias": OFF,
    "attention.clamp_kqv": OFF,
    "attention.causal": (True,),
    "attention.scale": OFF,
    "attention.output_scale": (0, 1),
    "attention.temperature_scale": (0, 1),
    "attention.temperature_length": OFF,
    "attention.sliding_window_pattern": (),
    "attention.shared_kv_layers": OFF,
    "attention.q_lora_rank": OFF,
    "attention.kv_lora_rank": OFF,
    "attention.key_length_mla": OFF,
    "attention.value_length_mla": OFF,
    "attention.key_length_swa": (),
    "attention.value_length_swa": (),
    "attention.relative_buckets_count": OFF,
    "attn_logit_softcapping": OFF,
    "final_logit_softcapping": OFF,
    "router_logit_softcapping": OFF,
    "logit_scale": (0, 1),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_length_out": OFF,
    "embedding_length_per_layer_input": OFF,
    "features_length": OFF,
    "pooling_type": OFF,
    "swin_norm": OFF,
    "rescale_every_n_layers": OFF,
    "full_attention_interval": (0, 1),
    "activation_sparsity_scale": (),
    "n_deepstack_layers": OFF,
    "nextn_predict_layers": OFF,
    "decoder_block_count": OFF,
    "expert_count": OFF,
    "expert_used_count": OFF,
    "expert_shared_count": OFF,
    "expert_group_count": OFF,
    "expert_feed_forward_length": OFF,
    "expert_shared_feed_forward_length": OFF,
    "expert_weights_scale": (0, 1),
    "leading_dense_block_count": OFF,
    "interleave_moe_layer_step": OFF,
    "moe_every_n_layers": OFF,
    "swiglu_clamp_exp": (),
    "swiglu_clamp_shexp": (),
    "rope.dimension_count_swa": (),
    "rope.dimension_sections": (),
    "rope.freq_base_swa": (),
    "rope.scaling.alpha": OFF,
    "rope.scaling.attn_factor": (0, 1),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_ext_factor": (1, -1),  # -1 leaves it to the type
    "rope.scaling.yarn_log_multiplier": OFF,
}
"""Keys after the architecture's name that change what is computed unless they have one of these values."""

_GENERAL = {"general.type": ("model",), "general.quantization_version": (2,)}


def check_keys(values: Mapping[str, Any], architecture: str, origin: str, warn: Warn) -> None:
    """Every key but the tokenizer's and those of sampling. Raises ModelError naming key and value."""
    prefix = architecture + "."
    unknown = []
    for full_key, value in values.items():
        if full_key in _GENERAL and value not in _GENERAL[full_key]:
            raise ModelError(f"{origin}: {full_key} = {shown(value)} is not served; {_GENERAL[full_key][0]!r} is")
        if full_key.startswith(("adapter.", "clip.")):
            raise ModelError(f"{origin}: {full_key} = {shown(value)} is not served: it is no language model")
        if not full_key.startswith(prefix):
            if not full_key.startswith(("general.", "tokenizer.", "split.", "quantize.", "imatrix.")):
                unknown.append(full_key)
            continue
        key = full_key.removeprefix(prefix)
        if key in _READ or key in _HARMLESS:
            continue
        if key not in _NEUTRAL:
            unknown.append(full_key)
        elif value not in _NEUTRAL[key]:
            raise ModelError(f"{origin}: {full_key} = {shown(value)} is not served")
    if unknown:
        warn(f"{origin}: keys that are not known, and not applied: {shown(sorted(unknown))}")
