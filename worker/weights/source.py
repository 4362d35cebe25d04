"""Tensor sources: where a model's tensors come from, and which ones a decoder needs.

Every source speaks the names and shapes of Hugging Face's checkpoints; a format with other names translates them. A
source gives one tensor at a time into memory of the caller's, so that two copies of a whole model never exist.

Whether a head is the embedding is as in transformers: equal tensors are one; where they differ, the files win over the
configuration's flag, and a warning says so. Merged adapters and resized vocabularies leave such files behind.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec
import torch

from pagewire.wire.model import DecoderConfig

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies that a GGUF file may carry: [D/2]. No checkpoint of the other kind has them."""

SHOWN = 5
"""Names that an error lists before it counts the rest."""

_CHUNK_VALUES = 1 << 22
"""Values compared at a time, which bounds the memory."""

_log = logging.getLogger(__name__)


class WeightsError(ValueError):
    """The model's files do not hold the model that its configuration describes; the message names tensor and file."""


@dataclass(frozen=True, slots=True)
class Part:
    """A range of a tensor's rows or, of a matrix, of its columns."""

    axis: int
    """0 for rows, 1 for columns."""
    start: int
    stop: int

    @property
    def index(self) -> tuple[slice, ...]:
        """What subscripts a tensor with this part."""
        return (*(slice(None),) * self.axis, slice(self.start, self.stop))


class TensorSource(Protocol):
    """A model's tensors."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor it has."""

    @property
    def description(self) -> str:
        """The files, for an error about all of them."""

    def describe(self, name: str) -> str:
        """The tensor as it is named in its file, and the file, for an error about one."""

    def copy_to(self, name: str, out: torch.Tensor, part: Part | None = None) -> None:
        """Fills `out`, which has the shape of the tensor or of the part asked for, converting to its dtype. Reads no
        more than that. Raises WeightsError."""


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


def check_tensors(source: TensorSource, config: DecoderConfig) -> None:
    """Compares what a source has with what the configuration needs, before anything large is read. A tensor that is
    left over is an error too: it is work that the model would leave out. Raises WeightsError."""
    found = source.shapes
    if config.num_layers > len(found):  # a layer is several tensors
        raise WeightsError(
            f"{source.description} has {len(found)} tensors, too few for the configuration's {config.num_layers} layers"
        )
    expected = decoder_tensors(config)
    missing = [name for name in expected if name not in found]
    if missing:
        noun = "tensor" if len(missing) == 1 else "tensors"
        raise WeightsError(f"{source.description} lacks {noun} {_listed(missing)}: the configuration needs them")
    unexpected = [source.describe(name) for name in found if name not in expected and not _is_optional(name)]
    if unexpected:
        raise WeightsError(f"unexpected {_listed(unexpected)}: the configuration has no use for them")
    wanted = dict(expected)
    if ROPE_FACTORS in found:
        wanted[ROPE_FACTORS] = (config.head_dim // 2,)
    if HEAD in found:
        wanted[HEAD] = expected[EMBEDDING]
    for name, shape in wanted.items():
        if found[name] != shape:
            raise WeightsError(
                f"{source.describe(name)} has shape {list(found[name])}; the configuration says {list(shape)}"
            )


def _is_optional(name: str) -> bool:
    """Tensors that may be there without being needed: saved inverse frequencies, which are computed here, and the copy
    of the embedding that some tied checkpoints carry as a head."""
    return name.endswith(".rotary_emb.inv_freq") or name in (ROPE_FACTORS, HEAD)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def settle_tying(source: TensorSource, config: DecoderConfig, dtype: torch.dtype) -> DecoderConfig:
    """The configuration, untied where the source's head, read in `dtype`, is another than its embedding. The source's
    tensors have been checked."""
    if not config.tie_word_embeddings or HEAD not in source.shapes or _is_tied(source, dtype):
        return config
    _log.warning(
        "tie_word_embeddings is true, but %s is not the embedding: it is used as it is, as transformers does. Say "
        "tie_word_embeddings = false in config.json to have this warning no more",
        source.describe(HEAD),
    )
    return msgspec.structs.replace(config, tie_word_embeddings=False)


def _is_tied(source: TensorSource, dtype: torch.dtype) -> bool:
    num_rows, width = source.shapes[EMBEDDING]
    chunk_rows = max(1, _CHUNK_VALUES // width)
    for start in range(0, num_rows, chunk_rows):
        part = Part(0, start, min(start + chunk_rows, num_rows))
        rows = [torch.empty(part.stop - part.start, width, dtype=dtype) for _ in range(2)]
        for name, out in zip((EMBEDDING, HEAD), rows, strict=True):
            source.copy_to(name, out, part)
        if not torch.equal(*rows):
            return False
    return True
