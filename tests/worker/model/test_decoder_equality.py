"""The decoder against transformers' own models: same logits, same greedy tokens, however the work is cut."""

from collections.abc import Callable

import pytest
import torch
from support.batches import PagedDriver, greedy
from support.checkpoints import Checkpoint

from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.attention.paged_torch import MAX_MASKED_ROWS
from pagewire.worker.model.decoder import Decoder

DecoderOf = Callable[[Checkpoint], Decoder]
PROMPT = [(7 * i * i + 3 * i + 11) % 256 for i in range(75)]
BLOCK_SIZES = (1, 16, 256)


def driver_for(decoder: Decoder, block_size: int, num_tokens: int = 1024) -> PagedDriver:
    num_blocks = max(8, num_tokens // block_size)
    return PagedDriver(decoder, KVCache(decoder.config, num_blocks, block_size, torch.float32))


def hf_logits(checkpoint: Checkpoint, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = checkpoint.hf_model(torch.tensor([tokens])).logits[0]
    return logits


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_logits_agree_however_the_prompt_is_cut(checkpoint: Checkpoint, decoder_of: DecoderOf, block_size: int) -> None:
    expected = hf_logits(checkpoint, PROMPT)
    driver = driver_for(decoder_of(checkpoint), block_size)
    assert_close(driver.step({0: PROMPT})[0], expected[-1])
    for start in range(0, len(PROMPT), 7):
        logits = driver.step({1: PROMPT[start : start + 7]})
        assert_close(logits[0], expected[min(start + 7, len(PROMPT)) - 1])
    for position, token in enumerate(PROMPT):
        assert_close(driver.step({2: [token]})[0], expected[position])


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_64_greedy_tokens_are_the_same(checkpoint: Checkpoint, decoder_of: DecoderOf, block_size: int) -> None:
    prompt = PROMPT[:20]
    expected = checkpoint.hf_model.generate(
        torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, len(prompt) :].tolist()
    assert len(set(expected)) > 8, "a model that repeats itself would prove little"
    assert greedy(driver_for(decoder_of(checkpoint), block_size), 0, prompt, 64) == expected


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_a_mixed_step_gives_each_sequence_its_own_logits(
    checkpoint: Checkpoint, decoder_of: DecoderOf, block_size: int
) -> None:
    """Decodes, a first chunk, a later chunk, a chunk of one row and a whole prompt, all in one step."""
    driver = driver_for(decoder_of(checkpoint), block_size, num_tokens=2048)
    driver.step({0: PROMPT[:40], 1: PROMPT[:9], 2: PROMPT[:13], 3: PROMPT[:21]}, sample=[])
    ours = driver.step(
        {0: PROMPT[40:41], 1: PROMPT[9:10], 4: PROMPT[:30], 2: PROMPT[13:33], 3: PROMPT[21:22], 5: PROMPT},
        sample=[0, 1, 2, 5],
    )
    expected = hf_logits(checkpoint, PROMPT)
    assert_close(ours, expected[[40, 9, 32, 74]])
    assert_close(driver.step({3: PROMPT[22:23], 4: PROMPT[30:31]}), expected[[22, 30]])


def test_sequences_share_blocks_that_the_same_step_fills(
    checkpoint_of: Callable[[str], Checkpoint], decoder_of: DecoderOf
) -> None:
    checkpoint = checkpoint_of("qwen3-tied")
    driver = driver_for(decoder_of(checkpoint), 16)
    driver.batch({0: PROMPT[:32]})  # gives sequence 0 its blocks, computes nothing
    driver.sequences[0].num_computed = 0
    driver.share(0, 1, 32)
    # The sharer's row comes first, so its attention would run before the other's writes if the order allowed it.
    logits = driver.step({1: PROMPT[32:40], 0: PROMPT[:32]})
    expected = hf_logits(checkpoint, PROMPT)
    assert_close(logits, expected[[39, 31]])


def test_a_fully_cached_prompt_computes_its_last_token_and_writes_nothing(
    checkpoint_of: Callable[[str], Checkpoint], decoder_of: DecoderOf
) -> None:
    checkpoint = checkpoint_of("qwen3-tied")
    driver = driver_for(decoder_of(checkpoint), 16)
    driver.step({0: PROMPT[:32]})
    before = [layer.clone() for layer in driver.kv.layers]
    driver.share(0, 1, 32)
    driver.sequences[1].num_computed = 31
    assert_close(driver.step({1: PROMPT[31:32]})[0], hf_logits(checkpoint, PROMPT)[31])
    assert all(torch.equal(was, now) for was, now in zip(before, driver.kv.layers, strict=True))


def test_a_step_in_which_nothing_samples_returns_no_rows(
    checkpoint_of: Callable[[str], Checkpoint], decoder_of: DecoderOf
) -> None:
    driver = driver_for(decoder_of(checkpoint_of("llama")), 16)
    logits = driver.step({0: PROMPT[:5]}, sample=[])
    assert logits.shape == (0, 256)
    assert logits.dtype == torch.float32


def test_a_long_continuing_chunk_is_attended_in_pieces(
    checkpoint_of: Callable[[str], Checkpoint], decoder_of: DecoderOf
) -> None:
    checkpoint = checkpoint_of("llama")
    num_rows = 2 * MAX_MASKED_ROWS + 50
    tokens = [(13 * i * i + i) % 256 for i in range(num_rows + 10)]
    driver = driver_for(decoder_of(checkpoint), 16, num_tokens=2048)
    driver.step({0: tokens[:10]})
    assert_close(driver.step({0: tokens[10:]})[0], hf_logits(checkpoint, tokens)[-1])
