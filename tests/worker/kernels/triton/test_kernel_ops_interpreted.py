"""Ops over fixed buffers with the Triton kernels, interpreted in fp32: a step against torch's operators, and the same
greedy tokens from a whole decoder."""

from pathlib import Path

import torch
from support.batches import PagedDriver, greedy
from support.checkpoints import build_hf_model, save_checkpoint
from support.step_ops import CONFIG, run_step

from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.attention.paged_torch import PagedTorchAttention
from pagewire.worker.cuda.kernel_ops import KernelOps
from pagewire.worker.kernels.sets import triton_kernels
from pagewire.worker.model.ops import DecoderOps, TorchOps
from pagewire.worker.weights.build import load_decoder

CPU = torch.device("cpu")


def triton_ops(config: DecoderConfig) -> KernelOps:
    return KernelOps(config, torch.float32, CPU, triton_kernels(overlap=False), max_rows=32, max_positions=64)


def test_a_step_agrees_with_torch() -> None:
    for rows, num_shared in (([1], 0), ([1, 1, 6], 0), ([1, 5], 2)):
        expected = run_step(TorchOps(CONFIG), CONFIG, torch.float32, rows, num_shared)
        computed = run_step(triton_ops(CONFIG), CONFIG, torch.float32, rows, num_shared)
        for theirs, ours in zip(expected, computed, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=5e-6, atol=5e-6)


def test_greedy_tokens_of_a_whole_decoder(tmp_path: Path) -> None:
    spec = save_checkpoint(build_hf_model("qwen3-tied"), tmp_path).spec

    def tokens(ops: DecoderOps) -> list[int]:
        decoder = load_decoder(spec, "float32", PagedTorchAttention(), lambda stage, fraction: None, ops)
        kv = KVCache(spec.decoder, 16, 4, torch.float32)
        return greedy(PagedDriver(decoder, kv), 0, [(7 * i * i + 3 * i + 11) % 256 for i in range(20)], 12)

    expected = tokens(TorchOps(spec.decoder))
    assert len(set(expected)) > 4, "a model that repeats itself would prove little"
    assert tokens(triton_ops(spec.decoder)) == expected
