"""Paged decode: the definition against torch's attention, the Triton kernel against the definition."""

import pytest
import torch
from support.paged_world import Heads, PagedWorld

from pagewire.worker.kernels.reference.paged_decode import paged_decode as reference
from pagewire.worker.kernels.triton import paged_decode as kernel
from pagewire.worker.kernels.workspaces import MAX_SPLITS, SPLIT_TOKENS, DecodeWorkspace

TOLERANCE = 2e-5


def tokens_per_split(context_len: int) -> int:
    """How many tokens of a context one split covers: a function of its length alone, so that a sequence's result does
    not depend on its company. A multiple of SPLIT_TOKENS."""
    return SPLIT_TOKENS * max(1, -(-context_len // (SPLIT_TOKENS * MAX_SPLITS)))


def split_count(context_len: int) -> int:
    """How many splits a context has."""
    return -(-context_len // tokens_per_split(context_len))


def workspace_for(
    world: PagedWorld, *, max_context: int = 700, num_sms: int = 1, max_rows: int = 16
) -> DecodeWorkspace:
    h = world.heads
    workspace = DecodeWorkspace.allocate(
        max_rows=max_rows,
        num_heads=h.num_heads,
        num_kv_heads=h.num_kv_heads,
        head_dim=h.head_dim,
        max_context=max_context,
        num_sms=num_sms,
        device=torch.device("cpu"),
    )
    # What nobody has written must not matter.
    workspace.partial_out.fill_(float("nan"))
    workspace.partial_lse.fill_(float("nan"))
    return workspace


def by_reference(world: PagedWorld, workspace: DecodeWorkspace) -> torch.Tensor:
    out = world.empty_out()
    reference(
        world.q, world.kv_layer, world.tables, world.context_lens, out, scale=world.heads.scale, workspace=workspace
    )
    return out


def by_kernel(world: PagedWorld, workspace: DecodeWorkspace) -> torch.Tensor:
    out = world.empty_out()
    kernel.paged_decode(
        world.q, world.kv_layer, world.tables, world.context_lens, out, scale=world.heads.scale, workspace=workspace
    )
    assert not workspace.arrivals.any()
    return out


def decodes(*contexts: int) -> list[tuple[int, int]]:
    return [(1, context) for context in contexts]


SHAPES = [
    (Heads(4, 2, 64), 16),
    (Heads(9, 3, 64), 64),
    (Heads(5, 1, 80), 16),
    (Heads(2, 2, 96), 48),
    (Heads(14, 2, 16), 1),
    (Heads(4, 2, 128), 256),
    (Heads(3, 1, 256), 32),
]


@pytest.mark.parametrize(("heads", "block_size"), SHAPES, ids=str)
def test_definition(heads: Heads, block_size: int) -> None:
    contexts = (1, block_size, block_size + 1, 0, 127, 128, 129, 300)
    world = PagedWorld(heads, block_size, decodes(*contexts))
    torch.testing.assert_close(
        by_reference(world, workspace_for(world)), world.expected(), rtol=TOLERANCE, atol=TOLERANCE
    )


@pytest.mark.parametrize(("heads", "block_size"), SHAPES, ids=str)
def test_kernel(heads: Heads, block_size: int) -> None:
    """Lengths at the borders of blocks, tiles and splits, and an empty row; twice, because counters must be reset."""
    contexts = (1, block_size, block_size + 1, 0, 127, 129, 300)
    world = PagedWorld(heads, block_size, decodes(*contexts))
    workspace = workspace_for(world)
    expected = by_reference(world, workspace)
    for _ in range(2):
        torch.testing.assert_close(by_kernel(world, workspace), expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert (expected[3] == 0).all()


def test_kernel_in_bf16() -> None:
    """Through the upcast that the interpreter needs: rounding of the inputs and of the result alone, and truncation."""
    world = PagedWorld(Heads(4, 2, 64), 16, decodes(1, 150, 0), torch.bfloat16)
    torch.testing.assert_close(by_kernel(world, workspace_for(world)).float(), world.expected(), rtol=2e-2, atol=2e-2)


def test_more_query_heads_than_a_tile() -> None:
    world = PagedWorld(Heads(20, 1, 32), 16, decodes(200, 7))
    workspace = workspace_for(world)
    torch.testing.assert_close(
        by_kernel(world, workspace), by_reference(world, workspace), rtol=TOLERANCE, atol=TOLERANCE
    )


def test_splits_that_grow() -> None:
    """Past MAX_SPLITS · SPLIT_TOKENS a split takes more tokens; a table far wider than the context, too."""
    long = MAX_SPLITS * SPLIT_TOKENS + 1
    assert tokens_per_split(long) == 2 * SPLIT_TOKENS
    world = PagedWorld(Heads(2, 1, 16), 128, decodes(long, 200), spare_columns=20)
    workspace = workspace_for(world, max_context=long)
    assert split_count(long) == 17
    torch.testing.assert_close(
        by_kernel(world, workspace), by_reference(world, workspace), rtol=TOLERANCE, atol=TOLERANCE
    )


@pytest.mark.parametrize("context", [1, 128, 129, 4096, 4097, 8192, 8193, 40960, 131072])
def test_splits_cover_a_context(context: int) -> None:
    size, count = tokens_per_split(context), split_count(context)
    assert size % SPLIT_TOKENS == 0
    assert count <= MAX_SPLITS
    assert (count - 1) * size < context <= count * size


def test_a_workspace_has_room_for_every_length() -> None:
    """The longest context is not the one with most splits."""
    for max_context in (100, 1000, 4096, 4097, 5000, 40960):
        workspace = DecodeWorkspace.allocate(
            max_rows=1,
            num_heads=1,
            num_kv_heads=1,
            head_dim=1,
            max_context=max_context,
            num_sms=1,
            device=torch.device("cpu"),
        )
        assert workspace.max_splits == max(split_count(length) for length in range(1, max_context + 1))


def test_a_result_depends_neither_on_company_nor_on_how_work_is_spread() -> None:
    heads = Heads(4, 2, 32)
    together = PagedWorld(heads, 16, decodes(3, 600, 0, 260), context_seeds=[0, 1, 2, 3])
    alone = PagedWorld(heads, 16, decodes(600), seed=7, context_seeds=[1], spare_columns=9)
    assert torch.equal(together.q[1], alone.q[0])
    spread = [kernel.programs_per_row(4 * 2, 6, num_sms) for num_sms in (1, 2, 100)]
    assert spread == [2, 4, 6]
    results = [by_kernel(together, workspace_for(together, num_sms=num_sms))[1] for num_sms in (1, 2, 100)]
    results.append(by_kernel(alone, workspace_for(alone))[0])
    for result in results[1:]:
        assert torch.equal(result, results[0])


def test_scores_far_apart_do_not_overflow() -> None:
    world = PagedWorld(Heads(2, 1, 64), 16, decodes(300, 5))
    world.q.mul_(1000)
    workspace = workspace_for(world)
    torch.testing.assert_close(by_kernel(world, workspace), by_reference(world, workspace), rtol=1e-4, atol=1e-4)


def test_more_rows_than_the_workspace_holds() -> None:
    world = PagedWorld(Heads(2, 1, 16), 16, decodes(4, 5, 6))
    workspace = workspace_for(world, max_rows=2)
    for function in (reference, kernel.paged_decode):
        with pytest.raises(ValueError, match="3 rows decode; the workspace is for at most 2"):
            function(
                world.q,
                world.kv_layer,
                world.tables,
                world.context_lens,
                world.empty_out(),
                scale=1.0,
                workspace=workspace,
            )


def test_no_rows() -> None:
    world = PagedWorld(Heads(2, 1, 16), 16, decodes(4))
    kernel.paged_decode(
        world.q[:0],
        world.kv_layer,
        world.tables[:0],
        world.context_lens[:0],
        world.empty_out()[:0],
        scale=1.0,
        workspace=workspace_for(world),
    )
