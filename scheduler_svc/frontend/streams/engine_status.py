"""Engine status: what the engine has said about itself, and when.

It holds no socket. One writer, the engine client, feeds it; services and health read it.
"""

from collections.abc import Callable

from pagewire.scheduler_svc.frontend.errors import Unavailable, UnavailableReason
from pagewire.wire.requests import EngineInfo, EngineState, Load

_RETRY_S = 1.0


class EngineStatus:
    """The engine's state as this frontend knows it."""

    def __init__(self, clock: Callable[[], float], timeout_s: float, on_change: Callable[[], None]) -> None:
        """`clock` is monotonic, in seconds; after `timeout_s` without a word the engine counts as lost. `on_change` is
        called after every change of `state`."""
        self._clock = clock
        self._timeout_s = timeout_s
        self._on_change = on_change
        self._heard_s: float | None = None
        self.state = EngineState.LOADING
        self.info: EngineInfo | None = None
        self.load: Load | None = None
        self._on_load: list[Callable[[Load], None]] = []

    def on_load(self, listener: Callable[[Load], None]) -> None:
        """Have it called with every load that the engine tells."""
        self._on_load.append(listener)

    def heard_info(self, info: EngineInfo) -> None:
        """The engine described itself."""
        self.info = info
        self._heard(info.state)

    def heard_load(self, load: Load) -> None:
        """The engine's heartbeat."""
        self.load = load
        self._heard(load.state)
        for listener in self._on_load:
            listener(load)

    def _heard(self, state: EngineState) -> None:
        was_lost = self.is_lost
        self._heard_s = self._clock()
        if state is not self.state or was_lost:
            self.state = state
            self._on_change()

    def restarted(self) -> None:
        """The engine is another one, which has said nothing yet."""
        self._heard_s = None
        self.state = EngineState.LOADING
        self.load = None
        self._on_change()

    @property
    def has_spoken(self) -> bool:
        """Whether this engine has said anything yet."""
        return self._heard_s is not None

    @property
    def is_lost(self) -> bool:
        """It spoke once, and then not for too long."""
        return self._heard_s is not None and self._clock() - self._heard_s > self._timeout_s

    @property
    def is_serving(self) -> bool:
        """Whether a new request would run."""
        return self.state is EngineState.READY and self._heard_s is not None and not self.is_lost

    def check(self) -> None:
        """Raise Unavailable when the engine cannot take a request. A draining engine still takes what its frontends let
        through."""
        if self.is_lost:
            raise Unavailable(
                UnavailableReason.ENGINE_LOST, f"the engine has been silent for over {self._timeout_s:g} s", _RETRY_S
            )
        match self.state:
            case EngineState.LOADING:
                raise Unavailable(UnavailableReason.LOADING, "the model is loading", _RETRY_S)
            case EngineState.RECOVERING:
                raise Unavailable(
                    UnavailableReason.WORKER_LOST, "the worker was lost and is being started again", _RETRY_S
                )
            case EngineState.READY | EngineState.DRAINING:
                return
