"""Skinny linears: interpreted in fp32 against their definition in torch, alone and in a whole decoder; and
compiled for real devices, which needs none, in a process of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.batches import PagedDriver, greedy
from support.checkpoints import build_hf_model, save_checkpoint
from support.host_device import EagerCapture

from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.attention.paged_torch import PagedTorchAttention
from pagewire.worker.cuda.kernel_ops import KernelOps
from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.kernels.reference import skinny as reference
from pagewire.worker.kernels.sets import triton_kernels
from pagewire.worker.kernels.triton import skinny
from pagewire.worker.linears.skinny import SkinnyLinears, choose_kernels
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.weights.build import load_decoder

CPU = torch.device("cpu")
FLOOR = 0.05
# (rows, width, outputs): each number of rows; widths of less than a tile, of some, and of more than are under way at a
# time, the last one in part; outputs that fill no program.
SHAPES = [(1, 64, 5), (2, 96, 9), (3, 1024, 4), (4, 1536, 6), (1, 1536, 7), (4, 64, 13), (1, 5200, 3)]

COMPILED_BY = "compile_skinny.py"


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def inputs(num_rows: int, width: int, num_outputs: int, has_bias: bool) -> tuple[Any, ...]:
    """x, delta, the norm's weight, weight and bias, with sums of products near 1."""
    torch.manual_seed(width + num_rows)
    x_TE, delta_TE = torch.randn(2, num_rows, width)
    weight = torch.randn(num_outputs, width) / width**0.5
    norm_weight_E = torch.randn(width) * width**0.5
    return x_TE, delta_TE, norm_weight_E, weight, torch.randn(num_outputs) if has_bias else None


@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(("num_rows", "width", "num_outputs"), SHAPES)
def test_linear(num_rows: int, width: int, num_outputs: int, has_bias: bool) -> None:
    x_TK, _, _, weight, bias = inputs(num_rows, width, num_outputs, has_bias)
    expected, out = torch.full((2, num_rows, num_outputs), torch.nan)
    reference.linear(x_TK, weight, bias, expected)
    skinny.linear(x_TK, weight, bias, out, overlap=False)
    assert_close(out, expected)


@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(("num_rows", "width", "num_outputs"), SHAPES)
def test_add_norm_linear(num_rows: int, width: int, num_outputs: int, has_bias: bool) -> None:
    x_TE, delta_TE, norm_weight_E, weight, bias = inputs(num_rows, width, num_outputs, has_bias)
    before_TE = x_TE.clone()
    expected, out = torch.full((2, num_rows, num_outputs), torch.nan)
    expected_x_TE, new_x_TE = torch.full((2, num_rows, width), torch.nan)
    reference.add_norm_linear(x_TE, delta_TE, norm_weight_E, FLOOR, weight, bias, expected_x_TE, expected)
    skinny.add_norm_linear(x_TE, delta_TE, norm_weight_E, FLOOR, weight, bias, new_x_TE, out, overlap=False)
    assert torch.equal(x_TE, before_TE)
    assert torch.equal(new_x_TE, expected_x_TE)
    assert_close(out, expected)


@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(("num_rows", "width", "inner"), SHAPES)
def test_add_norm_gate_up(num_rows: int, width: int, inner: int, has_bias: bool) -> None:
    x_TE, delta_TE, norm_weight_E, weight, bias = inputs(num_rows, width, 2 * inner, has_bias)
    expected, out = torch.full((2, num_rows, inner), torch.nan)
    expected_x_TE, new_x_TE = torch.full((2, num_rows, width), torch.nan)
    reference.add_norm_gate_up(x_TE, delta_TE, norm_weight_E, FLOOR, weight, bias, expected_x_TE, expected)
    skinny.add_norm_gate_up(x_TE, delta_TE, norm_weight_E, FLOOR, weight, bias, new_x_TE, out, overlap=False)
    assert torch.equal(new_x_TE, expected_x_TE)
    assert_close(out, expected)


def test_many_outputs_are_shared_out_differently() -> None:
    """Enough for two outputs per warp, and not a multiple of a program's."""
    x_TK, _, _, weight, _ = inputs(2, 16, 4099, False)
    expected, out = torch.full((2, 2, 4099), torch.nan)
    reference.linear(x_TK, weight, None, expected)
    skinny.linear(x_TK, weight, None, out, overlap=False)
    assert_close(out, expected)


def test_rows_past_the_last_are_left_alone() -> None:
    """A kernel for up to four rows runs them as well."""
    x_TE, delta_TE, norm_weight_E, weight, _ = inputs(4, 64, 8, False)
    new_x_TE, out = torch.full((4, 64), 7.0), torch.full((4, 8), 7.0)
    skinny.add_norm_linear(
        x_TE[:2], delta_TE[:2], norm_weight_E, FLOOR, weight, None, new_x_TE[:2], out[:2], overlap=False
    )
    assert (new_x_TE[2:] == 7).all()
    assert (out[2:] == 7).all()
    assert not (out[:2] == 7).any()


def test_greedy_tokens_of_a_whole_decoder(tmp_path: Path) -> None:
    """One and three sequences, whose prompts have more rows than the kernels take."""
    spec = save_checkpoint(build_hf_model("qwen3-tied"), tmp_path).spec
    kernels = triton_kernels(overlap=False)

    def tokens(decoder: Decoder) -> list[list[int]]:
        driver = PagedDriver(decoder, KVCache(spec.decoder, 32, 4, torch.float32))
        found = [greedy(driver, 0, [(7 * i * i + 3 * i + 11) % 256 for i in range(20)], 5)]
        names = (1, 2, 3)
        step = (
            driver.step({name: [(name * 5 * i + i * i) % 256 for i in range(6)] for name in names}).argmax(1).tolist()
        )
        for _ in range(2):
            found.append(step)
            step = driver.step({name: [token] for name, token in zip(names, step, strict=True)}).argmax(1).tolist()
        return found

    def load(*parts: Any) -> Decoder:
        return load_decoder(spec, "float32", PagedTorchAttention(), lambda stage, fraction: None, *parts)

    ops = KernelOps(spec.decoder, torch.float32, CPU, kernels, max_rows=32, max_positions=64)
    decoder = load(ops, SkinnyLinears(kernels, CPU))
    assert decoder.linear_backend == "skinny-triton"
    expected = tokens(load())
    assert len({token for step in expected for token in step}) > 5, "a model that repeats itself would prove little"
    assert tokens(decoder) == expected


def test_what_cannot_run_here_is_not_chosen() -> None:
    """The interpreter knows no overlapped launch."""
    candidates = [triton_kernels(overlap=overlap) for overlap in (True, False)]
    refused: list[str] = []

    def chosen(candidates: list[Kernels]) -> str:
        _, kind = choose_kernels(candidates, CPU, torch.float32, lambda: EagerCapture().capture, refused.append)
        return kind.linear(torch.zeros(4, 4), None).name

    assert chosen(candidates) == "skinny-triton"
    assert chosen(candidates[:1]) == "torch"
    assert len(refused) == 2
    assert refused[0].startswith("skinny linears, triton-overlapped: ")


def test_every_kernel_was_compiled_for_both_devices(compiled: list[dict[str, Any]]) -> None:
    kinds = {(kernel["name"], kernel["is_gated"]) for kernel in compiled}
    assert kinds == {("_linear", False), ("_add_norm_linear", False), ("_add_norm_linear", True)}
    for arch, overlap in ((90, True), (90, False), (86, False)):
        for rows in (1, 4):
            chosen = [k for k in compiled if (k["arch"], k["overlap"], k["rows"]) == (arch, overlap, rows)]
            assert {(kernel["name"], kernel["is_gated"]) for kernel in chosen} == kinds


def test_registers_and_shared_memory_suffice(compiled: list[dict[str, Any]]) -> None:
    for kernel in compiled:
        assert kernel["stack_bytes"] <= 64, kernel
        # No weight passes through shared memory: a row's part and the warps' sums do.
        assert kernel["shared"] <= 1 << 10, kernel


def test_overlap_is_in_the_code_and_in_the_launch_or_in_neither(compiled: list[dict[str, Any]]) -> None:
    for kernel in compiled:
        for sign in ("launch_pdl", "launches_dependents", "waits"):
            assert kernel[sign] == kernel["overlap"], kernel


def test_weights_are_asked_for_before_the_wait_and_nothing_is_written(compiled: list[dict[str, Any]]) -> None:
    """As many as are to be under way, 16 bytes at a time. Nothing is loaded from where the kernel before may write: x,
    the first parameter, and what is added to it, the second of those that norm."""
    overlapped = [kernel for kernel in compiled if kernel["overlap"]]
    assert {kernel["width"] for kernel in overlapped} >= {1024, 2560, 4096}
    for kernel in overlapped:
        assert kernel["stores_before_wait"] == 0, kernel
        assert kernel["wide_loads_before_wait"] == kernel["tile_loads"], kernel
        written, weight = ({0}, 1) if kernel["name"] == "_linear" else ({0, 1}, 3)
        assert weight in kernel["sources_before_wait"], kernel
        assert not written & set(kernel["sources_before_wait"]), kernel


def test_programs_reach_every_multiprocessor(compiled: list[dict[str, Any]]) -> None:
    for kernel in compiled:
        if kernel["arch"] == 90:
            assert kernel["num_programs"] >= 256, kernel
