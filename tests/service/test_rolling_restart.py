"""Two replicas behind one client, restarted one after the other under load: nobody who asks sees an error."""

import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from support.service import LIMIT_S, Service, serve

from pagewire.client import Client

pytestmark = pytest.mark.slow

NUM_CALLERS = 8
TOKENS = 100


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Replica:
    """A service on an address that its successors have too."""

    def __init__(self) -> None:
        self.address = f"127.0.0.1:{_free_port()}"
        self._stack = ExitStack()
        self.service = self._start()

    def _start(self) -> Service:
        return self._stack.enter_context(serve(listen=self.address, sim_step_us=3_000, drain_grace_s=30))

    def restart(self) -> int:
        """As an upgrade does: drain, end, begin again. The exit status of the one that ended."""
        ended = self.service.process
        ended.send_signal(signal.SIGTERM)
        status = ended.wait(LIMIT_S)
        self.close()
        self.service = self._start()
        return status

    def close(self) -> None:
        self._stack.close()


def test_a_rolling_restart_under_load_fails_nobody() -> None:
    with ExitStack() as stack:
        replicas = [Replica(), Replica()]
        for replica in replicas:
            stack.callback(replica.close)
        target = f"ipv4:{','.join(replica.address for replica in replicas)}"
        client = stack.enter_context(Client(target))
        expected = {}
        is_over = threading.Event()
        answered = [0] * NUM_CALLERS

        def ask(seed: int) -> object:
            return client.generate([4, 5], max_tokens=TOKENS, ignore_eos=True, seed=seed, timeout_s=LIMIT_S).outputs

        def ask_on(index: int) -> None:
            while not is_over.is_set():
                assert ask(index) == expected[index]
                answered[index] += 1

        expected = {index: ask(index) for index in range(NUM_CALLERS)}
        with ThreadPoolExecutor(NUM_CALLERS) as pool:
            asking = [pool.submit(ask_on, index) for index in range(NUM_CALLERS)]
            try:
                for replica in replicas:
                    before = sum(answered)
                    assert replica.restart() == 0
                    while sum(answered) < before + NUM_CALLERS and not any(each.done() for each in asking):
                        replica.service.load()  # asks until somebody was answered since
            finally:
                is_over.set()
            for each in asking:
                each.result()
        assert min(answered) > 0
        # Whoever was connected to the first went to the second, and from there to the first's successor.
        assert replicas[0].service.load().output_tokens > 0
