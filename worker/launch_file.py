"""A worker's launch file, read and checked by itself, whatever the machine and the model."""

from pathlib import Path

from pagewire.wire.codec import WireError, decode_json
from pagewire.wire.launch import UNKNOWN_INCARNATION, WorkerLaunch


class LaunchError(Exception):
    """A worker that cannot start, for a reason its operator can mend: one clear line."""


def read_launch(path: Path) -> WorkerLaunch:
    """Read and check a launch file. Raises LaunchError."""
    try:
        launch = decode_json(path.read_bytes(), WorkerLaunch)
    except OSError as error:
        raise LaunchError(f"cannot read the launch file {path}: {error.strerror}") from error
    except WireError as error:
        raise LaunchError(f"the launch file {path} is wrong: {error}") from error
    if not 0 <= launch.rank < launch.world_size:
        raise LaunchError(f"rank is {launch.rank}; ranks are numbered from 0, and world_size is {launch.world_size}")
    if launch.world_size > 1 and launch.device != "sim" and launch.group is None:
        raise LaunchError(f"world_size is {launch.world_size}, and no group says where the ranks meet")
    if launch.incarnation == UNKNOWN_INCARNATION and (launch.group is None or launch.rank == 0):
        raise LaunchError(f"incarnation is {launch.incarnation}, which only a rank after 0 of a group may have")
    if launch.quantization != "none" and launch.device != "cpu":
        raise LaunchError(f"quantization is {launch.quantization}; device {launch.device} has none, cpu has int8")
    if launch.max_num_batched_tokens < launch.max_num_seqs:
        raise LaunchError(
            f"max_num_batched_tokens is {launch.max_num_batched_tokens}; it must be at least max_num_seqs, "
            f"{launch.max_num_seqs}, so that every sequence can decode in one step"
        )
    for name, value, least in (
        ("max_num_seqs", launch.max_num_seqs, 1),
        ("max_model_len", launch.max_model_len, 1),
        ("block_size", 1 if launch.block_size is None else launch.block_size, 1),
        ("num_threads", 1 if launch.num_threads is None else launch.num_threads, 1),
        ("sim_step_us", launch.sim_step_us, 0),
    ):
        if value < least:
            raise LaunchError(f"{name} is {value}; it must be at least {least}")
    if not 0 < launch.gpu_memory_utilization <= 1:
        raise LaunchError(
            f"gpu_memory_utilization is {launch.gpu_memory_utilization}; it must be greater than 0 and at most 1"
        )
    return launch
