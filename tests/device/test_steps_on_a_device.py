"""On a CUDA device: captured steps, steps launched one operation after the other, and the CPU agree.

These run where there is a device; everything they prove but CUDA's own part is proven on the CPU in tests/worker/cuda.

    python -m pytest tests/device
"""

import os

import pytest
import torch
from support.device_runner import tiny_config, tiny_spec
from support.plan_stream import LoadedStream
from support.worker_process import sim_launch

from pagewire.worker.cuda.platform import CudaPlatform


@pytest.fixture(autouse=True)
def _device() -> None:
    """Whether there is one that Triton compiles for: in a run of other folders too, it interprets."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton interprets in this process")


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
@pytest.mark.parametrize("enforce_eager", [False, True], ids=["captured", "eager"])
def test_random_plans_sample_what_the_cpu_does(enforce_eager: bool, exact: bool) -> None:
    launch = sim_launch(
        "ipc:///nowhere",
        device="cuda",
        dtype="float32",
        model=tiny_spec(tiny_config(vocab_size=100)),
        max_num_seqs=20,
        max_model_len=64,
        max_num_batched_tokens=96,
        block_size=16,
        attention_backend="triton",
        enforce_eager=enforce_eager,
        exact_continuation=exact,
    )
    stream = LoadedStream(launch, CudaPlatform())
    for seed in range(3):
        results = stream.check(seed, 60)
        assert results[0].idle_us == 0
        assert all(result.busy_us >= 0 for result in results)

    hello, memory = stream.loaded.hello, stream.loaded.hello.device_memory
    assert memory is not None
    assert hello.recomputes_exactly == exact
    used = memory.before_model_bytes + hello.weights_bytes + memory.buffer_bytes + memory.graph_bytes
    used += hello.kv_cache_bytes
    # What torch's allocator keeps for reuse, and the little that a second process may take meanwhile.
    assert abs(memory.total_bytes - used - memory.free_bytes) < 1 << 30
    assert (memory.graph_bytes > 0) == (not enforce_eager)
