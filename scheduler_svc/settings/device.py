"""Device choice: what this machine computes with, the device and the type of weights that `auto` stands for.

The supervisor decides, once, because the engine, the frontends and the worker must all be told the same.
"""

from collections.abc import Mapping
from pathlib import Path

from pagewire.scheduler_svc.settings.settings import Settings
from pagewire.scheduler_svc.startup_errors import SettingsError
from pagewire.wire.launch import Device
from pagewire.wire.model import DecoderConfig, DType, local_decoder

DEVICE_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "cuda": {"max_num_seqs": 256, "max_num_batched_tokens": 8192, "max_prefill_tokens_per_step": 2048}
}
"""Defaults of a device that is not like a CPU, by the device that is set. A GPU reads its weights once for 256
sequences as for one, and a step of prompts must be large to keep it busy: an H200 cannot compute 8,192 tokens of
Qwen3-0.6B in less than 10 ms, nor 2,048, for which running streams wait, in less than 3."""

CPU_MAX_MODEL_LEN = 8192
"""What max_model_len defaults to on a CPU where the model could do more: 64 sequences of Qwen3-0.6B's 40,960 tokens
would reserve 300 GB of KV."""

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
"""Flags in /proc/cpuinfo of CPUs that multiply bfloat16 in hardware (x86 first, then Arm). Without one, bfloat16 is
emulated and slower than float32."""


def choose_device(settings: Settings) -> Device:
    """The CPU where nobody has asked this machine what `auto` is; see `auto_device`."""
    return "cpu" if settings.device == "auto" else settings.device


def choose_dtype(settings: Settings, device: Device, cpuinfo: str) -> DType:
    """Resolve `auto` from the text of /proc/cpuinfo."""
    if settings.dtype != "auto":
        return settings.dtype
    if device != "cpu":
        return "bfloat16"
    flags = {
        flag
        for line in cpuinfo.splitlines()
        if line.partition(":")[0].strip().lower() in ("flags", "features")
        for flag in line.partition(":")[2].split()
    }
    return "bfloat16" if flags & _BF16_FLAGS else "float32"


def read_cpuinfo() -> str:
    """The text of /proc/cpuinfo, empty where there is none."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def choose_max_model_len(settings: Settings, device: Device, decoder: DecoderConfig) -> int:
    """Resolve max_model_len. Raises SettingsError where the setting asks for more than the model can do.

    The decoder attends to everything, so a sliding window limits the length: up to it both are the same.
    """
    limit, reason = context_length(decoder), "max_position_embeddings"
    if decoder.sliding_window is not None and decoder.sliding_window < limit:
        limit, reason = decoder.sliding_window, "sliding_window"
    if settings.max_model_len is None:
        return min(limit, CPU_MAX_MODEL_LEN) if device == "cpu" else limit
    if settings.max_model_len > limit:
        raise SettingsError(f"max_model_len = {settings.max_model_len} is more than the model's {reason} of {limit}")
    return settings.max_model_len


def context_length(decoder: DecoderConfig) -> int:
    """Most positions that the rotary embedding is made for. YaRN's files often keep the length from before scaling."""
    scaling = decoder.rope_scaling
    if scaling is None or scaling.kind != "yarn" or scaling.original_max_position_embeddings is None:
        return decoder.max_position_embeddings
    return max(decoder.max_position_embeddings, int(scaling.original_max_position_embeddings * scaling.factor))


def check_tensor_parallel(settings: Settings, device: Device, decoder: DecoderConfig) -> None:
    """Raise SettingsError where the model does not divide over the ranks, or ranks of other hosts make no sense."""
    try:
        local_decoder(decoder, settings.tensor_parallel_size)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if settings.remote_workers and device == "sim":
        raise SettingsError(f"remote_workers = {settings.remote_workers}: device sim has none on other hosts")
