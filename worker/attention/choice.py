"""The choice of attention on a CUDA device: the first candidate whose package imports, and which suits the card, the
model and the block size.

    flash-attention-3 ─▶ flash-attention-2 ─▶ triton

A candidate can be asked for by name; it is then this one or none. Packages are imported only where a card is that they
could serve.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import cast

import torch

from pagewire.wire.launch import AttentionBackendName
from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.base import AttentionBackend
from pagewire.worker.attention.flash_attention import (
    FlashAttention2,
    FlashAttention2Module,
    FlashAttention3,
    FlashAttention3Module,
)
from pagewire.worker.attention.triton import TritonAttention
from pagewire.worker.kernels.contract import Kernels

_FLASH_3_FUNCTIONS = ("flash_attn_with_kvcache", "get_scheduler_metadata")
_LEAST_FLASH_2 = (2, 8)
_LEAST_CAPABILITY = (8, 0)
_MAX_FLASH_HEAD_DIM = 256

ImportModule = Callable[[str], ModuleType]
"""As `importlib.import_module`."""


class AttentionUnavailable(Exception):
    """No candidate will do; the message says why, and what there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaCard:
    """A device, as far as attention depends on it."""

    name: str
    capability: tuple[int, int]
    num_sms: int

    @classmethod
    def of(cls, device: torch.device) -> "CudaCard":
        properties = torch.cuda.get_device_properties(device)
        return cls(
            name=properties.name,
            capability=(properties.major, properties.minor),
            num_sms=properties.multi_processor_count,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionNeeds:
    """What a model asks of its attention."""

    config: DecoderConfig
    """With this rank's numbers of heads."""
    dtype: torch.dtype
    device: torch.device
    max_num_seqs: int
    max_model_len: int
    block_size: int | None
    """None: the backend's default."""
    kernels: Kernels
    """Our own, by which the last candidate computes."""


Build = Callable[[AttentionNeeds, CudaCard], AttentionBackend]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One kind of attention on one card."""

    name: AttentionBackendName
    block_size_multiple: int
    default_block_size: int
    is_flash: bool
    """Takes bf16 alone, and head dimensions that are multiples of 8 up to 256."""
    found: str
    """What was found, with its version."""
    missing: str
    """Why it is not available; empty where it is."""
    build: Build | None
    """None where it is missing."""

    def unsuited(self, needs: AttentionNeeds) -> str:
        """Why it cannot serve a model; empty where it can."""
        if self.missing:
            return self.missing
        if needs.block_size is not None and needs.block_size % self.block_size_multiple:
            return f"block_size is {needs.block_size}; it takes multiples of {self.block_size_multiple}"
        head_dim = needs.config.head_dim
        if self.is_flash and needs.dtype != torch.bfloat16:
            return f"dtype is {str(needs.dtype).removeprefix('torch.')}; it takes bfloat16"
        if self.is_flash and (head_dim % 8 or head_dim > _MAX_FLASH_HEAD_DIM):
            return f"head_dim is {head_dim}; it takes multiples of 8 up to {_MAX_FLASH_HEAD_DIM}"
        return ""


def attention_candidates(card: CudaCard | None, import_module: ImportModule) -> list[Candidate]:
    """All candidates, best first. Without a card none is available and nothing is imported."""
    return [_flash_3(card, import_module), _flash_2(card, import_module), _triton(card, import_module)]


def choose_attention(
    candidates: list[Candidate], wanted: AttentionBackendName, needs: AttentionNeeds, card: CudaCard
) -> AttentionBackend:
    """The first candidate that will do, or the one that is wanted. Raises AttentionUnavailable."""
    unsuited = {candidate.name: candidate.unsuited(needs) for candidate in candidates}
    for candidate in candidates:
        if wanted in ("auto", candidate.name) and not unsuited[candidate.name] and candidate.build is not None:
            return candidate.build(needs, card)
    available = ", ".join(name for name, reason in unsuited.items() if not reason) or "none"
    if wanted == "auto":
        reasons = "; ".join(f"{name}: {reason}" for name, reason in unsuited.items())
        raise AttentionUnavailable(f"no attention backend for {card.name}: {reasons}")
    reason = unsuited.get(wanted, "it is not for CUDA devices")
    raise AttentionUnavailable(
        f"attention_backend is {wanted}, which {card.name} does not have for this model: {reason}; "
        f"available: {available}"
    )


def _candidate(
    kind: type[FlashAttention3] | type[FlashAttention2] | type[TritonAttention],
    name: AttentionBackendName,
    *,
    found: str = "",
    missing: str = "",
    build: Build | None = None,
) -> Candidate:
    return Candidate(
        name=name,
        block_size_multiple=kind.block_size_multiple,
        default_block_size=kind.default_block_size,
        is_flash=kind is not TritonAttention,
        found=found,
        missing=missing,
        build=build,
    )


def _flash_3(card: CudaCard | None, import_module: ImportModule) -> Candidate:
    name: AttentionBackendName = "flash-attention-3"
    if card is None:
        return _candidate(FlashAttention3, name, missing="no CUDA device")
    if card.capability[0] != 9:
        return _candidate(FlashAttention3, name, missing=f"{card.name} is not of the Hopper generation")
    module, missing = _imported("flash_attn_interface", import_module)
    if module is None:
        return _candidate(FlashAttention3, name, missing=missing)
    absent = [function for function in _FLASH_3_FUNCTIONS if not hasattr(module, function)]
    if absent:
        return _candidate(FlashAttention3, name, missing=f"flash_attn_interface has no {' and no '.join(absent)}")
    flash = cast(FlashAttention3Module, module)
    return _candidate(
        FlashAttention3,
        name,
        found="flash_attn_interface",
        build=lambda needs, card: FlashAttention3(flash, needs.config, num_sms=card.num_sms),
    )


def _flash_2(card: CudaCard | None, import_module: ImportModule) -> Candidate:
    name: AttentionBackendName = "flash-attention-2"
    if missing := _too_old(card):
        return _candidate(FlashAttention2, name, missing=missing)
    module, missing = _imported("flash_attn", import_module)
    if module is None:
        return _candidate(FlashAttention2, name, missing=missing)
    version = str(getattr(module, "__version__", "of no version"))
    if _numbers(version) < _LEAST_FLASH_2:
        return _candidate(FlashAttention2, name, missing=f"flash_attn is {version}; it takes 2.8 or later")
    flash = cast(FlashAttention2Module, module)
    return _candidate(
        FlashAttention2, name, found=f"flash_attn {version}", build=lambda needs, card: FlashAttention2(flash)
    )


def _triton(card: CudaCard | None, import_module: ImportModule) -> Candidate:
    name: AttentionBackendName = "triton"
    if missing := _too_old(card):
        return _candidate(TritonAttention, name, missing=missing)
    module, missing = _imported("triton", import_module)
    if module is None:
        return _candidate(TritonAttention, name, missing=missing)
    version = str(getattr(module, "__version__", ""))
    return _candidate(TritonAttention, name, found=f"triton {version}".rstrip(), build=_build_triton)


def _build_triton(needs: AttentionNeeds, card: CudaCard) -> AttentionBackend:
    return TritonAttention(
        needs.config,
        needs.kernels,
        needs.device,
        max_num_seqs=needs.max_num_seqs,
        max_model_len=needs.max_model_len,
        num_sms=card.num_sms,
    )


def _too_old(card: CudaCard | None) -> str:
    if card is None:
        return "no CUDA device"
    if card.capability < _LEAST_CAPABILITY:
        have, least = (".".join(map(str, pair)) for pair in (card.capability, _LEAST_CAPABILITY))
        return f"{card.name} has compute capability {have}; it takes {least} or more"
    return ""


def _imported(name: str, import_module: ImportModule) -> tuple[ModuleType | None, str]:
    """The module, or why it does not import. A package that was built for another torch, CUDA or Python may raise
    anything, and there is another candidate."""
    try:
        return import_module(name), ""
    except Exception as error:
        return None, f"{name} does not import: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version; (0,) where it does not begin with one."""
    parts = version.split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else (0,)
