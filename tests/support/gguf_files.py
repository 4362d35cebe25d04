"""Writes GGUF files of tiny models, as llama.cpp's converter would."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from transformers import PreTrainedModel

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    model: PreTrainedModel,
    path: Path,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    *,
    encode: Callable[[np.ndarray], np.ndarray] | None = None,
    extra: dict[str, np.ndarray] | None = None,
    num_tokens: int = 0,
    split_max_tensors: int = 0,
) -> None:
    """Matrices in `kind` (by `encode`, where the gguf package cannot quantize to it), vectors in F32, and metadata that
    transformers can read a configuration from. num_tokens entries of vocabulary stand in the metadata. With
    split_max_tensors, parts of so many tensors, name-00001-of-….gguf and on."""
    config = model.config
    arch = "llama" if config.model_type == "mistral" else config.model_type
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split_max_tensors)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(config.vocab_size)
    if num_tokens:
        writer.add_token_list([f"token {i}" for i in range(num_tokens)])
        writer.add_token_scores([float(i) for i in range(num_tokens)])
        writer.add_array("test.nested", [[1, 2], [3]])
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
            tensor = interleaved(tensor, head_dim)
        values = tensor.contiguous().numpy()
        if values.ndim == 1:
            writer.add_tensor(gguf_name(name), values)
        else:
            encoded = encode(values) if encode else gguf.quantize(values, kind)
            writer.add_tensor(gguf_name(name), encoded, raw_dtype=kind)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of each head reordered from (half, pair) to (pair, half)."""
    rows = tensor.reshape(-1, 2, head_dim // 2, *tensor.shape[1:])
    return rows.transpose(1, 2).reshape(tensor.shape)


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, index, part = stem.split(".", 3)
        return f"blk.{index}.{NAMES[part]}.{kind}"
    return f"{NAMES[stem]}.{kind}"
