"""Tensors of a checkpoint: which ones a decoder needs, and whether a model's files have them.

Names and shapes are those of Hugging Face's checkpoints. The supervisor compares them before it starts a process, so
that files which cannot be served are refused by a process without torch; a worker does it again when it reads them.
Nothing here opens a file.
"""

from collections.abc import Mapping
from typing import Protocol

from pagewire.wire.model import DecoderConfig

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies that a GGUF file may carry: [D/2]. No checkpoint of the other kind has them."""

SHOWN = 5
"""Names that an error lists before it counts the rest."""


class WeightsError(ValueError):
    """The model's files do not hold the model that its configuration describes; the message names tensor and file."""


class TensorDirectory(Protocol):
    """What stands in the headers of a model's files."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor."""

    @property
    def description(self) -> str:
        """The files, for an error about all of them."""

    def describe(self, name: str) -> str:
        """The tensor as it is named in its file, and the file, for an error about one."""


def layer_tensors(config: DecoderConfig, index: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one layer."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    prefix = f"model.layers.{index}."
    tensors: dict[str, tuple[int, ...]] = {
        prefix + "input_layernorm.weight": (hidden,),
        prefix + "self_attn.q_proj.weight": (q_size, hidden),
        prefix + "self_attn.k_proj.weight": (kv_size, hidden),
        prefix + "self_attn.v_proj.weight": (kv_size, hidden),
        prefix + "self_attn.o_proj.weight": (hidden, q_size),
        prefix + "post_attention_layernorm.weight": (hidden,),
        prefix + "mlp.gate_proj.weight": (inner, hidden),
        prefix + "mlp.up_proj.weight": (inner, hidden),
        prefix + "mlp.down_proj.weight": (hidden, inner),
    }
    biased = []
    if config.qkv_bias:
        biased += ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    if config.o_bias:
        biased += ["self_attn.o_proj"]
    if config.mlp_bias:
        biased += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    for linear in biased:
        tensors[f"{prefix}{linear}.bias"] = tensors[f"{prefix}{linear}.weight"][:1]
    if config.qk_norm:
        tensors[prefix + "self_attn.q_norm.weight"] = (config.head_dim,)
        tensors[prefix + "self_attn.k_norm.weight"] = (config.head_dim,)
    return tensors


def decoder_tensors(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of everything a decoder of this configuration needs."""
    tensors: dict[str, tuple[int, ...]] = {
        EMBEDDING: (config.vocab_size, config.hidden_size),
        "model.norm.weight": (config.hidden_size,),
    }
    for index in range(config.num_layers):
        tensors |= layer_tensors(config, index)
    if not config.tie_word_embeddings:
        tensors[HEAD] = (config.vocab_size, config.hidden_size)
    return tensors


def check_tensors(found: TensorDirectory, config: DecoderConfig) -> None:
    """Compares what files have with what the configuration needs, before anything large is read. A tensor that is left
    over is an error too: it is work that the model would leave out. Raises WeightsError."""
    shapes = found.shapes
    if config.num_layers > len(shapes):  # a layer is several tensors
        raise WeightsError(
            f"{found.description} has {len(shapes)} tensors, too few for the configuration's {config.num_layers} layers"
        )
    expected = decoder_tensors(config)
    missing = [name for name in expected if name not in shapes]
    if missing:
        noun = "tensor" if len(missing) == 1 else "tensors"
        raise WeightsError(f"{found.description} lacks {noun} {_listed(missing)}: the configuration needs them")
    unexpected = [found.describe(name) for name in shapes if name not in expected and not _is_optional(name)]
    if unexpected:
        raise WeightsError(f"unexpected {_listed(unexpected)}: the configuration has no use for them")
    wanted = dict(expected)
    if ROPE_FACTORS in shapes:
        wanted[ROPE_FACTORS] = (config.head_dim // 2,)
    if HEAD in shapes:
        wanted[HEAD] = expected[EMBEDDING]
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise WeightsError(
                f"{found.describe(name)} has shape {list(shapes[name])}; the configuration says {list(shape)}"
            )


def _is_optional(name: str) -> bool:
    """Tensors that may be there without being needed: saved inverse frequencies, which are computed here, and the copy
    of the embedding that some tied checkpoints carry as a head."""
    return name.endswith(".rotary_emb.inv_freq") or name in (ROPE_FACTORS, HEAD)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
