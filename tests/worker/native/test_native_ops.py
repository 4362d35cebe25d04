"""Operations between the linears: the library's against torch's, at every instruction set of this machine."""

from dataclasses import replace

import msgspec
import pytest
import torch
from support.step_ops import CONFIG, batch_of, run_step

from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.cpu.native_ops import NativeOps
from pagewire.worker.model.ops import TorchOps
from pagewire.worker.model.rope import rotary_embedding
from pagewire.worker.native.library import NativeLibrary

# In bf16 the library rounds once, torch after every operator.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("rows", "num_shared"), [([1], 0), ([1, 1, 1, 7], 0), ([1, 5], 2), ([3], 0)])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128])
@pytest.mark.parametrize("qk_norm", [True, False], ids=["qk-norm", "plain"])
def test_a_step_agrees_with_torch(
    library: NativeLibrary, head_dim: int, qk_norm: bool, rows: list[int], num_shared: int, dtype: torch.dtype
) -> None:
    config = msgspec.structs.replace(CONFIG, head_dim=head_dim, qk_norm=qk_norm)
    expected = run_step(TorchOps(config), config, dtype, rows, num_shared)
    computed = run_step(NativeOps(library, config, dtype), config, dtype, rows, num_shared)
    for theirs, ours in zip(expected, computed, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_work_that_is_spread_over_threads(library: NativeLibrary, dtype: torch.dtype) -> None:
    config = msgspec.structs.replace(CONFIG, hidden_size=1000, intermediate_size=1500)
    expected = run_step(TorchOps(config), config, dtype, [120], 0)
    computed = run_step(NativeOps(library, config, dtype), config, dtype, [120], 0)
    for theirs, ours in zip(expected, computed, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_positions_past_those_of_the_step_before(library: NativeLibrary) -> None:
    kv, rope = KVCache(CONFIG, 4, 4, torch.float32), rotary_embedding(CONFIG)
    ours, theirs = NativeOps(library, CONFIG, torch.float32), TorchOps(CONFIG)
    for position in (3, 1023, 1024, 3000, 3):
        batch = replace(batch_of(kv, [1], 0), positions_T=torch.tensor([position]), seq_rows=((0, 1, position + 1),))
        qkv = torch.randn(1, (CONFIG.num_heads + 2 * CONFIG.num_kv_heads) * CONFIG.head_dim)
        turned = [ops.begin(batch, kv, rope).rotate_and_store(0, qkv.clone(), None) for ops in (ours, theirs)]
        torch.testing.assert_close(*turned, rtol=1e-5, atol=1e-5)


def test_silu_of_extreme_values(library: NativeLibrary) -> None:
    gate = torch.tensor([[-1e30, -100.0, -88.0, -0.0, 88.0, 1e30, float("inf"), float("nan")] * 6 + [2.0] * 4])
    up = torch.ones_like(gate)
    kv = KVCache(CONFIG, 4, 4, torch.float32)
    step = NativeOps(library, CONFIG, torch.float32).begin(batch_of(kv, [1], 0), kv, rotary_embedding(CONFIG))
    expected = torch.nn.functional.silu(gate)
    torch.testing.assert_close(step.silu_mul(torch.cat([gate, up], 1)), expected, equal_nan=True, rtol=1e-6, atol=1e-35)
