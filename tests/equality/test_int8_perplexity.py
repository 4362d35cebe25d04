"""int8 leaves a model as good as it was: the perplexity of a text, against the same model in bf16."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from support.batches import PagedDriver
from support.decoders import KINDS, decoder_for
from support.smollm2 import cache_dir
from tokenizers import Tokenizer

from pagewire.scheduler_svc.models.resolve import resolve_model
from pagewire.scheduler_svc.progress import QuietProgress
from pagewire.wire.launch import CpuKernelKind
from pagewire.wire.model import ModelSpec
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.linears.int8 import Int8Unavailable
from pagewire.worker.model.decoder import Decoder

pytestmark = [pytest.mark.slow, pytest.mark.model]

TEXT = Path(__file__).parent / "data" / "perplexity.txt"
CHUNK = 512
BLOCK_SIZE = 32
MOST = 1.02
"""int8's perplexity, relative to bf16's. Measured: 1.001, give or take 0.002."""


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return resolve_model(
        "smollm2-135m",
        served_name=None,
        weights_needed=True,
        cache_dir=cache_dir(),
        environ=os.environ,
        progress=QuietProgress(),
    )


@pytest.fixture(scope="module")
def tokens(spec: ModelSpec) -> list[int]:
    assert spec.tokenizer_file is not None
    ids: list[int] = Tokenizer.from_file(spec.tokenizer_file).encode(TEXT.read_text()).ids
    assert len(ids) > 1500
    return ids


def perplexity(decoder: Decoder, tokens: list[int]) -> float:
    """Of every token but the first, each given all before it."""
    kv = KVCache(decoder.config, -(-len(tokens) // BLOCK_SIZE), BLOCK_SIZE, torch.bfloat16)
    driver = PagedDriver(decoder, kv)
    total = 0.0
    for start in range(0, len(tokens), CHUNK):
        rows = tokens[start : start + CHUNK]
        batch = dataclasses.replace(driver.batch({0: rows}), sample_rows_S=torch.arange(len(rows)))
        following = torch.tensor(tokens[start + 1 : start + 1 + len(rows)])
        logits = decoder.forward(batch, kv)[: len(following)].float()
        total += torch.nn.functional.cross_entropy(logits, following, reduction="sum").item()
    return float(torch.tensor(total / (len(tokens) - 1)).exp())


@pytest.fixture(scope="module")
def bf16(spec: ModelSpec, tokens: list[int]) -> tuple[float, int]:
    """The perplexity without quantization, and the bytes of its weights."""
    decoder = decoder_for(spec, "bfloat16", "auto")
    return perplexity(decoder, tokens), decoder.weights_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_the_perplexity_of_int8_is_that_of_bf16(
    spec: ModelSpec, tokens: list[int], bf16: tuple[float, int], kind: CpuKernelKind
) -> None:
    try:
        int8 = decoder_for(spec, "bfloat16", kind, "int8")
    except Int8Unavailable as error:
        pytest.skip(str(error))
    assert int8.linear_backend.endswith("-int8")
    expected, weights_bytes = bf16
    assert int8.weights_bytes < weights_bytes
    assert 15 < expected < 18, "the text or the model is not the one that was measured"
    assert perplexity(int8, tokens) < MOST * expected
