"""Control messages, supervisor ↔ child: JSON lines over one Unix stream socket that the child inherits.

The socket is also the lifeline: when either side reads end-of-file the other is gone, and a child then ends at once.
That works where the supervisor was killed with SIGKILL and could tell nobody.
"""

import msgspec

from pagewire.wire.codec import Count
from pagewire.wire.measures import EngineMeasured, FrontendMeasured


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """A child is not ready yet; shown as a progress bar."""

    stage: str
    fraction: float
    """0 … 1 of the stage."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """A child serves. A frontend gives the addresses it listens on, ports filled in; a worker its number of KV blocks,
    which it gets again as `WorkerLaunch.earlier_num_blocks` where it has to be started again."""

    address: str = ""
    admin_address: str = ""
    num_blocks: Count = 0


class DrainRequested(msgspec.Struct, frozen=True, tag="drain_requested"):
    """An operator asked a frontend to drain the server."""

    grace_s: float | None


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """The engine's or a frontend's loop goes round: said every second or so by the loop itself, so that a process that
    stands still falls silent. A worker is silent while it computes; the engine watches its steps."""


class StepOverdue(msgspec.Struct, frozen=True, tag="step_overdue"):
    """From the engine: the workers hold a step and have not answered for too long. They are to be ended; `WorkerLost`
    and new ones follow as after any other end."""

    waited_s: float
    incarnation: Count
    """Of the workers, as they said hello: those that were started since hold nothing of it, and stay."""


class Served(msgspec.Struct, frozen=True, tag="served"):
    """From the engine: a step's result was taken in, the first since it last said `Ready`. So it and the workers are of
    use; what ends them from now on does not keep them from serving."""


class Drained(msgspec.Struct, frozen=True, tag="drained"):
    """A frontend has no stream left and has closed its listeners."""

    cut_streams: int
    """Streams that the grace time did not suffice for; they ended with UNAVAILABLE, reason DRAINING."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A child cannot go on and ends; the message is for the person who started the server."""

    message: str


FromChild = (
    Loading
    | Ready
    | Served
    | Alive
    | StepOverdue
    | DrainRequested
    | Drained
    | Failed
    | EngineMeasured
    | FrontendMeasured
)


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """To a frontend: report NOT_SERVING now, refuse new requests after `delay_s`, cut what still runs after `grace_s`
    more, then answer `Drained`. To the engine: say DRAINING in its state; sequences go on."""

    delay_s: float
    grace_s: float


class WorkerLost(msgspec.Struct, frozen=True, tag="worker_lost"):
    """To the engine: the worker process ended. The engine answers nothing; it waits for the next WorkerHello."""

    rank: int


class EngineRestarted(msgspec.Struct, frozen=True, tag="engine_restarted"):
    """To frontends and workers: the engine process ended and a new one binds the same addresses. Close the old socket
    with what it still queued, connect anew; a worker says hello again, a frontend registers and submits every open
    sequence again with the tokens it has received as `generated`."""

    incarnation: int


class Reload(msgspec.Struct, frozen=True, tag="reload"):
    """To frontends: read the files with keys, limits and certificates again, whether they look changed or not."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """To any child: end now with status 0."""

    worker_lost: bool = False
    """The server ends because one of its processes cannot be kept running: a frontend's streams end with UNAVAILABLE,
    reason WORKER_LOST, and not DRAINING. Default: no."""


ToChild = Drain | WorkerLost | EngineRestarted | Reload | Stop
