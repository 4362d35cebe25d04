"""Compiles what a service of a shape launches, by bringing one layer of it up as the service does: the parts that are
timed find their kernels compiled. Several of these run at once, and beside the parts that only compare."""

from __future__ import annotations

import msgspec
from gpu.report.results import PartRecord
from gpu.report.scale import Scale
from support.worker_process import sim_launch

from pagewire.scheduler_svc.models.random_shapes import random_spec
from pagewire.wire.launch import WorkerLaunch
from pagewire.worker.cuda.loading import load_onto
from pagewire.worker.cuda.platform import Platform

_KV_CACHE_BYTES = 1 << 30
"""Others use the device too."""


def launch_of(scale: Scale, shape: str) -> WorkerLaunch:
    """As the service's settings make one."""
    settings = scale.settings
    return sim_launch(
        "ipc:///nowhere",
        device="cuda",
        dtype=settings["dtype"],
        model=random_spec(shape, 0),
        max_num_seqs=settings["max_num_seqs"],
        max_model_len=settings["max_model_len"],
        max_num_batched_tokens=settings["max_num_batched_tokens"],
        block_size=None,
    )


def run(scale: Scale, shape: str, platform: Platform, record: PartRecord) -> None:
    """Notes what was taken, and what was not and why."""
    launch = launch_of(scale, shape)
    decoder = msgspec.structs.replace(launch.model.decoder, num_layers=1)
    launch = msgspec.structs.replace(
        launch,
        model=msgspec.structs.replace(launch.model, decoder=decoder),
        kv_cache_bytes=None if scale.is_dry else _KV_CACHE_BYTES,
    )
    stages: dict[str, float] = {}
    loaded = load_onto(
        launch,
        platform,
        progress=lambda stage, done: stages.__setitem__(stage, done),
        on_rank_lost=lambda reason: None,
        wake=lambda: None,
    )
    record.add(
        attention=loaded.hello.attention_backend,
        linear=loaded.hello.linear_backend,
        notes=list(loaded.notes),
    )
