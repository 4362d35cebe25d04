"""Whether a model's head is its embedding, where the configuration says so and the files hold both.

As transformers has it: equal tensors are one; where they differ, the files win over the flag, and a warning says so.
Merged adapters and resized vocabularies leave such files behind.
"""

import logging

import msgspec
import torch

from pagewire.wire.model import DecoderConfig
from pagewire.worker.weights.source import EMBEDDING, HEAD, Part, TensorSource

_log = logging.getLogger(__name__)

_CHUNK_VALUES = 1 << 22
"""Values compared at a time, which bounds the memory."""


def settle_tying(source: TensorSource, config: DecoderConfig, dtype: torch.dtype) -> DecoderConfig:
    """The configuration, untied where the source's head, read in `dtype`, is another than its embedding. The source's
    tensors have been checked."""
    if not config.tie_word_embeddings or HEAD not in source.shapes or _equal(source, dtype):
        return config
    _log.warning(
        "tie_word_embeddings is true, but %s is not the embedding: it is used as it is, as transformers does. Say "
        "tie_word_embeddings = false in config.json to have this warning no more",
        source.describe(HEAD),
    )
    return msgspec.structs.replace(config, tie_word_embeddings=False)


def _equal(source: TensorSource, dtype: torch.dtype) -> bool:
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
