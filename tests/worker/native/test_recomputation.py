"""A sequence that is computed again comes to the same bits: keys, values and logits, with the native kernels.

What was decoded one by one beside other sequences is computed again as a prompt, whole and in chunks, alone and beside
others, on one thread and on two.
"""

import random

import msgspec
import pytest
import torch
from support.decoders import ServedModel, served_model_for
from support.torch_threads import torch_threads
from support.worker_plans import GREEDY, PlanMaker, admit

from pagewire.wire.launch import Quantization
from pagewire.wire.model import DecoderConfig, DType, ModelSpec
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.cpu.runner import CpuRunner
from pagewire.worker.slots.columns import SlotLimits
from pagewire.worker.weights.build import TORCH_DTYPES

MAX_LEN = 700
BLOCK_SIZE = 32
BLOCKS = -(-MAX_LEN // BLOCK_SIZE)
NUM_SEQS = 3
LIMITS = SlotLimits(
    max_num_seqs=NUM_SEQS,
    max_model_len=MAX_LEN,
    max_num_batched_tokens=MAX_LEN * NUM_SEQS,
    block_size=BLOCK_SIZE,
    num_blocks=BLOCKS * NUM_SEQS,
    vocab_size=211,
)
CONFIG = DecoderConfig(
    architecture="qwen3",
    hidden_size=96,
    intermediate_size=160,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    vocab_size=LIMITS.vocab_size,
    max_position_embeddings=MAX_LEN,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    tie_word_embeddings=True,
    qk_norm=True,
    qkv_bias=False,
)
SHAPES = {
    "group 2": CONFIG,
    "group 1, no norm, bias": msgspec.structs.replace(CONFIG, num_kv_heads=4, qk_norm=False, qkv_bias=True),
    "group 8, head 128": msgspec.structs.replace(CONFIG, num_heads=8, num_kv_heads=1, head_dim=128),
    "group 3, head 16": msgspec.structs.replace(CONFIG, num_heads=3, num_kv_heads=1, head_dim=16),
}
"""A context of more than 256 tokens is decoded in parts (paged_native)."""
NUMBERS: dict[str, tuple[DType, Quantization]] = {
    "float32": ("float32", "none"),
    "bfloat16": ("bfloat16", "none"),
    "int8": ("bfloat16", "int8"),
}
SAMPLED = msgspec.structs.replace(GREEDY, temperature=3.0, seed=3)
"""So that a sequence does not repeat itself."""


class Watched:
    """A runner's model that keeps the logits it gave."""

    def __init__(self, served: ServedModel) -> None:
        self._model = served.model
        self.logits_SV = torch.empty(0)

    def forward(self, batch: Batch, kv: KVCache) -> torch.Tensor:
        logits_SV = self._model.forward(batch, kv)
        self.logits_SV = logits_SV.clone()
        return logits_SV


def model(config: DecoderConfig, dtype: DType, quantization: Quantization) -> ServedModel:
    spec = ModelSpec(
        name="tiny",
        decoder=config,
        weights_format="random",
        weights_files=(),
        weights_digest="",
        random_seed=5,
        eos_token_ids=(),
        tokenizer_file=None,
    )
    return served_model_for(spec, dtype, "native", quantization)


def kv_of(kv: KVCache, first_block: int, num_tokens: int) -> list[torch.Tensor]:
    """Of each layer, the blocks that a slot's first tokens fill or begin, [2, blocks, K, block_size, D]."""
    return [
        layer.transpose(1, 2).contiguous()[:, first_block : first_block + -(-num_tokens // BLOCK_SIZE)]
        for layer in kv.layers
    ]


def table(slot: int) -> list[int]:
    return list(range(slot * BLOCKS, (slot + 1) * BLOCKS))


def run_again(
    served: ServedModel, dtype: DType, ids: list[int], draw: random.Random | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """As a prompt in slot 1: whole, or in random chunks beside two other sequences that decode or are prompts too."""
    kv = KVCache(served.decoder.config, LIMITS.num_blocks, BLOCK_SIZE, TORCH_DTYPES[dtype])
    watched = Watched(served)
    runner, maker = CpuRunner(watched, kv, LIMITS, served.kernels.sampler(LIMITS.vocab_size)), PlanMaker()
    runner.begin(1)
    if draw is None:
        runner.run(maker.make(admits=[admit(1, ids, table(1))], chunks=[(1, len(ids))]))
        return watched.logits_SV[-1], kv_of(kv, BLOCKS, len(ids))
    other = [draw.randrange(LIMITS.vocab_size) for _ in range(60)]
    runner.run(maker.make(admits=[admit(0, other, table(0)), admit(1, ids, table(1))], chunks=[(0, 60)]))
    left, num_steps = len(ids), 0
    while left:
        size = min(left, draw.choice((1, 2, 5, 13, 64, 300)))
        chunks, admits = [(1, size)], []
        if num_steps == 1:
            admits, chunks = [admit(2, other[:40], table(2))], [(2, 40), (1, size)]
        runner.run(maker.make(admits=admits, chunks=chunks))
        left, num_steps = left - size, num_steps + 1
    return watched.logits_SV[-1], kv_of(kv, BLOCKS, len(ids))


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_was_decoded_is_computed_again_to_the_bit(shape: str, num_threads: int, numbers: str) -> None:
    dtype, quantization = NUMBERS[numbers]
    draw = random.Random(shape)
    with torch_threads(num_threads):
        served = model(SHAPES[shape], dtype, quantization)
        kv = KVCache(served.decoder.config, LIMITS.num_blocks, BLOCK_SIZE, TORCH_DTYPES[dtype])
        watched = Watched(served)
        runner, maker = CpuRunner(watched, kv, LIMITS, served.kernels.sampler(LIMITS.vocab_size)), PlanMaker()
        runner.begin(1)
        ids = [draw.randrange(LIMITS.vocab_size) for _ in range(5)]
        other = [draw.randrange(LIMITS.vocab_size) for _ in range(17)]
        first = runner.run(
            maker.make(
                admits=[admit(0, other, table(0)), admit(1, ids, table(1), sampling=SAMPLED)], chunks=[(1, 5), (0, 17)]
            )
        )
        ids.append(int(first.tokens[0]))
        for length in range(6, 640):
            tokens = runner.run(maker.make(idle=[0] if length % 3 == 0 else [])).tokens
            logits_V = watched.logits_SV[-1]
            if length in (6, 31, 255, 256, 257, 300, 639):
                expected = kv_of(kv, BLOCKS, length)
                for again in (None, random.Random(length), random.Random(-length)):
                    logits_again_V, kv_again = run_again(served, dtype, ids, again)
                    assert torch.equal(logits_again_V, logits_V), f"logits differ at {length}, {again}"
                    for layer, (one, two) in enumerate(zip(kv_again, expected, strict=True)):
                        assert torch.equal(one, two), f"keys or values of layer {layer} differ at {length}, {again}"
            ids.append(int(tokens[-1]))
