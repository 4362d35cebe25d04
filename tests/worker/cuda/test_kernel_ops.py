"""Ops over fixed buffers, with the kernels' definitions in torch, against torch's operators: alone, and in whole
decoders of every family."""

from collections.abc import Callable, Mapping, Sequence

import msgspec
import pytest
import torch
from support.batches import PagedDriver
from support.checkpoints import Checkpoint
from support.step_ops import CONFIG, batch_of, run_step

from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.attention.paged_torch import PagedTorchAttention
from pagewire.worker.cuda.kernel_ops import KernelOps
from pagewire.worker.kernels.sets import reference_kernels
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.model.layers import RmsNorm
from pagewire.worker.model.ops import DecoderOps, TorchOps
from pagewire.worker.model.rope import rotary_embedding
from pagewire.worker.weights.build import load_decoder

PROMPT = [(5 * i * i + 3 * i + 1) % 256 for i in range(40)]
STEPS: list[Mapping[int, Sequence[int]]] = [
    {0: PROMPT[:20], 1: PROMPT[:7]},
    {0: PROMPT[20:21], 1: PROMPT[7:8], 2: PROMPT[:15]},
    {2: PROMPT[15:16]},
]


def ops_for(config: DecoderConfig, dtype: torch.dtype = torch.float32) -> KernelOps:
    return KernelOps(config, dtype, torch.device("cpu"), reference_kernels(), max_rows=64, max_positions=64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "num_shared"), [([1], 0), ([1, 1, 1, 7], 0), ([1, 5], 2), ([3], 0)])
@pytest.mark.parametrize("head_dim", [16, 80])
@pytest.mark.parametrize("qk_norm", [True, False], ids=["qk-norm", "plain"])
def test_a_step_agrees_with_torch(
    head_dim: int, qk_norm: bool, rows: list[int], num_shared: int, dtype: torch.dtype
) -> None:
    config = msgspec.structs.replace(CONFIG, head_dim=head_dim, qk_norm=qk_norm)
    tolerance = 2e-6 if dtype == torch.float32 else 3e-2
    expected = run_step(TorchOps(config), config, dtype, rows, num_shared)
    computed = run_step(ops_for(config, dtype), config, dtype, rows, num_shared)
    for theirs, ours in zip(expected, computed, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def loaded(checkpoint: Checkpoint, ops: DecoderOps) -> Decoder:
    return load_decoder(checkpoint.spec, "float32", PagedTorchAttention(), lambda stage, fraction: None, ops)


def test_whole_decoders_agree(checkpoint_of: Callable[[str], Checkpoint], checkpoint: Checkpoint) -> None:
    config = checkpoint.spec.decoder
    logits = []
    for ops in (TorchOps(config), ops_for(config)):
        driver = PagedDriver(loaded(checkpoint, ops), KVCache(config, 16, 16, torch.float32))
        logits.append([driver.step(work).clone() for work in STEPS])
        logits[-1].append(driver.step({0: PROMPT[21:30]}, sample=[]))
    for theirs, ours in zip(*logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        if ours.shape[0]:
            assert torch.equal(ours.argmax(1), theirs.argmax(1))


def test_rows_with_the_slot_minus_one_are_not_written() -> None:
    """As a padded batch of a graph has them: as many write rows as rows."""
    kv = KVCache(CONFIG, 8, 4, torch.float32)
    batch = batch_of(kv, [1, 1, 1], 0)
    batch.kv_positions_W[1] = -1
    step = ops_for(CONFIG).begin(batch, kv, rotary_embedding(CONFIG))
    step.rotate_and_store(1, torch.randn(3, 10 * 16), None)
    assert (kv.layers[1] != 0).any(dim=(1, 4)).sum() == 2 * 2, "keys and values of two rows"
    assert not kv.layers[0].any()


def test_steps_of_all_sizes_use_the_same_memory() -> None:
    ops, kv, rope = ops_for(CONFIG), KVCache(CONFIG, 64, 4, torch.float32), rotary_embedding(CONFIG)
    addresses = set()
    for rows in ([1], [1] * 5, [20, 3]):
        step = ops.begin(batch_of(kv, rows, 0), kv, rope)
        norm = RmsNorm(torch.randn(CONFIG.hidden_size), 1e-6)
        h_TE = step.embed(torch.randn(sum(rows), CONFIG.hidden_size), norm)
        delta_TE = torch.randn(sum(rows), CONFIG.hidden_size)
        activation_TF = step.silu_mul(torch.randn(sum(rows), 2 * CONFIG.intermediate_size))
        kept_SE = step.keep_sampled(delta_TE)
        normed_SE = step.add_norm(kept_SE, norm)
        addresses.add((h_TE.data_ptr(), activation_TF.data_ptr(), normed_SE.data_ptr()))
    assert len(addresses) == 1


def test_a_step_of_too_many_rows_is_refused() -> None:
    kv = KVCache(CONFIG, 64, 4, torch.float32)
    with pytest.raises(ValueError, match="a step of 65 rows, where buffers hold 64"):
        ops_for(CONFIG).begin(batch_of(kv, [65], 0), kv, rotary_embedding(CONFIG))


def test_bytes_are_those_of_buffers_and_table() -> None:
    ops, kv = ops_for(CONFIG), KVCache(CONFIG, 64, 4, torch.float32)
    ops.begin(batch_of(kv, [1], 0), kv, rotary_embedding(CONFIG))
    num_bytes = sum(part.nbytes for part in vars(ops).values() if isinstance(part, torch.Tensor))
    assert num_bytes == 64 * (40 * (4 + 4) + 52 * 4 + 8) + 4 * 40 * 4 + 64 * 16 * 4
