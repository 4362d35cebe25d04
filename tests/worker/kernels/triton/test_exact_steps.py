"""With the exact kernels a sequence that is computed again comes to the same bits: whole steps by the CUDA runner, in
Triton's interpreter."""

from itertools import count
from random import Random

import msgspec
import pytest
import torch
from support.device_runner import CPU, make_runner, tiny_config, tiny_spec
from support.recomputation import KeptLogits, Recomputation

from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.attention.triton import TritonAttention
from pagewire.worker.cuda.kernel_ops import KernelOps
from pagewire.worker.kernels import workspaces
from pagewire.worker.kernels.sets import exact_kernels
from pagewire.worker.kernels.triton import exact_attention
from pagewire.worker.linears.exact import ExactLinears
from pagewire.worker.slots.columns import SlotLimits
from pagewire.worker.weights.build import load_decoder

LIMITS = SlotLimits(
    max_num_seqs=4, max_model_len=100, max_num_batched_tokens=100, block_size=16, num_blocks=28, vocab_size=101
)
PARTITION = 32
CONFIG = tiny_config(LIMITS.vocab_size)
CONFIGS = {
    "group 2": CONFIG,
    "group 3, no norm, bias": msgspec.structs.replace(
        CONFIG, num_heads=3, num_kv_heads=1, qk_norm=False, qkv_bias=True
    ),
}


@pytest.fixture(autouse=True)
def _small_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (workspaces, exact_attention):
        monkeypatch.setattr(module, "PARTITION_TOKENS", PARTITION)


def recomputation(config: DecoderConfig, eager: bool) -> Recomputation:
    kernels = exact_kernels(overlap=False)
    attention = TritonAttention(
        config, kernels, CPU, max_num_seqs=LIMITS.max_num_seqs, max_model_len=LIMITS.max_model_len, num_sms=4
    )
    ops = KernelOps(
        config,
        torch.float32,
        CPU,
        kernels,
        max_rows=LIMITS.max_num_batched_tokens,
        max_positions=LIMITS.max_model_len,
    )
    assert attention.recomputes_exactly
    decoder = load_decoder(
        tiny_spec(config), "float32", attention, lambda stage, done: None, ops, ExactLinears(kernels, CPU)
    )
    kept = KeptLogits(decoder, LIMITS, CPU)
    kv = KVCache(config, LIMITS.num_blocks, LIMITS.block_size, torch.float32)
    return Recomputation(make_runner(kept, kv, LIMITS, kernels=kernels, eager=eager), kept, LIMITS, count(1))


@pytest.mark.usefixtures("rows_alone")
@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_decoded_is_computed_again_to_the_bit(name: str) -> None:
    draw = Random(name)
    captured, eager = (recomputation(CONFIGS[name], eager) for eager in (False, True))
    prompt = [draw.randrange(LIMITS.vocab_size) for _ in range(29)]
    history = captured.first(prompt, 36, [0, 3, 1], draw)
    assert len(set(history.ids)) > 20
    for length in (32, 33):
        assert captured.again(history, length, 1, None) == 0
    assert eager.again(history, 33, 1, draw) == 0
    history.after(33)[7] += 1e-6
    assert captured.again(history, 33, 0, None) == 1, "another value would not be noticed"
