"""The exact kernels compiled for real devices, which needs none: that prompts and decodes, and linears of any number of
rows, multiply by the same instruction, which the interpreter cannot say.

In a process of its own: here, Triton interprets.
"""

import re
from typing import Any

COMPILED_BY = "compile_exact.py"


def kind(kernel: dict[str, Any]) -> tuple[Any, ...]:
    return (kernel["arch"], kernel["bf16"], *kernel["heads"])


def test_every_kind_was_compiled(compiled: list[dict[str, Any]]) -> None:
    found = {(kernel["name"], kernel["arch"], kernel["bf16"]) for kernel in compiled}
    names = ("decode", "prefill", "linear")
    assert found == {(name, arch, True) for name in names for arch in (90, 86, 80)} | {
        (name, 90, False) for name in names
    }


def test_prompts_and_decodes_multiply_alike(compiled: list[dict[str, Any]]) -> None:
    prompts = {kind(kernel): kernel["products"] for kernel in compiled if kernel["name"] == "prefill"}
    decodes = {kind(kernel): kernel["products"] for kernel in compiled if kernel["name"] == "decode"}
    assert len(prompts) == 6
    assert {each: set(products) for each, products in prompts.items()} == {
        each: set(products) for each, products in decodes.items()
    }


def test_a_linear_s_tiles_multiply_alike(compiled: list[dict[str, Any]]) -> None:
    """Rows and depth of the instruction; how many outputs it has at once is no part of an output's sum."""
    for kernel in compiled:
        if kernel["name"] == "linear" and kernel["bf16"]:
            shapes = {re.sub(r"n\d+", "", product) for product in kernel["products"]}
            assert shapes == ({"wgmma.mma_async.m64k16"} if kernel["arch"] == 90 else {"mma.m16k16"}), kernel


def test_nothing_is_contracted(compiled: list[dict[str, Any]]) -> None:
    assert not any(kernel["contracts"] for kernel in compiled)


def test_tiles_fit(compiled: list[dict[str, Any]]) -> None:
    for kernel in compiled:
        assert kernel["shared"] <= kernel["shared_limit"], kernel


def test_nothing_spills_on_hopper_in_bf16(compiled: list[dict[str, Any]]) -> None:
    for kernel in compiled:
        if (kernel["arch"], kernel["bf16"]) == (90, True):
            assert kernel["stack_bytes"] == 0, kernel


def test_partial_results_are_there_before_a_program_arrives(compiled: list[dict[str, Any]]) -> None:
    """The interpreter runs one program after the other and would not notice."""
    for kernel in compiled:
        assert kernel["arrives_in_order"] == (kernel["name"] == "decode"), kernel


def test_what_overlaps_touches_nothing_before_it_waits(compiled: list[dict[str, Any]]) -> None:
    assert any(kernel["overlap"] for kernel in compiled)
    for kernel in compiled:
        assert kernel["waits"] == kernel["launch_pdl"] == kernel["overlap"], kernel
        assert kernel["memory_before_wait"] == 0, kernel
