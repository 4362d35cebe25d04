"""The request log: a line at INFO for each call that generates, when it ends.

Lines are handed to a thread, because whoever reads stderr may be slow and streams must not wait for it. What does not
fit, and refusals beyond some hundred in ten seconds, are counted instead of written: a client that is refused costs
nothing else, and would fill a disk. It knows nothing of calls.
"""

import logging
import queue
import threading
from collections.abc import Callable

from pagewire.scheduler_svc.frontend.rpc.request_records import RequestRecord

_log = logging.getLogger(__name__)
_MAX_WAITING = 10_000
"""Lines: some 5 MB."""
_REFUSED_AT_MOST = 100
"""Of requests that never reached the engine, in an interval."""
_INTERVAL_S = 10.0
_CLOSE_S = 1.0


class RequestLog:
    """Writes records to the handlers of the root logger, from a thread of its own. A `RequestRecords` observer."""

    def __init__(self, model: str, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._model = model
        self._clock = clock
        self._handlers = list(logging.getLogger().handlers)
        self._waiting: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
        self._num_left_out = 0
        self._writer = threading.Thread(target=self._write, name="request-log", daemon=True)
        self._writer.start()
        self._interval_began_s = clock()
        self._num_refused = 0

    @staticmethod
    def is_wanted() -> bool:
        """Whether such lines are written at all, at the level that is set."""
        return _log.isEnabledFor(logging.INFO)

    def observe(self, record: RequestRecord) -> None:
        """One more line."""
        if self._is_left_out(record) or self._waiting.qsize() >= _MAX_WAITING:
            self._num_left_out += 1
            return
        arrived_s = record.arrived_s
        fields: dict[str, object] = {
            "request_id": record.request_id,
            "tenant": record.tenant,
            "model": self._model,
            "code": record.code,
            "reason": record.reason,
            "finish_reasons": list(record.finish_reasons),
            "priority": record.priority,
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "output_tokens": record.output_tokens,
            "queue_s": _between(record.submitted_s, record.started_s),
            "time_to_first_token_s": _between(arrived_s, record.first_token_s),
            "duration_s": _between(arrived_s, record.ended_s),
            "lines_left_out": self._num_left_out or None,
        }
        line = _log.makeRecord(
            _log.name,
            logging.INFO,
            __file__,
            0,
            "request ended",
            (),
            None,
            extra={"fields": {name: value for name, value in fields.items() if value not in (None, "", [])}},
        )
        self._num_left_out = 0
        self._waiting.put(line)

    def _is_left_out(self, record: RequestRecord) -> bool:
        now_s = self._clock()
        if now_s - self._interval_began_s >= _INTERVAL_S:
            self._interval_began_s, self._num_refused = now_s, 0
        if record.submitted_s is None:
            self._num_refused += 1
        return self._num_refused > _REFUSED_AT_MOST and record.submitted_s is None

    def _write(self) -> None:
        while (line := self._waiting.get()) is not None:
            for handler in self._handlers:
                handler.handle(line)

    def close(self) -> None:
        """Write what waits, as far as it is taken, and end the thread."""
        self._waiting.put(None)
        self._writer.join(_CLOSE_S)


def _between(since_s: float | None, until_s: float | None) -> float | None:
    return None if since_s is None or until_s is None else round(max(0.0, until_s - since_s), 6)
