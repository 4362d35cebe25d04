"""Everything that a step computes between the linears, from the same numbers for each kind of operations."""

import torch
from support.batches import PagedDriver

from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.model.layers import RmsNorm
from pagewire.worker.model.ops import DecoderOps
from pagewire.worker.model.rope import rotary_embedding

CONFIG = DecoderConfig(
    architecture="qwen3",
    hidden_size=40,
    intermediate_size=52,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=90,
    max_position_embeddings=4096,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    tie_word_embeddings=True,
    qk_norm=True,
    qkv_bias=False,
)


def batch_of(kv: KVCache, rows: list[int], num_shared: int) -> Batch:
    """A step of sequences with these numbers of rows; the last one's first positions belong to another."""
    driver = PagedDriver(decoder=None, kv=kv)
    names = range(len(rows))
    work = {
        name: torch.randint(0, CONFIG.vocab_size, (count,)).tolist() for name, count in zip(names, rows, strict=True)
    }
    if num_shared:
        driver.batch({100: [1] * 2 * kv.block_size})
        driver.share(100, len(rows) - 1, kv.block_size)
        driver.sequences[len(rows) - 1].num_shared = kv.block_size + num_shared
    return driver.batch(work, sample=[name for name in names if name % 2 == 0])


def run_step(
    ops: DecoderOps, config: DecoderConfig, dtype: torch.dtype, rows: list[int], num_shared: int
) -> list[torch.Tensor]:
    """Everything a step computes, from the same numbers each time."""
    torch.manual_seed(0)
    kv = KVCache(config, 64, 4, dtype)
    batch = batch_of(kv, rows, num_shared)
    num_rows = sum(rows)
    c = config

    def norm(*shape: int) -> RmsNorm:
        return RmsNorm(torch.randn(shape), 1e-6)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(dtype)

    step = ops.begin(batch, kv, rotary_embedding(config))
    results = [step.embed(values(num_rows, c.hidden_size), norm(c.hidden_size)).clone()]
    qk_norm = norm(c.num_heads + c.num_kv_heads, c.head_dim) if c.qk_norm else None
    for layer in range(c.num_layers):
        qkv = values(num_rows, (c.num_heads + 2 * c.num_kv_heads) * c.head_dim)
        results.append(step.rotate_and_store(layer, qkv, qk_norm).clone())
    results.append(step.add_norm(values(num_rows, c.hidden_size), norm(c.hidden_size)).clone())
    results.append(step.silu_mul(4 * values(num_rows, 2 * c.intermediate_size)).clone())
    kept = step.keep_sampled(values(num_rows, c.hidden_size)).clone()
    num_samples = len(batch.sample_rows_S)
    results.append(kept)
    results.append(step.add_norm(kept, norm(c.hidden_size)).clone())
    results.append(step.silu_mul(4 * values(num_samples, 2 * c.intermediate_size)).clone())
    results.append(step.add_norm(values(num_samples, c.hidden_size), norm(c.hidden_size)).clone())
    return [*results, *kv.layers]
