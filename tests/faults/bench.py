"""The service that faults strike: a small model, on free ports, with settings that every row shares."""

import socket
from contextlib import AbstractContextManager
from typing import Any

from support.service import Service, serve

NUM_STREAMS = 64
START_LIMIT_S = 300.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Bench:
    """Starts it."""

    MAX_NUM_SEQS = 96

    def __init__(self, model: str) -> None:
        self._model = model

    def serve(self, dtype: str, **settings: Any) -> AbstractContextManager[Service]:
        """The service on a CPU, with these settings before the usual ones."""
        usual = {
            "model": self._model,
            "max_num_seqs": self.MAX_NUM_SEQS,
            "max_model_len": 512,
            "max_n": 4,
            "listen": f"127.0.0.1:{free_port()}",
        }
        return serve(device="cpu", dtype=dtype, ready_limit_s=START_LIMIT_S, **{**usual, **settings})
