"""What a supervisor acts through, other than its children's lifelines: made once by the command that runs it."""

import time
from collections.abc import Callable, Mapping

import msgspec

from pagewire.scheduler_svc.progress import Progress
from pagewire.scheduler_svc.supervisor.runtime_dir import RuntimeDir
from pagewire.scheduler_svc.supervisor.sd_notify import SystemdNotifier
from pagewire.scheduler_svc.supervisor.server_plan import Addresses, Commands


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """Commands, files, environment, and whom to tell."""

    commands: Commands
    runtime_dir: RuntimeDir
    environ: Mapping[str, str]
    """Of the children."""
    progress: Progress
    notifier: SystemdNotifier
    announce: Callable[[Addresses], None]
    """Called once, when everything is ready."""
    clock: Callable[[], float] = time.monotonic
