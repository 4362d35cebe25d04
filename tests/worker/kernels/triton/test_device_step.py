"""Whole steps by Triton's kernels alone, replayed on the CPU: the tokens of the plain path."""

from random import Random

import numpy as np
import pytest
import torch
from support.device_runner import device_decoder, make_runner, plain_decoder, run, tiny_config
from support.drawn_admits import DrawnAdmits
from support.same_results import assert_same
from support.worker_plans import SMALL, PlanModel

from pagewire.wire.columns import unpack
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.cpu.runner import CpuRunner
from pagewire.worker.kernels.sets import triton_kernels


@pytest.mark.parametrize("eager", [False, True])
def test_a_stream_of_plans(eager: bool) -> None:
    config = tiny_config(SMALL.vocab_size)
    decoder = plain_decoder(config)
    kv, plain_kv = (KVCache(config, SMALL.num_blocks, SMALL.block_size, torch.float32) for _ in range(2))
    plain = CpuRunner(decoder, plain_kv, SMALL)
    plain.begin(1)
    kernels = triton_kernels(overlap=False)
    runner = make_runner(device_decoder(decoder, SMALL, kernels), kv, SMALL, kernels=kernels, eager=eager)
    plans = PlanModel(SMALL, Random(11))
    num_tokens = 0
    for _ in range(12):
        plan, _ = plans.step()
        tokens = unpack(run(runner, plan).tokens).tolist()
        assert tokens == plain.run(plan).tokens.tolist()
        num_tokens += len(tokens)
    assert num_tokens > 20
    for layer, plain_layer in zip(kv.layers, plain_kv.layers, strict=True):
        torch.testing.assert_close(layer, plain_layer)


@pytest.mark.parametrize("eager", [False, True])
def test_a_stream_of_plans_with_special_rows(eager: bool) -> None:
    config = tiny_config(SMALL.vocab_size)
    decoder = plain_decoder(config)
    kv, plain_kv = (KVCache(config, SMALL.num_blocks, SMALL.block_size, torch.float32) for _ in range(2))
    plain = CpuRunner(decoder, plain_kv, SMALL)
    plain.begin(1)
    kernels = triton_kernels(overlap=False)
    runner = make_runner(device_decoder(decoder, SMALL, kernels), kv, SMALL, kernels=kernels, eager=eager)
    plans = PlanModel(SMALL, Random(12), DrawnAdmits(np.random.default_rng(12), SMALL.vocab_size))
    num_reports = 0
    for _ in range(12):
        plan, _ = plans.step()
        result = run(runner, plan)
        assert_same(result, plain.run(plan))
        num_reports += len(result.logprobs) + len(result.prompt_logprobs)
    assert num_reports > 5
