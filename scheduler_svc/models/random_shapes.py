"""Published shapes that can be served with random weights, for benchmarks where no weights are at hand.

The shapes are those of the config.json files under huggingface.co/Qwen/Qwen3-*; `tiny` is our own, for trying things.
Such a model has no tokenizer: prompts are token ids.
"""

from pagewire.wire.model import DecoderConfig, ModelSpec


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, tied: bool) -> DecoderConfig:
    return DecoderConfig(
        architecture="qwen3",
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        vocab_size=151936,
        max_position_embeddings=40960,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=tied,
        qk_norm=True,
        qkv_bias=False,
    )


RANDOM_SHAPES: dict[str, DecoderConfig] = {
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, 8, tied=True),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, 8, tied=True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, 8, tied=True),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, 8, tied=False),
    "qwen3-14b": _qwen3(5120, 17408, 40, 40, 8, tied=False),
    "qwen3-32b": _qwen3(5120, 25600, 64, 64, 8, tied=False),
    "tiny": DecoderConfig(
        architecture="qwen3",
        hidden_size=128,
        intermediate_size=256,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        vocab_size=1024,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=True,
        qk_norm=True,
        qkv_bias=False,
    ),
}

_QWEN3_EOS = (151645, 151643)
"""<|im_end|> and <|endoftext|>."""


def random_spec(shape: str, seed: int) -> ModelSpec:
    """Describe a shape of `RANDOM_SHAPES` with random weights."""
    decoder = RANDOM_SHAPES[shape]
    eos = tuple(token for token in _QWEN3_EOS if token < decoder.vocab_size) or (decoder.vocab_size - 1,)
    return ModelSpec(
        name=f"random:{shape}",
        decoder=decoder,
        weights_format="random",
        weights_files=(),
        weights_digest=f"random:{seed}",
        random_seed=seed,
        eos_token_ids=eos,
        tokenizer_file=None,
    )
