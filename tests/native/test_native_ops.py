"""Operations between the linears: the library's against torch's, at every instruction set of this machine."""

import msgspec
import pytest
import torch
from support.batches import PagedDriver

from pagewire.wire.model import DecoderConfig
from pagewire.worker.batch import Batch
from pagewire.worker.kv_cache import KVCache
from pagewire.worker.model.native_ops import NativeOps
from pagewire.worker.model.norm import RmsNorm
from pagewire.worker.model.ops import DecoderOps, TorchOps
from pagewire.worker.model.rope import rotary_embedding
from pagewire.worker.native.library import NativeLibrary

# In bf16 the library rounds once, torch after every operator.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 3e-2}
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


def run(
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
    results.append(step.add_norm_sampled(values(num_rows, c.hidden_size), norm(c.hidden_size)).clone())
    return [*results, *kv.layers]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("rows", "num_shared"), [([1], 0), ([1, 1, 1, 7], 0), ([1, 5], 2), ([3], 0)])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128])
@pytest.mark.parametrize("qk_norm", [True, False], ids=["qk-norm", "plain"])
def test_a_step_agrees_with_torch(
    library: NativeLibrary, head_dim: int, qk_norm: bool, rows: list[int], num_shared: int, dtype: torch.dtype
) -> None:
    config = msgspec.structs.replace(CONFIG, head_dim=head_dim, qk_norm=qk_norm)
    expected = run(TorchOps(config), config, dtype, rows, num_shared)
    computed = run(NativeOps(library, config, dtype), config, dtype, rows, num_shared)
    for theirs, ours in zip(expected, computed, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_work_that_is_spread_over_threads(library: NativeLibrary, dtype: torch.dtype) -> None:
    config = msgspec.structs.replace(CONFIG, hidden_size=1000, intermediate_size=1500)
    expected = run(TorchOps(config), config, dtype, [120], 0)
    computed = run(NativeOps(library, config, dtype), config, dtype, [120], 0)
    for theirs, ours in zip(expected, computed, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_silu_of_extreme_values(library: NativeLibrary) -> None:
    gate = torch.tensor([[-1e30, -100.0, -88.0, -0.0, 88.0, 1e30, float("inf"), float("nan")] * 6 + [2.0] * 4])
    up = torch.ones_like(gate)
    kv = KVCache(CONFIG, 4, 4, torch.float32)
    step = NativeOps(library, CONFIG, torch.float32).begin(batch_of(kv, [1], 0), kv, rotary_embedding(CONFIG))
    expected = torch.nn.functional.silu(gate)
    torch.testing.assert_close(step.silu_mul(torch.cat([gate, up], 1)), expected, equal_nan=True, rtol=1e-6, atol=1e-35)
