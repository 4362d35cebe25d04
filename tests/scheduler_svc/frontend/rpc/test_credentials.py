"""Keys and certificates are read again while the server runs: new ones come in force, wrong ones do not."""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.certificates import Authority
from support.frontend_world import ids_request, open_channel, running_frontend, until
from support.scripted_engine import LIMIT_S

from pagewire.scheduler_svc.frontend.rpc import followed_files
from pagewire.scheduler_svc.frontend.rpc.auth import read_keys
from pagewire.scheduler_svc.frontend.rpc.followed_files import FollowedFiles
from pagewire.scheduler_svc.launch import TlsFiles
from pagewire.scheduler_svc.startup_errors import StartupError
from pagewire.v1 import generation_pb2, inference_pb2, model_pb2
from pagewire.v1.inference_pb2_grpc import InferenceServiceStub
from pagewire.wire.control import Reload
from pagewire.wire.model import ModelSpec
from pagewire.wire.requests import FinishKind, Submit

Run = Callable[[Coroutine[Any, Any, None]], None]
OLD, NEW = "old-key-of-ann-1234", "new-key-of-ann-5678"


def bearer(key: str) -> Any:
    return [("authorization", f"Bearer {key}")]


def replace(path: Path, text: str) -> None:
    """As careful people do: the file is never there by half."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text)
    os.replace(beside, path)


@pytest.fixture
def looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed_files, "LOOK_INTERVAL_S", 0.01)


async def accepts(world: Any, key: str) -> bool:
    try:
        await world.models.ListModels(model_pb2.ListModelsRequest(), metadata=bearer(key), timeout=LIMIT_S)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise
        return False
    return True


async def comes_true(condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await condition():
            pass


@pytest.mark.usefixtures("looked_at_often")
def test_a_changed_keys_file_counts_and_streams_go_on(
    spec: ModelSpec, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"ann:{OLD}\n")

    async def test() -> None:
        async with running_frontend(spec, api_keys_file=str(keys)) as world:
            stream = world.inference.StreamGenerate(ids_request(), metadata=bearer(OLD))
            submit = await world.engine.act(Submit)
            replace(keys, f"ann:{NEW}\n")
            await comes_true(lambda: accepts(world, NEW))
            assert not await accepts(world, OLD)
            await world.engine.answer(submit.handle, [1], FinishKind.LENGTH)
            assert [message.WhichOneof("event") async for message in stream][-1] == "usage"

            for wrong in ("ann:short\n", ""):  # no key, no file
                caplog.clear()
                replace(keys, wrong)
                await until(lambda: "cannot be used, and the old stay in force" in caplog.text)
                assert await accepts(world, NEW)
            await asyncio.gather(*(world.frontend._credentials._files[0].look() for _ in range(20)))
            assert caplog.text.count("stay in force") == 1  # once for each complaint, however often it is looked
            keys.unlink()
            await until(lambda: "No such file" in caplog.text)
            assert await accepts(world, NEW)
            replace(keys, f"ann:{OLD}\n")
            await comes_true(lambda: accepts(world, OLD))

    with caplog.at_level(logging.INFO):
        run(test())


def test_an_order_reads_what_looks_unchanged(spec: ModelSpec, run: Run, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"ann:{OLD}\n")

    async def test() -> None:
        async with running_frontend(spec, api_keys_file=str(keys)) as world:
            replace(keys, f"ann:{NEW}\n")
            world.frontend.handle(Reload())
            await comes_true(lambda: accepts(world, NEW))

    run(test())


@pytest.mark.usefixtures("looked_at_often")
def test_a_new_certificate_serves_new_connections(
    spec: ModelSpec, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    key, certificate = old.issue("localhost", "DNS:localhost", into="server")
    tls = TlsFiles(certificate=str(certificate), key=str(key))

    async def trusted(address: str, authority: Authority) -> bool:
        trust = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
        async with open_channel(address, trust) as channel:
            request = inference_pb2.TokenizeRequest(prompt=generation_pb2.Prompt(text="hello"))
            try:
                tokenized: Any = await InferenceServiceStub(channel).Tokenize(request, timeout=LIMIT_S)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return False
            return bool(tokenized.ids)

    async def test() -> None:
        trust = grpc.ssl_channel_credentials(old.certificate.read_bytes())
        async with running_frontend(
            spec, tls=tls, listen="localhost:0", admin_listen="localhost:0", trust=trust
        ) as world:
            address = world.ready.address
            assert (await world.models.ListModels(model_pb2.ListModelsRequest())).models
            assert await trusted(address, old)
            assert not await trusted(address, new)
            key.write_bytes(Authority(tmp_path, "other").key.read_bytes())  # which is not the certificate's
            await until(lambda: "are no certificate and its key" in caplog.text)
            assert await trusted(address, old)
            new.issue("localhost", "DNS:localhost", into="server")
            await comes_true(lambda: trusted(address, new))
            assert not await trusted(address, old)
            # The connection from before goes on.
            assert (await world.models.ListModels(model_pb2.ListModelsRequest())).models

    run(test())


@pytest.mark.parametrize("wrong", ["certificate", "key", "client_ca"])
def test_wrong_pem_files_are_named_at_the_start(spec: ModelSpec, run: Run, tmp_path: Path, wrong: str) -> None:
    authority = Authority(tmp_path, "ca")
    key, certificate = authority.issue("localhost", into="server")
    files = {"certificate": certificate, "key": key, "client_ca": authority.certificate}
    files[wrong].write_text("no PEM")

    async def test() -> None:
        tls = TlsFiles(**{name: str(path) for name, path in files.items()})
        with pytest.raises(StartupError, match=str(files[wrong])):
            async with running_frontend(spec, tls=tls):
                pass

    run(test())


def test_a_look_costs_next_to_nothing_and_reads_nothing(run: Run, tmp_path: Path) -> None:
    file, num_reads = tmp_path / "file", 0
    file.write_text("a")

    def read() -> Callable[[], None]:
        nonlocal num_reads
        num_reads += 1
        return lambda: None

    async def test() -> None:
        followed = FollowedFiles("files", [str(file)], read)
        for _ in range(3):
            await followed.look()
        assert num_reads == 1
        replace(file, "b")  # of the same size
        await followed.look()
        assert num_reads == 2

    run(test())


def test_keys_that_are_half_written_when_they_are_read_wait_for_the_next_look(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, in_force = tmp_path / "keys", [""]
    file.write_text(f"ann:{OLD}\n")
    rest: list[str] = []

    def read() -> Callable[[], None]:
        keys = read_keys(str(file))
        if rest:
            with file.open("a") as writing:
                writing.write(rest.pop())
        return lambda: in_force.__setitem__(slice(None), [tenant for _, tenant in keys])

    async def test() -> None:
        followed = FollowedFiles("API keys", [str(file)], read)
        file.write_text(f"bob:{OLD}\n")
        rest.append(f"ann:{NEW}\n")
        await followed.look()
        assert in_force == ["ann"]
        assert f"{file} changed while read" in caplog.text
        await followed.look()
        assert in_force == ["bob", "ann"]
        rest.append("# more\n")
        with pytest.raises(StartupError, match="changed while read"):
            FollowedFiles("API keys", [str(file)], read)

    run(test())
