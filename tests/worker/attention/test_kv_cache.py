"""The cache's size, layout and laziness."""

import re
from pathlib import Path

import pytest
import torch
from support.checkpoints import build_hf_model, decoder_config

from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.kv_cache import KVCache, bytes_per_block, plan_num_blocks
from pagewire.worker.native.machine import available_memory_bytes

GIB = 1 << 30


@pytest.fixture(scope="module")
def config() -> DecoderConfig:
    return decoder_config(build_hf_model("qwen3-tied").config)


def plan(config: DecoderConfig, **changes: int | None) -> int:
    settings = {"max_num_seqs": 4, "max_model_len": 100, "kv_cache_bytes": None, "available_bytes": 64 * GIB}
    return plan_num_blocks(config, block_size=16, dtype=torch.float32, **{**settings, **changes})


def test_a_block_holds_keys_and_values_of_all_layers(config: DecoderConfig) -> None:
    assert bytes_per_block(config, 16, torch.float32) == 2 * 3 * 2 * 16 * 16 * 4
    assert bytes_per_block(config, 16, torch.bfloat16) == 2 * 3 * 2 * 16 * 16 * 2


def test_it_never_takes_more_than_all_slots_can_use(config: DecoderConfig) -> None:
    assert plan(config) == 4 * 7
    assert plan(config, kv_cache_bytes=GIB) == 4 * 7


def test_a_budget_is_spent_on_whole_blocks(config: DecoderConfig) -> None:
    per_block = bytes_per_block(config, 16, torch.float32)
    assert plan(config, kv_cache_bytes=10 * per_block + 1) == 10


def test_a_budget_below_one_sequence_is_refused_with_both_remedies(config: DecoderConfig) -> None:
    per_block = bytes_per_block(config, 16, torch.float32)
    assert plan(config, kv_cache_bytes=7 * per_block) == 7
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"kv_cache_bytes {6 * per_block} holds 96 tokens of KV, fewer than one sequence of max_model_len 100; "
            f"set kv_cache_bytes to at least {7 * per_block} or max_model_len to at most 96"
        ),
    ):
        plan(config, kv_cache_bytes=6 * per_block)


def test_the_default_is_a_share_of_memory_up_to_a_limit(config: DecoderConfig) -> None:
    per_block = bytes_per_block(config, 16, torch.float32)
    many = {"max_num_seqs": 1_000_000}
    assert plan(config, available_bytes=400 * per_block, **many) == 100
    assert plan(config, available_bytes=64 * GIB, **many) == 4 * GIB // per_block


def test_the_default_stretches_to_one_sequence_but_not_beyond_half(config: DecoderConfig) -> None:
    per_block = bytes_per_block(config, 16, torch.float32)
    assert plan(config, available_bytes=14 * per_block) == 7
    with pytest.raises(ValueError, match="max_model_len to at most 96"):
        plan(config, available_bytes=13 * per_block)


def test_a_worker_that_is_started_again_takes_what_it_had_or_what_there_is(config: DecoderConfig) -> None:
    block = bytes_per_block(config, 16, torch.float32)
    assert plan(config, earlier_num_blocks=20) == 20
    assert plan(config, earlier_num_blocks=28, available_bytes=2 * 20 * block) == 20
    assert plan(config, earlier_num_blocks=28, available_bytes=2 * 3 * block) == 3, "less than one sequence"
    assert plan(config, earlier_num_blocks=20, kv_cache_bytes=24 * block) == 20
    with pytest.raises(ValueError, match="does not hold one block"):
        plan(config, earlier_num_blocks=20, available_bytes=block)


def test_gather_returns_what_write_stored(config: DecoderConfig) -> None:
    kv = KVCache(config, num_blocks=5, block_size=4, dtype=torch.float32)
    K, D = config.num_kv_heads, config.head_dim
    slots = torch.tensor([3 * 4 + 0, 3 * 4 + 1, 3 * 4 + 2, 3 * 4 + 3, 1 * 4 + 0])  # block 3 whole, then block 1
    values = torch.randn(5, 2 * K, D)
    kv.write(1, kv.row_index(slots), values)
    gathered = torch.full((2 * K * 2, 4 * D), float("nan"))
    index = kv.gather_index(torch.tensor([[0, 0], [3, 1]], dtype=torch.int32))
    kv.gather(1, index[1].flatten(), gathered)
    keys, vals = gathered.view(2, K, 8, D)
    assert torch.equal(keys[:, :5], values[:, :K].transpose(0, 1))
    assert torch.equal(vals[:, :5], values[:, K:].transpose(0, 1))
    assert torch.equal(kv.layers[1][0, 3, :, 2], values[2, :K])
    # Nothing else was touched: the block's other slots, other blocks, other layers.
    assert kv.layers[1].count_nonzero() == values.count_nonzero()
    assert kv.layers[0].count_nonzero() == kv.layers[2].count_nonzero() == 0


def test_sizes(config: DecoderConfig) -> None:
    kv = KVCache(config, num_blocks=5, block_size=4, dtype=torch.bfloat16)
    assert kv.num_bytes == 5 * bytes_per_block(config, 4, torch.bfloat16) == sum(layer.nbytes for layer in kv.layers)
    for num_blocks, block_size in ((0, 4), (5, 0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            KVCache(config, num_blocks, block_size, torch.bfloat16)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_is_committed_only_when_written(config: DecoderConfig) -> None:
    before = resident_bytes()
    kv = KVCache(
        config, num_blocks=GIB // bytes_per_block(config, 16, torch.float32), block_size=16, dtype=torch.float32
    )
    assert kv.num_bytes > 0.99 * GIB
    kv.write(0, kv.row_index(torch.tensor([7])), torch.ones(1, 2 * config.num_kv_heads, config.head_dim))
    assert resident_bytes() - before < 64 << 20


def test_available_memory_is_a_plausible_figure() -> None:
    assert 64 << 20 < available_memory_bytes() < 1 << 50
