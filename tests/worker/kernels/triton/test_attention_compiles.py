"""The attention kernels compiled for real devices, which needs none: what the interpreter lets pass and a compiler does
not, and whether tiles fit the shared memory they were chosen for.

In a process of its own: here, Triton interprets.
"""

from typing import Any

COMPILED_BY = "compile_attention.py"


def test_every_kind_was_compiled(compiled: list[dict[str, Any]]) -> None:
    kinds = {(kernel["name"], kernel["arch"], kernel["dtype"]) for kernel in compiled}
    assert {(name, 90, dtype) for name in ("decode", "prefill") for dtype in ("bf16", "fp32")} <= kinds
    assert {("decode", 86, "bf16"), ("prefill", 86, "bf16")} <= kinds


def test_tiles_fit(compiled: list[dict[str, Any]]) -> None:
    for kernel in compiled:
        assert kernel["shared"] <= kernel["shared_limit"], kernel


def test_four_decode_programs_share_a_hopper_multiprocessor(compiled: list[dict[str, Any]]) -> None:
    """What a result is stored through lies beside the tiles that are under way. The device takes a KB per program."""
    for kernel in compiled:
        if (kernel["name"], kernel["arch"], kernel["dtype"]) == ("decode", 90, "bf16"):
            assert 4 * (kernel["shared"] + 1024) <= 228 << 10, kernel


def test_nothing_spills_on_hopper_in_bf16(compiled: list[dict[str, Any]]) -> None:
    for kernel in compiled:
        if (kernel["arch"], kernel["dtype"]) == (90, "bf16"):
            assert kernel["spilled_bytes"] == 0, kernel


def test_products_use_tensor_cores_and_tiles_are_requested_early(compiled: list[dict[str, Any]]) -> None:
    """Two tiles or more under way on Hopper: shared memory holds more than one tile of keys and values."""
    for kernel in compiled:
        if kernel["dtype"] == "bf16":
            assert kernel["tensor_core_products"] > 0, kernel
            assert kernel["asynchronous_copies"] > 0, kernel
        if (kernel["arch"], kernel["dtype"]) == (90, "bf16"):
            assert kernel["shared"] >= 2 * kernel["tile_bytes"], kernel


def test_partial_results_are_there_before_a_program_arrives(compiled: list[dict[str, Any]]) -> None:
    """The interpreter runs one program after the other and would not notice."""
    decodes = [kernel for kernel in compiled if kernel["name"] == "decode"]
    assert decodes
    for kernel in decodes:
        assert kernel["arrives_in_order"], kernel
