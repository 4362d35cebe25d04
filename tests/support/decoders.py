"""Loads decoders with either kind of kernels."""

from dataclasses import dataclass

import pytest
import torch

from pagewire.wire.launch import CpuKernelKind, Quantization
from pagewire.wire.model import DType, ModelSpec
from pagewire.worker.cpu.kernels import CpuKernels, choose_kernels
from pagewire.worker.cpu.native_ops import unsupported_shape
from pagewire.worker.cpu.runner import Model
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.native.library import LIBRARY_FILE
from pagewire.worker.weights.build import TORCH_DTYPES, load_decoder

KINDS: list[CpuKernelKind] = ["native", "torch"]


def kernels_for(spec: ModelSpec, dtype: DType, kind: CpuKernelKind, quantization: Quantization = "none") -> CpuKernels:
    """Skips the test where the package was built without its library, or the model's shape does not suit it."""
    if kind == "native" and (reason := unsupported_shape(spec.decoder)):
        pytest.skip(reason)
    if kind == "native" and not LIBRARY_FILE.exists():
        pytest.skip("built without the native library")
    return choose_kernels(spec.decoder, TORCH_DTYPES[dtype], torch.get_num_threads(), kind, quantization)


def decoder_for(spec: ModelSpec, dtype: DType, kind: CpuKernelKind, quantization: Quantization = "none") -> Decoder:
    """The model with kernels of its own."""
    return _load(spec, dtype, kernels_for(spec, dtype, kind, quantization))


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as a worker of one rank runs it."""

    decoder: Decoder
    model: Model
    """What runs the decoder."""
    kernels: CpuKernels


def served_model_for(
    spec: ModelSpec, dtype: DType, kind: CpuKernelKind, quantization: Quantization = "none"
) -> ServedModel:
    """The model with kernels of its own."""
    kernels = kernels_for(spec, dtype, kind, quantization)
    decoder = _load(spec, dtype, kernels)
    return ServedModel(decoder, kernels.model(decoder), kernels)


def _load(spec: ModelSpec, dtype: DType, kernels: CpuKernels) -> Decoder:
    return load_decoder(spec, dtype, kernels.attention, lambda stage, fraction: None, kernels.ops, kernels.linears)
