"""Models: what one is, as read from its files once, by the supervisor, and handed to every process that needs it; and
the shape that one rank of tensor parallelism computes."""

import math
from typing import Literal

import msgspec

from pagewire.wire.sampling import SamplingParams

Architecture = Literal["qwen3", "qwen2", "llama", "mistral"]
WeightsFormat = Literal["safetensors", "gguf", "random"]
DType = Literal["bfloat16", "float32"]


class RopeScaling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change to rotary embedding's frequencies; fields as in Hugging Face's `rope_parameters`."""

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None


class DecoderConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of a dense decoder. One definition covers the families; they differ in flags."""

    architecture: Architecture
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    """Explicit: Qwen3's is not hidden_size / num_heads."""
    vocab_size: int
    """Rows of the embedding: the number of logits."""
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool
    qk_norm: bool
    """RMSNorm over each head of q and k before rotary embedding (Qwen3)."""
    qkv_bias: bool
    """Biases on q, k and v (Qwen2)."""
    o_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    """Set where attention is limited to a window; the server then limits max_model_len to it."""


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about a model but its tensors."""

    name: str
    """What clients call it."""
    decoder: DecoderConfig
    weights_format: WeightsFormat
    weights_files: tuple[str, ...]
    """Absolute paths of the safetensors shards or of the GGUF file and its further parts; empty for random weights."""
    weights_digest: str
    """As pagewire.v1.Model.weights_digest."""
    random_seed: int = 0
    """Seed of random weights."""
    eos_token_ids: tuple[int, ...]
    tokenizer_file: str | None
    """Absolute path of a `tokenizer.json`; none for a model that takes token ids alone."""
    tokenizer_digest: str = ""
    """As pagewire.v1.Model.tokenizer_digest."""
    split_special_tokens: bool = False
    """Special tokens written in a text are not recognized but cut like other text."""
    chat_template: str | None = None
    """Jinja source."""
    tool_use_template: str | None = None
    """The same for conversations with tools, where the model has a template of their own."""
    template_origin: str = ""
    """The files and the key that both are of, for an error about them."""
    special_tokens: dict[str, str] = {}
    """Named special tokens for the template: bos_token, eos_token, …"""
    sampling: SamplingParams = SamplingParams()
    """What a request gets where it sets nothing: what the model's files say, else neutral values."""


def local_decoder(config: DecoderConfig, num_ranks: int) -> DecoderConfig:
    """The decoder as one rank of `num_ranks` computes it: its share of the heads, the KV heads and the MLP's inner
    size. Everything else is as in the whole model, the vocabulary too, because every rank gets all logits. The
    supervisor refuses a model that does not divide before anything starts; a worker builds its part by the same rule.

    Raises ValueError where a share would not be whole.
    """
    parts = {
        "attention heads": config.num_heads,
        "KV heads": config.num_kv_heads,
        "MLP rows (intermediate_size)": config.intermediate_size,
    }
    for name, number in parts.items():
        if number % num_ranks:
            possible = [size for size in range(1, number + 1) if math.gcd(*parts.values()) % size == 0]
            raise ValueError(
                f"tensor_parallel_size is {num_ranks}, which does not divide the model's {number} {name}; "
                f"this model can run on {', '.join(map(str, possible))} rank{'s' if len(possible) > 1 else ''}"
            )
    return msgspec.structs.replace(
        config,
        num_heads=config.num_heads // num_ranks,
        num_kv_heads=config.num_kv_heads // num_ranks,
        intermediate_size=config.intermediate_size // num_ranks,
    )
