"""How large the parts are: on a GPU, and on a CPU where only the course of things is of interest."""

from __future__ import annotations

from typing import Literal

import msgspec

Length = tuple[int, int]
"""Least and most tokens."""
Setting = str | int | float | bool


class DecodeCase(msgspec.Struct, frozen=True, kw_only=True):
    """Streams that decode together around a context."""

    streams: int
    prompt: int
    output: int
    rounds: int


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes and lengths of everything that is run."""

    is_dry: bool
    device: Literal["cuda", "cpu"]
    copy_bytes: int
    matmul_size: int
    plan_steps: int
    """Of each random stream of plans."""
    replays: int
    """Of a chain of kernels that start before the one before them is over."""
    sampled_vocab: int
    logit_layers: int
    logit_shape: str
    logit_prompt: int
    small_shape: str
    large_shape: str
    settings: dict[str, Setting]
    """Of the service, by name; on a GPU it finds the device itself."""
    restart_streams: int
    restart_output: int
    """Of streams during which the worker is killed."""
    workload_seqs: int
    workload_length: Length
    """Of prompts and of outputs."""
    workload_rounds: int
    one_stream: DecodeCase
    prefill_prompts: int
    prefill_length: int
    prefill_rounds: int
    steady_streams: int
    steady_prompt: int
    steady_output: int
    steady_ramp_s: float
    steady_s: float
    large_case: DecodeCase
    peer_seqs: int
    peer_prompt: Length
    peer_output: int


GPU = Scale(
    is_dry=False,
    device="cuda",
    copy_bytes=4 << 30,
    matmul_size=8192,
    plan_steps=60,
    replays=500,
    sampled_vocab=151_936,
    logit_layers=6,
    logit_shape="qwen3-0.6b",
    logit_prompt=200,
    small_shape="qwen3-0.6b",
    large_shape="qwen3-8b",
    settings={
        "dtype": "bfloat16",
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "max_prefill_tokens_per_step": 8192,
        "max_model_len": 4096,
        "drain_grace_s": 1.0,
    },
    workload_seqs=256,
    workload_length=(100, 1024),
    workload_rounds=3,
    one_stream=DecodeCase(streams=1, prompt=896, output=256, rounds=5),
    prefill_prompts=512,
    prefill_length=1024,
    prefill_rounds=3,
    steady_streams=256,
    steady_prompt=256,
    steady_output=3800,
    steady_ramp_s=3.0,
    steady_s=6.0,
    large_case=DecodeCase(streams=64, prompt=896, output=256, rounds=2),
    restart_streams=16,
    restart_output=3000,
    peer_seqs=128,
    peer_prompt=(100, 512),
    peer_output=128,
)

DRY = Scale(
    is_dry=True,
    device="cpu",
    copy_bytes=16 << 20,
    matmul_size=256,
    plan_steps=15,
    replays=3,
    sampled_vocab=400,
    logit_layers=2,
    logit_shape="tiny",
    logit_prompt=20,
    small_shape="tiny",
    large_shape="tiny",
    settings={
        "device": "cpu",
        "dtype": "float32",
        "num_threads": 1,
        "cpu_kernels": "torch",
        "load_interval_s": 0.1,
        "drain_grace_s": 1.0,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "max_prefill_tokens_per_step": 64,
        "max_model_len": 512,
    },
    workload_seqs=4,
    workload_length=(4, 12),
    workload_rounds=1,
    one_stream=DecodeCase(streams=1, prompt=8, output=8, rounds=1),
    prefill_prompts=4,
    prefill_length=16,
    prefill_rounds=1,
    steady_streams=4,
    steady_prompt=4,
    steady_output=400,
    steady_ramp_s=0.2,
    steady_s=0.4,
    large_case=DecodeCase(streams=4, prompt=8, output=8, rounds=1),
    restart_streams=3,
    restart_output=450,
    peer_seqs=3,
    peer_prompt=(4, 12),
    peer_output=8,
)
