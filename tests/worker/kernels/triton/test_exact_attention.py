"""Exact attention: against the definition, and rows of prompts against the same rows when they decode, bit by bit."""

import pytest
import torch
from support.paged_world import Heads, PagedWorld

from pagewire.worker.kernels import workspaces
from pagewire.worker.kernels.reference.paged_prefill import paged_prefill as reference
from pagewire.worker.kernels.triton import exact_attention
from pagewire.worker.kernels.workspaces import DecodeWorkspace

SHAPES = [
    (Heads(4, 2, 64), 16),
    (Heads(3, 1, 80), 64),
    (Heads(14, 2, 16), 1),
    (Heads(2, 2, 128), 256),
    (Heads(40, 1, 16), 16),
]
PARTITION = 64
FEW_AND_MANY = [(*SHAPES[0], 1), *((heads, block_size, 100) for heads, block_size in SHAPES)]
"""Shared out among few programs, and among many."""


@pytest.fixture
def _small_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (workspaces, exact_attention):
        monkeypatch.setattr(module, "PARTITION_TOKENS", PARTITION)


def as_prompts(world: PagedWorld) -> torch.Tensor:
    out = world.empty_out()
    exact_attention.paged_prefill(
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


def as_decodes(world: PagedWorld, num_sms: int) -> torch.Tensor:
    """Of sequences with one row each; twice, because the first leaves its counters for the second."""
    h = world.heads
    workspace = DecodeWorkspace.allocate(
        max_rows=len(world.contexts),
        num_heads=h.num_heads,
        num_kv_heads=h.num_kv_heads,
        head_dim=h.head_dim,
        max_context=2000,
        num_sms=num_sms,
        device=torch.device("cpu"),
        partitions=True,
    )
    outs = []
    for _ in range(2):
        outs.append(world.empty_out())
        exact_attention.paged_decode(
            world.q,
            world.kv_layer,
            world.tables,
            world.context_lens,
            outs[-1],
            scale=h.scale,
            workspace=workspace,
        )
    assert torch.equal(outs[0], outs[1])
    assert not workspace.arrivals.any()
    return outs[0]


@pytest.mark.usefixtures("_small_partitions")
@pytest.mark.parametrize(("heads", "block_size"), SHAPES, ids=str)
def test_prompts(heads: Heads, block_size: int) -> None:
    """Whole prompts, chunks that continue one, single rows; at the borders of tiles and partitions; one that pads."""
    world = PagedWorld(heads, block_size, [(1, 1), (33, 33), (3, 67), (1, 64), (5, 130), (5, 0)])
    expected = world.empty_out()
    reference(
        world.q, world.kv_layer, world.tables, world.query_starts, world.context_lens, expected,
        scale=heads.scale, max_query_len=world.max_query_len,
    )  # fmt: skip
    torch.testing.assert_close(as_prompts(world), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.usefixtures("_small_partitions")
@pytest.mark.parametrize(("heads", "block_size", "num_sms"), FEW_AND_MANY, ids=str)
def test_decodes(heads: Heads, block_size: int, num_sms: int) -> None:
    world = PagedWorld(heads, block_size, [(1, context) for context in (1, 64, 65, 200, 0)])
    torch.testing.assert_close(as_decodes(world, num_sms), world.expected(), rtol=2e-5, atol=2e-5)


@pytest.mark.usefixtures("_small_partitions", "rows_alone")
@pytest.mark.parametrize(("heads", "block_size", "num_sms"), FEW_AND_MANY, ids=str)
def test_a_prompt_s_rows_are_those_that_decode(heads: Heads, block_size: int, num_sms: int) -> None:
    """Rows 60 to 139 of one context, in a chunk beside others and one by one."""
    first, last = 60, 139
    chunk = PagedWorld(heads, block_size, [(7, 20), (last - first + 1, last + 1)], context_seeds=[4, 9])
    rows = as_prompts(chunk)[7:]
    picked = [first, 63, 64, 128, last]
    decodes = PagedWorld(
        heads, block_size, [(1, position + 1) for position in picked], seed=5, context_seeds=[0] * len(picked)
    )
    for index, position in enumerate(picked):
        decodes.q[index] = chunk.q[7 + position - first]
        for token in range(position + 1):
            copy_token(chunk, 1, decodes, index, token)
    by_decoding = as_decodes(decodes, num_sms)
    for index, position in enumerate(picked):
        assert torch.equal(by_decoding[index], rows[position - first]), position


@pytest.mark.usefixtures("rows_alone")
def test_partitions_as_they_are() -> None:
    heads, context = Heads(2, 1, 16), exact_attention.PARTITION_TOKENS + 2
    chunk = PagedWorld(heads, 64, [(4, context)])
    rows = as_prompts(chunk)
    decodes = PagedWorld(heads, 64, [(1, context - 3 + index) for index in range(4)], context_seeds=[0] * 4)
    for index in range(4):
        decodes.q[index] = chunk.q[index]
        for token in range(context - 3 + index):
            copy_token(chunk, 0, decodes, index, token)
    assert torch.equal(as_decodes(decodes, 100), rows)


@pytest.mark.parametrize("shared", [99 << 10, 163 << 10, 227 << 10])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128, 256])
def test_both_kinds_of_tiles_give_a_warp_the_same(head_dim: int, itemsize: int, shared: int) -> None:
    """As many rows for each warp, and as many tokens: a row's sums are taken in the same order."""
    prompts, decodes = (
        exact_attention.exact_tile(head_dim, itemsize, shared, decodes=decodes) for decodes in (False, True)
    )
    assert prompts.tokens == decodes.tokens
    assert prompts.rows * decodes.num_warps == decodes.rows * prompts.num_warps
    assert exact_attention.PARTITION_TOKENS % prompts.tokens == 0


def copy_token(source: PagedWorld, source_seq: int, target: PagedWorld, target_seq: int, token: int) -> None:
    """Keys and values of one token, as `target`'s sequence has it in its own blocks."""
    P = source.block_size
    ours, theirs = (int(world.tables[seq, token // P]) for world, seq in ((target, target_seq), (source, source_seq)))
    target.kv_layer[:, ours, :, token % P] = source.kv_layer[:, theirs, :, token % P]
