"""The real process: its launch file, its lifeline, its signals, and its children."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2
from support.frontend_process import ready, supervised
from support.frontend_world import detail, failure, ids_request, until
from support.scripted_engine import LIMIT_S
from support.tiny_tokenizer import make_spec

from pagewire.scheduler_svc.launch import TlsFiles
from pagewire.v1 import generation_pb2, inference_pb2
from pagewire.v1.inference_pb2_grpc import InferenceServiceStub
from pagewire.wire.control import Drain, Drained, EngineRestarted, Failed, Stop
from pagewire.wire.lifeline import ORPHANED_STATUS
from pagewire.wire.model import ModelSpec
from pagewire.wire.requests import Register, Submit

Run = Callable[[Coroutine[Any, Any, None]], None]


def test_a_request_a_new_engine_a_drain_and_a_stop(spec: ModelSpec, run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with supervised(tmp_path, spec) as (frontend, engine):
            addresses = await ready(frontend)
            assert not addresses.address.endswith(":0")
            assert not addresses.admin_address.endswith(":0")
            await engine.act(Register)
            async with grpc.aio.insecure_channel(addresses.address) as channel:
                call: Any = InferenceServiceStub(channel).StreamGenerate(ids_request(), wait_for_ready=True)
                submit = await engine.act(Submit)
                await engine.start(submit.handle)
                await engine.step([(submit.handle, 40)])
                assert (await call.read()).started.request_id
                assert len((await call.read()).delta.tokens) == 1
                engine.restart()
                frontend.send(EngineRestarted(1))
                await engine.act(Register)
                again = await engine.act(Submit)
                assert len(again.generated) == 4
                frontend.send(Drain(delay_s=0.0, grace_s=0.2))
                assert await frontend.news() == Drained(1)
                assert detail(await failure(call), error_details_pb2.ErrorInfo).reason == "DRAINING"
            os.kill(frontend.process.pid, signal.SIGINT)
            frontend.send(Stop())
            assert await frontend.status() == 0

    run(test())


def test_sigterm_counts_as_stop_and_leaves_no_child(spec: ModelSpec, run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with supervised(tmp_path, spec) as (frontend, _):
            await ready(frontend)
            process = psutil.Process(frontend.process.pid)
            await until(lambda: len(process.children(recursive=True)) == 2)  # the template's, and its child
            children = process.children(recursive=True)
            frontend.process.send_signal(signal.SIGTERM)
            assert await frontend.status() == 0
            await until(lambda: not any(child.is_running() for child in children))

    run(test())


@pytest.mark.parametrize("how", ["supervisor gone", "killed"])
def test_neither_frontend_nor_template_process_outlives_its_parent(
    spec: ModelSpec, run: Run, tmp_path: Path, how: str
) -> None:
    async def test() -> None:
        async with supervised(tmp_path, spec) as (frontend, _):
            await ready(frontend)
            children = psutil.Process(frontend.process.pid).children(recursive=True)
            if how == "killed":
                frontend.process.kill()
            else:
                frontend.socket.close()
            assert await frontend.status() == (-signal.SIGKILL if how == "killed" else ORPHANED_STATUS)
            await until(lambda: not any(_runs(child) for child in children))

    run(test())


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("fault", ["template", "address", "keys", "tokenizer"])
def test_what_keeps_it_from_starting_is_told_to_the_supervisor(run: Run, tmp_path: Path, fault: str) -> None:
    async def test() -> None:
        spec = make_spec(tmp_path, template="{% if %}" if fault == "template" else None)
        changes: dict[str, Any] = {}
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            if fault == "address":
                changes["listen"] = f"127.0.0.1:{taken.getsockname()[1]}"
            elif fault == "keys":
                (tmp_path / "keys").write_text("ann:short\n")
                changes["api_keys_file"] = str(tmp_path / "keys")
            elif fault == "tokenizer":
                (tmp_path / "tokenizer.json").write_text("{}")
            async with supervised(tmp_path, spec, **changes) as (frontend, _):
                news = await frontend.news()
                assert isinstance(news, Failed)
                expected = {"template": "compile", "address": "listen", "keys": "line 1", "tokenizer": "tokenizer"}
                assert expected[fault] in news.message
                assert await frontend.status() == 1

    run(test())


def test_protobuf_without_its_extension_ends_the_start(
    spec: ModelSpec, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")

    async def test() -> None:
        async with supervised(tmp_path, spec) as (frontend, _):
            news = await frontend.news()
            assert isinstance(news, Failed)
            assert "needs 'upb'" in news.message
            assert await frontend.status() == 1

    run(test())


def test_frontends_share_a_port_only_when_told_to(spec: ModelSpec, run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        for name in ("a", "b", "c"):
            (tmp_path / name).mkdir()
        async with supervised(tmp_path / "a", spec, reuse_port=True) as (first, _):
            address = (await ready(first)).address
            async with supervised(tmp_path / "b", spec, reuse_port=True, listen=address, index=1) as (second, _):
                assert (await ready(second)).address == address
                async with supervised(tmp_path / "c", spec, listen=address) as (third, _):
                    assert isinstance(await third.news(), Failed)

    run(test())


def test_tls_with_client_certificates(spec: ModelSpec, run: Run, tmp_path: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "1"]
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject, "-keyout", "key.pem", "-out", "cert.pem")
    key_file, certificate_file = tmp_path / "key.pem", tmp_path / "cert.pem"
    key, certificate = key_file.read_bytes(), certificate_file.read_bytes()
    tls = TlsFiles(certificate=str(certificate_file), key=str(key_file), client_ca=str(certificate_file))

    async def test() -> None:
        async with supervised(tmp_path, spec, tls=tls, listen="localhost:0", admin_listen=None) as (frontend, engine):
            addresses = await ready(frontend)
            assert addresses.admin_address == ""
            await engine.act(Register)
            request = inference_pb2.TokenizeRequest(prompt=generation_pb2.Prompt(text="hello"))
            ours = grpc.ssl_channel_credentials(certificate, key, certificate)
            async with grpc.aio.secure_channel(addresses.address, ours) as channel:
                tokenized: Any = await InferenceServiceStub(channel).Tokenize(request, timeout=LIMIT_S)
                assert tokenized.ids
            nobodys = grpc.ssl_channel_credentials(certificate)
            async with grpc.aio.secure_channel(addresses.address, nobodys) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await InferenceServiceStub(channel).Tokenize(request, timeout=LIMIT_S)
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE

    run(test())


def test_a_frontend_imports_neither_torch_nor_transformers() -> None:
    script = "import sys, pagewire.scheduler_svc.frontend.__main__; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n"
