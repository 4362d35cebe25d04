"""bf16 in 12 bits a value: the same products and rows, to the last bit, as from plain panels."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagewire.worker.linears.native import CompactPanels, NativeLinears, PlainPanels
from pagewire.worker.native.library import LIBRARY_FILE, NativeLibrary, load_library
from pagewire.worker.native.memory import HugePages

if not LIBRARY_FILE.exists():
    pytest.skip("built without the native library", allow_module_level=True)
BEST = load_library(2)
if not BEST.compacts:
    pytest.skip(f"{BEST.level} does not pack bf16 in 12 bits", allow_module_level=True)

SHAPES = [(1, 16), (32, 64), (33, 1024), (200, 300), (4096, 96)]
ROWS = [1, 2, 11, 12, 13, 25, 37, 130]
SPECIAL = [0.0, -0.0, 1e-39, -1e-30, 2.0**-126, 3.3e38, -1e20, float("inf")]
"""Values that a panel of small ones cannot count among its exponents, but for the first."""


def trained(*shape: int) -> torch.Tensor:
    """Values as a model has them."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.02).bfloat16()


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


class PlainLinears(NativeLinears):
    """The kind that packs nothing in 12 bits."""

    def pack(self, weight: torch.Tensor) -> PlainPanels:
        return PlainPanels(self.library, weight.contiguous(), self.memory)


def rows_of(panels: CompactPanels, ids: torch.Tensor, width: int) -> torch.Tensor:
    out = torch.empty(len(ids), width, dtype=torch.bfloat16)
    panels.unpack_rows(ids, out)
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("content", ["trained", "special values", "many zeros"])
def test_products_and_rows_are_those_of_plain_panels(shape: tuple[int, int], content: str) -> None:
    weight = trained(*shape)
    if content == "special values":
        # As many as there is room for in one panel of 32 columns, the first and the last value among them.
        room = min(weight.numel(), 32 * shape[1]) // 512
        places = [0, weight.numel() - 1, *range(7, weight.numel(), 1031)][:room]
        for place, value in zip(places, SPECIAL * len(places), strict=False):
            weight.view(-1)[place] = value
    if content == "many zeros":
        weight[:, ::3] = 0
    plain, compact = PlainLinears(BEST, torch.bfloat16), NativeLinears(BEST, torch.bfloat16)
    bias = trained(shape[0])
    assert CompactPanels.fit(BEST, weight)
    pairs = [(kind.linear(weight, bias), kind.head(weight)) for kind in (plain, compact)]
    for num_rows, number in product(ROWS, (0, 1)):
        x = torch.randn(num_rows, shape[1], generator=torch.Generator().manual_seed(num_rows)).bfloat16()
        expected = pairs[0][number](x).clone()
        assert torch.equal(bits(pairs[1][number](x)), bits(expected)), num_rows
    ids = torch.arange(shape[0]).flip(0).repeat(2)
    embedding, head = compact.tied(weight)
    assert torch.equal(bits(embedding(ids)), bits(weight[ids]))
    padded = -(-shape[0] // 32) * 32 * shape[1] * 2
    assert head.num_bytes <= padded * 0.775 + 64 * -(-shape[0] // 32) * 2


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_values_are_kept(data: st.DataObject) -> None:
    weight = trained(64, 1024)
    values = bits(weight).view(-1)
    places = data.draw(st.lists(st.integers(0, values.numel() - 1), max_size=60, unique=True))
    for place in places:
        values[place] = data.draw(st.integers(-(2**15), 2**15 - 1))
    if CompactPanels.fit(BEST, weight):
        panels = CompactPanels(BEST, weight, HugePages())
        assert torch.equal(bits(rows_of(panels, torch.arange(64), 1024)), bits(weight))
    else:
        assert len(places) > 20


def test_what_does_not_fit_is_packed_as_it_is() -> None:
    fit = trained(64, 512)
    anything = torch.randint(-(2**15), 2**15, (64, 512), dtype=torch.int16).view(torch.bfloat16)
    anything = torch.where(anything.isnan(), torch.ones_like(anything), anything)
    one_bad_panel = trained(96, 512)
    one_bad_panel[32:64] = anything[:32]
    for weight in (anything, one_bad_panel, trained(64, 510), fit.float()):
        assert not CompactPanels.fit(BEST, weight)
        linears = NativeLinears(BEST, weight.dtype)
        embedding, head = linears.tied(weight)
        assert isinstance(linears.pack(weight), PlainPanels)
        assert torch.equal(bits(embedding(torch.arange(64))), bits(weight[:64]))
        assert head.num_bytes >= weight.nbytes
    assert CompactPanels.fit(BEST, fit)


def test_lesser_instruction_sets_pack_plainly() -> None:
    try:
        library: NativeLibrary = load_library(2, "avx2")
        assert not CompactPanels.fit(library, trained(64, 512))
    finally:
        load_library(2)
