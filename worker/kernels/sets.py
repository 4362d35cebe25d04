"""The sets of kernels that there are: the reference in torch, for any device, and Triton's, for CUDA devices."""

from dataclasses import replace
from functools import partial

from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.kernels.reference import (
    elementwise,
    logprobs,
    paged_decode,
    paged_prefill,
    processors,
    sampling,
    skinny,
    step_state,
)


def reference_kernels() -> Kernels:
    """The definitions. They are not fast, and may allocate and read tensors back."""
    return Kernels(
        name="reference",
        start_rms_norm=elementwise.start_rms_norm,
        add_rms_norm=elementwise.add_rms_norm,
        rotate_and_store=elementwise.rotate_and_store,
        silu_mul=elementwise.silu_mul,
        linear=skinny.linear,
        add_norm_linear=skinny.add_norm_linear,
        add_norm_gate_up=skinny.add_norm_gate_up,
        paged_decode=paged_decode.paged_decode,
        paged_prefill=paged_prefill.paged_prefill,
        apply_changes=step_state.apply_changes,
        prepare_step=step_state.prepare_step,
        sample=sampling.sample,
        finish_step=step_state.finish_step,
        process=processors.process,
        finish_changed=processors.finish_changed,
        logprobs=logprobs.logprobs,
    )


def triton_kernels(*, overlap: bool) -> Kernels:
    """`overlap`: a kernel's programs start before the one before it is over, which devices can from sm_90 on. Raises
    ImportError where Triton is not installed."""
    # Imported here, because Triton is installed with the `cuda` extra alone.
    from pagewire.worker.kernels.triton import (
        elementwise,
        logprobs,
        paged_decode,
        paged_prefill,
        processors,
        sampling,
        skinny,
        step_state,
    )

    return Kernels(
        name="triton-overlapped" if overlap else "triton",
        start_rms_norm=partial(elementwise.start_rms_norm, overlap=overlap),
        add_rms_norm=partial(elementwise.add_rms_norm, overlap=overlap),
        rotate_and_store=partial(elementwise.rotate_and_store, overlap=overlap),
        silu_mul=partial(elementwise.silu_mul, overlap=overlap),
        linear=partial(skinny.linear, overlap=overlap),
        add_norm_linear=partial(skinny.add_norm_linear, overlap=overlap),
        add_norm_gate_up=partial(skinny.add_norm_gate_up, overlap=overlap),
        paged_decode=partial(paged_decode.paged_decode, overlap=overlap),
        paged_prefill=paged_prefill.paged_prefill,
        apply_changes=step_state.apply_changes,
        prepare_step=step_state.prepare_step,
        sample=sampling.sample,
        finish_step=step_state.finish_step,
        process=processors.process,
        finish_changed=processors.finish_changed,
        logprobs=logprobs.logprobs,
    )


def exact_kernels(*, overlap: bool) -> Kernels:
    """Triton's, by which a row's results follow from its own history alone; `linear` takes any number of rows.
    `overlap` and ImportError as of `triton_kernels`."""
    from pagewire.worker.kernels.triton import exact_attention, exact_linear

    return replace(
        triton_kernels(overlap=overlap),
        name="triton-exact-overlapped" if overlap else "triton-exact",
        is_exact=True,
        linear=partial(exact_linear.linear, overlap=overlap),
        paged_decode=partial(exact_attention.paged_decode, overlap=overlap),
        paged_prefill=exact_attention.paged_prefill,
    )
