"""The attention backends of CUDA devices on a CPU: how they cut a step into calls, and what each call is given."""

import dataclasses

import pytest
import torch
from support.paged_world import Heads, PagedWorld, attention_config
from support.scripted_flash import ScriptedFlash2, ScriptedFlash3

from pagewire.worker.attention.base import AttentionBackend, block_size_of
from pagewire.worker.attention.flash_attention import MAX_SPLITS, FlashAttention2, FlashAttention3
from pagewire.worker.attention.triton import TritonAttention
from pagewire.worker.kernels.sets import reference_kernels

HEADS = Heads(6, 2, 16)
DECODES = [(1, 1), (1, 300), (1, 0), (1, 256)]
PROMPTS = [(7, 7), (3, 270), (1, 20)]
CASES = {"decodes": DECODES, "prompts": PROMPTS, "mixed": DECODES + PROMPTS, "one row": [(1, 9)], "padding": [(4, 0)]}


def backend(kind: str) -> AttentionBackend:
    config = attention_config(HEADS)
    match kind:
        case "flash-3":
            return FlashAttention3(ScriptedFlash3(), config, num_sms=132)
        case "flash-2":
            return FlashAttention2(ScriptedFlash2())
        case _:
            return TritonAttention(
                config, reference_kernels(), torch.device("cpu"), max_num_seqs=8, max_model_len=600, num_sms=1
            )


@pytest.mark.parametrize("kind", ["flash-3", "flash-2", "triton"])
@pytest.mark.parametrize("case", CASES)
def test_a_step(kind: str, case: str) -> None:
    world = PagedWorld(HEADS, 256, CASES[case])
    batch, kv = world.batch()
    step = backend(kind).begin(batch, kv)
    for _ in range(2):
        out = step.attend(1, world.q)
        assert out.shape == world.q.shape
        assert out.is_contiguous()
        torch.testing.assert_close(out, world.expected(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["flash-3", "flash-2", "triton"])
def test_a_step_begins_without_values(kind: str) -> None:
    """As in a graph that is captured: reading a tensor of the meta device back raises."""
    world = PagedWorld(HEADS, 256, DECODES + PROMPTS)
    batch, kv = world.batch()
    tensors = {
        field.name: value.to("meta")
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), torch.Tensor)
    }
    backend(kind).begin(dataclasses.replace(batch, **tensors), kv)


def test_contexts_are_read_when_attention_is_computed() -> None:
    """A replayed graph finds other contexts than the captured step had."""
    world = PagedWorld(HEADS, 256, DECODES)
    step = backend("triton").begin(*world.batch())
    world.context_lens[1] = 0
    out = step.attend(1, world.q)
    assert (out[1:3] == 0).all()
    torch.testing.assert_close(out[3], world.expected()[3], rtol=2e-5, atol=2e-5)


def test_splits_of_flash_attention_3() -> None:
    """Rows that decode may use the cap; prompts as many as there are idle multiprocessors."""
    module = ScriptedFlash3()
    config = attention_config(HEADS)
    for sequences, num_splits in (([(1, 9)] * 3, [MAX_SPLITS]), ([(40, 300)], [MAX_SPLITS]), ([(500, 500)], [5])):
        module.calls.clear()
        world = PagedWorld(HEADS, 128, sequences)
        FlashAttention3(module, config, num_sms=132).begin(*world.batch()).attend(1, world.q)
        assert [call["num_splits"] for call in module.calls] == num_splits
    # 500 rows of three heads are 12 tiles of 128 for each of two KV heads.
    assert 132 // 24 == 5


def test_a_mixed_step_is_two_calls() -> None:
    world = PagedWorld(HEADS, 256, DECODES + PROMPTS)
    for module, attention in (
        (flash_3 := ScriptedFlash3(), FlashAttention3(flash_3, attention_config(HEADS), num_sms=132)),
        (flash_2 := ScriptedFlash2(), FlashAttention2(flash_2)),
    ):
        attention.begin(*world.batch()).attend(1, world.q)
        assert [(call["rows"], call["max_seqlen_q"]) for call in module.calls] == [(4, 1), (11, 7)]


def test_block_sizes() -> None:
    assert [block_size_of(backend(kind), None) for kind in ("flash-3", "flash-2", "triton")] == [128, 256, 64]
    assert block_size_of(backend("flash-2"), 512) == 512
    assert block_size_of(backend("triton"), 1) == 1
    with pytest.raises(
        ValueError, match="block_size is 64; attention backend flash-attention-2 takes multiples of 256"
    ):
        block_size_of(backend("flash-2"), 64)
