"""The probe: what this machine has for a worker, as one JSON object. It is the part of `pagewire doctor` that only a
process with torch can tell. It must work, and say what is missing, where torch is not installed or does not import."""

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

import msgspec

from pagewire.worker.launch import installed_version
from pagewire.worker.native.machine import available_memory_bytes, instruction_sets, processor_name, usable_cores

if TYPE_CHECKING:
    from pagewire.worker.attention.choice import Candidate, CudaCard


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """Something a worker could run on."""

    device: str
    name: str
    memory_bytes: int | None
    usable: bool
    """This version runs on it."""
    note: str


class BackendReport(msgspec.Struct, frozen=True, kw_only=True):
    """An attention or linear backend."""

    device: str
    name: str
    available: bool
    chosen: bool
    """A worker on that device would use it."""
    note: str


class MissingReport(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not here."""

    what: str
    consequence: str
    install: str


class TorchReport(msgspec.Struct, frozen=True, kw_only=True):
    """The torch that is installed, and what it makes of the processor."""

    version: str
    num_threads: int
    cpu_capability: str
    """The instruction set torch's own kernels use."""


class ProbeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `probe` found."""

    usable_cores: int
    instruction_sets: list[str]
    torch: TorchReport | None
    devices: list[DeviceReport]
    attention_backends: list[BackendReport]
    linear_backends: list[BackendReport]
    missing: list[MissingReport]


_SIM = DeviceReport(device="sim", name="no model, deterministic tokens", memory_bytes=None, usable=True, note="")


def probe() -> ProbeReport:
    """Look at this machine. Imports torch if it can."""
    try:
        return _probe_with_torch()
    except (ImportError, OSError) as error:  # OSError: a shared library of torch's that does not load
        found = installed_version("torch")
        consequence = f"torch {found} does not import: {error}" if found else "a worker can run on device sim only"
        cpu = DeviceReport(device="cpu", name=processor_name(), memory_bytes=None, usable=False, note="needs torch")
        return ProbeReport(
            usable_cores=usable_cores(),
            instruction_sets=instruction_sets(),
            torch=None,
            devices=[cpu, _SIM],
            attention_backends=[],
            linear_backends=[],
            missing=[MissingReport(what="torch", consequence=consequence, install="pip install 'pagewire[worker]'")],
        )


def _probe_with_torch() -> ProbeReport:
    import torch

    from pagewire.worker.attention.choice import CudaCard, attention_candidates
    from pagewire.worker.attention.paged_native import PagedNativeAttention
    from pagewire.worker.attention.paged_torch import PagedTorchAttention
    from pagewire.worker.cpu.kernels import cpu_linears
    from pagewire.worker.kernels.contract import MAX_SKINNY_ROWS
    from pagewire.worker.linears.torch import OneDnnLinear, TorchLinear
    from pagewire.worker.native.library import NativeUnavailable, load_library

    cores = usable_cores()
    torch.set_num_threads(cores)
    card = CudaCard.of(torch.device("cuda", 0)) if torch.cuda.is_available() else None
    cpu = DeviceReport(
        device="cpu",
        name=processor_name(),
        memory_bytes=available_memory_bytes(),
        usable=True,
        note="memory available now",
    )
    library, native_error = None, ""
    try:
        library = load_library(cores)
    except NativeUnavailable as error:
        native_error = str(error)
    on_cpu = cpu_linears(library, native_error)
    linears = [
        BackendReport(device="cpu", name=kind.name, available=kind.available, chosen=kind.chosen, note=kind.note)
        for kind in on_cpu
    ]
    if card is not None:
        note = f"cuBLAS; up to {MAX_SKINNY_ROWS} rows by Triton's kernels, where a start finds that they work"
        linears.append(BackendReport(device="cuda", name=TorchLinear.name, available=True, chosen=True, note=note))
    missing = []
    if card is not None and importlib.util.find_spec("triton") is None:
        missing.append(
            MissingReport(
                what="Triton", consequence="device cuda cannot be used", install="pip install 'pagewire[cuda]'"
            )
        )
    if library is None:
        missing.append(
            MissingReport(
                what="native CPU kernels",
                consequence=f"a step of 8 or more sequences takes nearly twice as long; {native_error}",
                install="install a C++ compiler (g++), then pagewire again: pip install --force-reinstall --no-deps",
            )
        )
        if not any(kind.name == OneDnnLinear.name and kind.available for kind in on_cpu):
            missing.append(
                MissingReport(
                    what="oneDNN packed linears",
                    consequence="linear layers take about twice as long",
                    install="a torch build with oneDNN (the wheels on PyPI have it)",
                )
            )
    return ProbeReport(
        usable_cores=cores,
        instruction_sets=instruction_sets(),
        torch=TorchReport(
            version=str(torch.__version__),
            num_threads=torch.get_num_threads(),
            cpu_capability=torch.backends.cpu.get_cpu_capability(),
        ),
        devices=[cpu, *_cuda_devices(), _SIM],
        attention_backends=[
            BackendReport(
                device="cpu",
                name=PagedNativeAttention.name,
                available=library is not None,
                chosen=library is not None,
                note=native_error if library is None else f"with its norms and samplers, on {library.level}",
            ),
            BackendReport(device="cpu", name=PagedTorchAttention.name, available=True, chosen=library is None, note=""),
            *_reported(attention_candidates(card, importlib.import_module)),
        ],
        linear_backends=linears,
        missing=missing,
    )


def _reported(candidates: "list[Candidate]") -> list[BackendReport]:
    """CUDA's attention, best first. The first that is available is chosen for a model in bf16 that leaves the block
    size open."""
    best = next((candidate.name for candidate in candidates if not candidate.missing), None)
    return [
        BackendReport(
            device="cuda",
            name=candidate.name,
            available=not candidate.missing,
            chosen=candidate.name == best,
            note=candidate.missing or f"{candidate.found}; {_block_sizes(candidate)}",
        )
        for candidate in candidates
    ]


def _block_sizes(candidate: "Candidate") -> str:
    multiple = f"multiples of {candidate.block_size_multiple}" if candidate.block_size_multiple > 1 else "any"
    return f"block size {candidate.default_block_size}, takes {multiple}"


def _cuda_devices() -> list[DeviceReport]:
    import torch

    from pagewire.worker.attention.choice import CudaCard

    if not torch.cuda.is_available():
        return []
    reports = []
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        memory_bytes = torch.cuda.get_device_properties(device).total_memory
        reports.append(cuda_report(index, CudaCard.of(device), memory_bytes, importlib.import_module))
    return reports


def cuda_report(
    index: int, card: "CudaCard", memory_bytes: int, import_module: Callable[[str], ModuleType]
) -> DeviceReport:
    """A card; a worker's own kernels must run on it, whatever computes attention."""
    from pagewire.worker.attention.choice import attention_candidates

    triton = next(candidate for candidate in attention_candidates(card, import_module) if candidate.name == "triton")
    return DeviceReport(
        device=f"cuda:{index}",
        name=card.name,
        memory_bytes=memory_bytes,
        usable=not triton.missing,
        note=triton.missing or triton.found,
    )
