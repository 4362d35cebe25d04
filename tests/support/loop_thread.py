"""A worker's loop on a thread of its own, over a runner that the test has made and a real link to a scripted engine."""

import threading

from support.worker_process import TIMEOUT_S

from pagewire.wire.launch import Endpoint
from pagewire.wire.plan import WorkerHello
from pagewire.worker.link import EngineLink
from pagewire.worker.loop import Inbox, Runner, WorkerLoop

HELLO = WorkerHello(
    protocol_version=1,
    rank=0,
    incarnation=1,
    num_blocks=1,
    block_size=1,
    max_num_seqs=1,
    max_model_len=1,
    vocab_size=1,
    weights_bytes=0,
    kv_cache_bytes=0,
    attention_backend="",
    linear_backend="",
    versions={},
)


class LoopThread:
    """Runs from the start until the loop returns."""

    def __init__(self, address: str, runner: Runner, inbox: Inbox) -> None:
        self.inbox = inbox
        self.log: list[str] = []
        self._outcome: list[str | None] = []
        self._runner = runner
        self._address = address
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        link = EngineLink(Endpoint(address=self._address), "0:1")
        loop = WorkerLoop(link=link, runner=self._runner, inbox=self.inbox, hello=HELLO, log=self.log.append)
        self._outcome.append(loop.serve())
        link.close(flush_s=1)

    def join(self) -> str | None:
        """What `serve` returned."""
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        return self._outcome[0]
