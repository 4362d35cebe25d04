"""Device `sim`: no model, tokens at once."""

from pagewire.wire.launch import WorkerLaunch
from pagewire.worker.immediate import ImmediateRunner
from pagewire.worker.sim import DEFAULT_BLOCK_SIZE, SimRunner, sim_num_blocks
from pagewire.worker.startup.launch_file import LaunchError
from pagewire.worker.startup.loaded import LoadedDevice, hello_of, slot_limits


def load_sim(launch: WorkerLaunch) -> LoadedDevice:
    """Raises LaunchError."""
    if launch.attention_backend != "auto":
        raise LaunchError(f"attention_backend is {launch.attention_backend}; device sim has no attention")
    block_size = launch.block_size or DEFAULT_BLOCK_SIZE
    try:
        limits = slot_limits(launch, block_size, sim_num_blocks(launch, block_size))
        runner = SimRunner(limits, eos_token_ids=launch.model.eos_token_ids, step_us=launch.sim_step_us)
    except ValueError as error:
        raise LaunchError(str(error)) from error
    hello = hello_of(
        launch,
        limits,
        weights_bytes=0,
        kv_cache_bytes=0,
        attention_backend="none",
        linear_backend="none",
        libraries=("numpy",),
    )
    return LoadedDevice(runner=ImmediateRunner(runner), hello=hello)
