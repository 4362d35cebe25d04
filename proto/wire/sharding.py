"""How a decoder divides over the ranks of tensor parallelism: the shape that one rank computes.

The supervisor refuses a model that does not divide before anything starts; a worker builds its part by the same rule.
"""

import math

import msgspec

from pagewire.wire.model import DecoderConfig


def local_decoder(config: DecoderConfig, num_ranks: int) -> DecoderConfig:
    """The decoder as one rank of `num_ranks` computes it: its share of the heads, the KV heads and the MLP's inner
    size. Everything else is as in the whole model, the vocabulary too, because every rank gets all logits.

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
