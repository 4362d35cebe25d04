"""What the engine tells frontends of its workers."""

import msgspec
import pytest

from pagewire.scheduler_svc.engine.worker_group import WorkerGroup
from pagewire.scheduler_svc.launch import EngineLaunch
from pagewire.wire.launch import Endpoint
from pagewire.wire.plan import PROTOCOL_VERSION, DeviceMemory, WorkerHello
from pagewire.wire.requests import EngineState

LAUNCH = EngineLaunch(
    incarnation=0,
    frontends=Endpoint(address="ipc:///f"),
    workers=Endpoint(address="ipc:///w"),
    world_size=2,
    vocab_size=100,
    eos_token_ids=(0,),
    max_model_len=64,
    max_num_seqs=4,
    max_num_batched_tokens=64,
    max_prefill_tokens_per_step=32,
    max_queued=8,
    max_queued_tokens=1 << 20,
    enable_prefix_caching=True,
    pipeline_depth=2,
    load_interval_s=1.0,
    hang_timeout_s=0.0,
    step_slack_s=1.5,
)
HELLO = WorkerHello(
    protocol_version=PROTOCOL_VERSION,
    rank=0,
    incarnation=1,
    num_blocks=10,
    block_size=16,
    max_num_seqs=4,
    max_model_len=64,
    vocab_size=100,
    weights_bytes=100,
    kv_cache_bytes=50,
    attention_backend="triton",
    linear_backend="torch",
    versions={},
    device_memory=DeviceMemory(1000, 1, 2, 3, 4, 5),
)


def test_the_ranks_memory_is_told_as_a_sum() -> None:
    group = WorkerGroup(LAUNCH)
    assert group.info(EngineState.LOADING).device_memory is None
    group.join(0, HELLO)
    group.join(1, msgspec.structs.replace(HELLO, rank=1, device_memory=DeviceMemory(2000, 10, 20, 30, 40, 50)))
    info = group.info(EngineState.READY)
    assert (info.weights_bytes, info.kv_cache_bytes) == (200, 100)
    assert info.device_memory == DeviceMemory(
        total_bytes=3000,
        before_model_bytes=11,
        buffer_bytes=22,
        activation_bytes=33,
        graph_bytes=44,
        free_bytes=55,
    )


def test_ranks_without_a_device_have_none() -> None:
    group = WorkerGroup(LAUNCH)
    for rank in range(2):
        group.join(rank, msgspec.structs.replace(HELLO, rank=rank, device_memory=None))
    assert group.info(EngineState.READY).device_memory is None


@pytest.mark.parametrize(
    ("world_size", "recomputes", "expected"), [(1, True, True), (2, True, True), (3, True, False), (1, False, False)]
)
def test_whether_what_is_computed_again_is_the_same(world_size: int, recomputes: bool, expected: bool) -> None:
    group = WorkerGroup(msgspec.structs.replace(LAUNCH, world_size=world_size))
    assert not group.info(EngineState.LOADING).recomputes_exactly
    for rank in range(world_size):
        group.join(rank, msgspec.structs.replace(HELLO, rank=rank, recomputes_exactly=recomputes))
    assert group.info(EngineState.READY).recomputes_exactly == expected
