"""Paged prefill: the definition against torch's attention, the Triton kernel against the definition."""

import pytest
import torch
from support.paged_world import Heads, PagedWorld

from pagewire.worker.kernels.reference.paged_prefill import paged_prefill as reference
from pagewire.worker.kernels.triton.paged_prefill import paged_prefill as kernel

TOLERANCE = 2e-5

SHAPES = [
    (Heads(4, 2, 64), 16),
    (Heads(9, 3, 64), 64),
    (Heads(5, 1, 80), 16),
    (Heads(2, 2, 96), 48),
    (Heads(14, 2, 16), 1),
    (Heads(4, 2, 128), 256),
    (Heads(3, 1, 256), 32),
    (Heads(40, 1, 16), 16),
]


def by_reference(world: PagedWorld) -> torch.Tensor:
    out = world.empty_out()
    reference(
        world.q,
        world.kv_layer,
        world.tables,
        world.query_starts,
        world.context_lens,
        out,
        scale=world.heads.scale,
        max_query_len=world.max_query_len,
    )
    return out


def by_kernel(world: PagedWorld, max_query_len: int | None = None) -> torch.Tensor:
    out = world.empty_out()
    kernel(
        world.q,
        world.kv_layer,
        world.tables,
        world.query_starts,
        world.context_lens,
        out,
        scale=world.heads.scale,
        max_query_len=max_query_len or world.max_query_len,
    )
    return out


def lengths(block_size: int) -> list[tuple[int, int]]:
    """Whole prompts, chunks that continue one, single rows; at the borders of blocks and tiles."""
    return [(1, 1), (2, 2), (33, 33), (3, block_size + 3), (1, block_size), (17, 90), (8, 32)]


@pytest.mark.parametrize(("heads", "block_size"), SHAPES, ids=str)
def test_definition(heads: Heads, block_size: int) -> None:
    world = PagedWorld(heads, block_size, lengths(block_size))
    torch.testing.assert_close(by_reference(world), world.expected(), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(("heads", "block_size"), SHAPES, ids=str)
def test_kernel(heads: Heads, block_size: int) -> None:
    world = PagedWorld(heads, block_size, lengths(block_size))
    torch.testing.assert_close(by_kernel(world), by_reference(world), rtol=TOLERANCE, atol=TOLERANCE)


def test_kernel_in_bf16() -> None:
    world = PagedWorld(Heads(4, 2, 64), 64, [(40, 100)], torch.bfloat16)
    torch.testing.assert_close(by_kernel(world).float(), world.expected(), rtol=2e-2, atol=2e-2)


def test_rows_of_other_sequences_are_not_touched() -> None:
    """The rows of a mixed batch: query_starts begins where its prompts do."""
    world = PagedWorld(Heads(2, 1, 16), 16, [(5, 5), (4, 20), (6, 6)])
    whole = by_reference(world)
    for function in (reference, kernel):
        out = world.empty_out()
        function(
            world.q,
            world.kv_layer,
            world.tables[1:],
            world.query_starts[1:],
            world.context_lens[1:],
            out,
            scale=world.heads.scale,
            max_query_len=6,
        )
        assert out[:5].isnan().all()
        torch.testing.assert_close(out[5:], whole[5:], rtol=TOLERANCE, atol=TOLERANCE)


def test_a_sequence_without_rows() -> None:
    world = PagedWorld(Heads(2, 1, 16), 16, [(5, 5), (0, 0), (3, 9)])
    torch.testing.assert_close(by_kernel(world), by_reference(world), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("block_size", [16, 64])
def test_a_sequence_that_pads_the_batch(block_size: int) -> None:
    world = PagedWorld(Heads(2, 1, 16), block_size, [(5, 5), (100, 0), (3, 9)])
    world.tables[1] = 2**30  # never to be read
    out = by_kernel(world)
    assert (out[5:105] == 0).all()
    torch.testing.assert_close(out, by_reference(world), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.usefixtures("rows_alone")
def test_a_token_s_result_does_not_depend_on_its_chunk() -> None:
    heads = Heads(4, 2, 32)
    whole = PagedWorld(heads, 16, [(70, 70)])
    chunk = PagedWorld(heads, 16, [(9, 70), (12, 12)], seed=3, context_seeds=[0, 5])
    chunk.q[:9] = whole.q[61:]
    assert torch.equal(by_kernel(chunk)[:9], by_kernel(whole)[61:])


def test_more_programs_than_tiles() -> None:
    world = PagedWorld(Heads(2, 1, 16), 16, [(5, 40), (2, 2)])
    assert torch.equal(by_kernel(world, max_query_len=100), by_kernel(world))


def test_scores_far_apart_do_not_overflow() -> None:
    world = PagedWorld(Heads(2, 1, 64), 16, [(20, 100)])
    world.q.mul_(1000)
    torch.testing.assert_close(by_kernel(world), by_reference(world), rtol=1e-4, atol=1e-4)


def test_a_longer_chunk_than_was_said() -> None:
    world = PagedWorld(Heads(2, 1, 16), 16, [(5, 40)])
    with pytest.raises(ValueError, match="sequence 0 has 5 rows; max_query_len is 4"):
        reference(
            world.q,
            world.kv_layer,
            world.tables,
            world.query_starts,
            world.context_lens,
            world.empty_out(),
            scale=1.0,
            max_query_len=4,
        )
