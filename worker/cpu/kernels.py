"""The CPU's kernels, chosen once at start: the native library's, or torch's operators.

Both are complete, and a worker uses one or the other for all of it: linears, attention, what lies between, sampling.
`cpu_linears` says for a report which kinds of linear there are to choose from.

What one costs against the other stands in this folder's README.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pagewire.wire.launch import AttentionBackendName, CpuKernelKind, Quantization
from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.base import AttentionBackend
from pagewire.worker.attention.paged_native import PagedNativeAttention
from pagewire.worker.attention.paged_torch import PagedTorchAttention
from pagewire.worker.cpu.captured_decoder import CapturedDecoder
from pagewire.worker.cpu.native_ops import NativeOps, unsupported_shape
from pagewire.worker.cpu.runner import Model
from pagewire.worker.linears.int8 import (
    Int8Unavailable,
    NativeInt8Linear,
    NativeInt8Linears,
    OneDnnInt8Linear,
    int8_on_torch,
)
from pagewire.worker.linears.native import NativeLinear, NativeLinears
from pagewire.worker.linears.torch import OneDnnLinear, TorchLinear, TorchLinears, choose_linear
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.model.layers import LinearKind
from pagewire.worker.model.ops import DecoderOps, TorchOps
from pagewire.worker.native.library import NativeLibrary, NativeUnavailable, load_library
from pagewire.worker.sampling.native_sampler import NativeSampler
from pagewire.worker.sampling.sampler import Sampler
from pagewire.worker.sampling.special_rows import TokenSampler


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuKernels:
    """One model's kernels. They hold scratch memory, so they serve one runner."""

    name: str
    """`native (avx512bf16)` or `torch`."""
    attention: AttentionBackend
    ops: DecoderOps
    linears: LinearKind
    sampler: Callable[[int], TokenSampler]
    """Makes the sampler for a vocabulary."""
    model: Callable[[Decoder], Model]
    """What runs a decoder that was loaded with these kernels and is no rank of a group."""
    note: str
    """Why it is torch's, where the native library was possible."""


def kernels_of_attention(backend: AttentionBackendName, wanted: CpuKernelKind) -> CpuKernelKind:
    """The kernels that an attention backend comes with. Raises ValueError where a CPU does not have it, or where other
    kernels are wanted."""
    if backend == "auto":
        return wanted
    kinds: dict[str, CpuKernelKind] = {PagedNativeAttention.name: "native", PagedTorchAttention.name: "torch"}
    if backend not in kinds:
        raise ValueError(
            f"attention_backend is {backend}, which is not for CPUs; device cpu has {' and '.join(sorted(kinds))}"
        )
    if wanted not in ("auto", kinds[backend]):
        raise ValueError(f"attention_backend is {backend}, which comes with cpu_kernels {kinds[backend]}, not {wanted}")
    return kinds[backend]


def choose_kernels(
    config: DecoderConfig,
    dtype: torch.dtype,
    num_threads: int,
    wanted: CpuKernelKind = "auto",
    quantization: Quantization = "none",
) -> CpuKernels:
    """The native kernels where they load and fit the model's shape, else torch's.

    Raises NativeUnavailable where `wanted` is native and they do not; Int8Unavailable where neither kind multiplies
    int8 on this machine.
    """
    if wanted == "torch":
        return _torch_kernels(config, dtype, num_threads, quantization, "")
    try:
        if reason := unsupported_shape(config):
            raise NativeUnavailable(reason)
        library = load_library(num_threads)
    except NativeUnavailable as error:
        if wanted == "native":
            raise
        return _torch_kernels(config, dtype, num_threads, quantization, str(error))
    # The library has threads of its own, and torch's would wait for the same cores.
    torch.set_num_threads(1)
    return CpuKernels(
        name=f"native ({library.level})",
        attention=PagedNativeAttention(library, config, dtype),
        ops=NativeOps(library, config, dtype),
        linears=NativeLinears(library, dtype) if quantization == "none" else NativeInt8Linears(library, dtype),
        sampler=lambda vocab_size: NativeSampler(library, vocab_size),
        model=lambda decoder: CapturedDecoder(decoder, library),
        note="",
    )


def _torch_kernels(
    config: DecoderConfig, dtype: torch.dtype, num_threads: int, quantization: Quantization, note: str
) -> CpuKernels:
    torch.set_num_threads(num_threads)
    linears: LinearKind
    if quantization == "int8":
        linears = int8_on_torch()
    else:
        linears = TorchLinears(choose_linear(torch.device("cpu"), dtype))
    return CpuKernels(
        name="torch",
        attention=PagedTorchAttention(),
        ops=TorchOps(config),
        linears=linears,
        sampler=Sampler,
        model=lambda decoder: decoder,
        note=note,
    )


_FOR_INT8 = "with --quantization int8"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuLinear:
    """One kind of linear, for a report."""

    name: str
    available: bool
    chosen: bool
    """A worker without further settings would use it, for one dtype at least."""
    note: str


def cpu_linears(library: NativeLibrary | None, why_not: str) -> list[CpuLinear]:
    """Best first. Without a `library`, `why_not` says why it is not used."""
    has_library = library is not None
    level = f"on {library.level}" if library is not None else why_not
    packing = "; bfloat16 in 12 bits a value, without loss" if library is not None and library.compacts else ""
    kinds = {dtype: choose_linear(torch.device("cpu"), dtype) for dtype in (torch.bfloat16, torch.float32)}
    of_torch = []
    for kind in (OneDnnLinear, TorchLinear):
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype, best in kinds.items() if best is kind)
        of_torch.append(
            CpuLinear(
                name=kind.name,
                available=kind is TorchLinear or bool(dtypes),
                chosen=bool(dtypes) and not has_library,
                note=f"without the native library, for {dtypes}" if dtypes else "",
            )
        )
    try:
        int8_on_torch()
        without_int8 = ""
    except Int8Unavailable as error:
        without_int8 = str(error)
    return [
        CpuLinear(name=NativeLinear.name, available=has_library, chosen=has_library, note=level + packing),
        *of_torch,
        CpuLinear(
            name=NativeInt8Linear.name,
            available=has_library,
            chosen=False,
            note=f"{_FOR_INT8}, {level}" if has_library else level,
        ),
        CpuLinear(
            name=OneDnnInt8Linear.name,
            available=not without_int8,
            chosen=False,
            note=without_int8 or f"{_FOR_INT8}, without the native library",
        ),
    ]
