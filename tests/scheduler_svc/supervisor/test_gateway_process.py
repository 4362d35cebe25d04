"""`serve --openai`: a gateway beside the service, for as long as that lives, whatever happens to either."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx
import pytest
from support.service import serve
from support.supervised import ScriptedServer, is_alive, wait_for

from pagewire.scheduler_svc.settings.checks import check_agreement
from pagewire.scheduler_svc.settings.exposure import exposure_warnings
from pagewire.scheduler_svc.settings.settings import Settings
from pagewire.scheduler_svc.startup_errors import SettingsError

RunServer = Callable[..., ScriptedServer]


def gateway_pid(server: ScriptedServer) -> int | None:
    """Of the gateway that runs."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_bytes().split(b"\0")
            parent = int((file.parent / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == server.process.pid and b"gateway" in command:
            return int(file.parent.name)
    return None


def test_it_answers_from_the_service_and_ends_behind_it() -> None:
    with serve(openai="127.0.0.1:0") as service:
        url = service.said["openai_url"]
        models = httpx.get(f"{url}/models", timeout=20).json()
        assert [model["id"] for model in models["data"]] == ["random:tiny"]
        body = {"model": "random:tiny", "prompt": [1, 2, 3], "max_tokens": 4}
        answer = httpx.post(f"{url}/completions", json=body, timeout=20).json()
        assert answer["usage"]["completion_tokens"] == 4
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(20) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")


def test_one_that_is_killed_begins_again_on_its_socket(run_server: RunServer) -> None:
    server = run_server("--openai", "127.0.0.1:0")
    address = httpx.URL(server.ready()["openai_url"])
    first = wait_for(lambda: gateway_pid(server), "a gateway")
    os.kill(first, signal.SIGKILL)
    with socket.create_connection((address.host, address.port or 0), timeout=20) as waiting:
        waiting.sendall(b"GET /v1/nothing HTTP/1.1\r\nhost: x\r\n\r\n")
        assert waiting.recv(12) == b"HTTP/1.1 404"
    assert gateway_pid(server) != first
    server.signal(signal.SIGTERM)
    status, out, err = server.end()
    assert status == 0
    assert out.startswith(
        "listening on 127.0.0.1:40001, admin on 127.0.0.1:40002, OpenAI's endpoints on http://127.0.0."
    )
    assert "the gateway ended with status -9; it is started again in 0.1 s" in err
    assert gateway_pid(server) is None


def test_it_goes_with_a_supervisor_that_is_killed(run_server: RunServer) -> None:
    server = run_server("--openai", "127.0.0.1:0")
    server.ready()
    gateway = wait_for(lambda: gateway_pid(server), "a gateway")
    server.signal(signal.SIGKILL)
    server.end()
    wait_for(lambda: not is_alive(gateway), "the gateway to end")


def test_an_address_that_is_taken_is_told_before_anything_starts(run_server: RunServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = run_server("--openai", address)
        status, _, err = server.end()
    assert status == 2
    assert f"openai = '{address}' cannot be listened on: Address already in use" in err
    assert server.child_pids() == []


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (Settings(openai="nowhere"), "openai = 'nowhere' must be host:port"),
        (Settings(openai="unix:/tmp/x"), "openai = 'unix:/tmp/x' must be host:port"),
        (Settings(openai="127.0.0.1:1", tls_certificate="a", tls_key="b"), "`pagewire gateway --tls-ca FILE`"),
    ],
)
def test_what_it_cannot_be(settings: Settings, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        check_agreement(settings)


def test_what_is_open_is_told() -> None:
    assert exposure_warnings(Settings(openai="0.0.0.0:8000")) == [
        "openai = '0.0.0.0:8000' is open to other machines, without TLS or API keys"
    ]
    assert exposure_warnings(Settings(openai="0.0.0.0:8000", api_keys_file="f")) == [
        "openai = '0.0.0.0:8000' is open to other machines, and API keys travel without TLS"
    ]
