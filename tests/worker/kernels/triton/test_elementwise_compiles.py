"""The elementwise, sampling and step-state kernels compiled for real devices, which needs none: what the interpreter
lets pass and a compiler does not.

In a process of its own: here, Triton interprets.
"""

from typing import Any

COMPILED_BY = "compile_elementwise.py"
_NAMES = {
    "_normalize", "_silu_mul", "_rotate_and_store",
    "_find_maxima", "_weigh", "_pick", "search",
    "_chunk_tops", "_row_tops", "_copy_row",
}  # fmt: skip
_OTHER_NAMES = {"_scatter", "_prepare", "_finish", "_mark", "_process", "_take_tokens"}
"""Which no bfloat16 reaches."""


def test_every_kernel_was_compiled_for_both_devices(compiled: list[dict[str, Any]]) -> None:
    for arch in (90, 80):
        assert {kernel["name"] for kernel in compiled if kernel["arch"] == arch} == _NAMES | _OTHER_NAMES
    assert {kernel["name"] for kernel in compiled if kernel["bf16"]} == _NAMES


def test_registers_and_shared_memory_suffice(compiled: list[dict[str, Any]]) -> None:
    for kernel in compiled:
        assert kernel["stack_bytes"] <= 32, kernel
        assert kernel["shared"] <= 48 << 10, kernel


def test_penalties_are_rounded_at_every_step(compiled: list[dict[str, Any]]) -> None:
    assert {kernel["name"] for kernel in compiled if not kernel["fused"]} == {"_process"}


def test_what_starts_early_waits_before_it_touches_what_a_step_writes(compiled: list[dict[str, Any]]) -> None:
    """Of these, the norm asks for its weight first, its third parameter, and needs the sizes to do so."""
    overlapped = [kernel for kernel in compiled if kernel["overlap"]]
    assert {kernel["name"] for kernel in overlapped} == {"_normalize", "_silu_mul", "_rotate_and_store"}
    for kernel in compiled:
        assert kernel["waits"] == kernel["launch_pdl"] == kernel["overlap"], kernel
        assert kernel["stores_before_wait"] == 0, kernel
        assert set(kernel["sources_before_wait"]) <= ({2} if kernel["name"] == "_normalize" else set()), kernel
