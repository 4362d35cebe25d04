"""TLS, with the server's certificate and the client's own, through the client and the command."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from support.scripted_service import ScriptedService

from pagewire.client import NO_RETRY, AsyncClient, Client, Tls, Unavailable
from pagewire.client.__main__ import main

NAME = "inference.example"


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate for NAME, which is its own CA."""
    folder = tmp_path_factory.mktemp("tls")
    subject = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}", "-days", "1"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = ["openssl", "req", "-x509", *kind, *subject, "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def secured(pem: Path) -> Iterator[ScriptedService]:
    certificate, key = (pem / "cert.pem").read_bytes(), (pem / "key.pem").read_bytes()
    credentials = grpc.ssl_server_credentials([(key, certificate)], certificate, require_client_auth=True)
    with ScriptedService(tls=credentials) as running:
        yield running


def mutual(pem: Path) -> Tls:
    return Tls(ca_file=pem / "cert.pem", certificate_file=pem / "cert.pem", key_file=pem / "key.pem", server_name=NAME)


def test_both_sides_know_each_other(secured: ScriptedService, pem: Path) -> None:
    with Client(secured.address, tls=mutual(pem), api_key="a-long-enough-key") as client:
        assert client.generate("hi", max_tokens=5).text == "Hello"

    async def same() -> None:
        async with AsyncClient(secured.address, tls=mutual(pem)) as client:
            assert (await client.generate("hi", max_tokens=5)).text == "Hello"

    asyncio.run(same())


@pytest.mark.parametrize("wrong", ["no client certificate", "another name", "no TLS"])
def test_anything_less_is_refused(secured: ScriptedService, pem: Path, wrong: str) -> None:
    tls = {
        "no client certificate": Tls(ca_file=pem / "cert.pem", server_name=NAME),
        "another name": Tls(ca_file=pem / "cert.pem", certificate_file=pem / "cert.pem", key_file=pem / "key.pem"),
        "no TLS": None,
    }[wrong]
    with Client(secured.address, tls=tls, retry=NO_RETRY) as client, pytest.raises(Unavailable):
        client.generate("hi", timeout_s=10)
    assert secured.seen == []


def test_the_commands_flags(secured: ScriptedService, pem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--tls-ca", str(pem / "cert.pem"), "--tls-certificate", str(pem / "cert.pem")]
    assert main(["health", "--target", secured.address, *flags]) == 1
    assert "certificate_file and key_file" in capsys.readouterr().err
    flags += ["--tls-key", str(pem / "key.pem"), "--tls-server-name", NAME]
    assert main(["health", "--target", secured.address, *flags]) == 0
