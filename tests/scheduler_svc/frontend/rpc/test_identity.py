"""Who calls, by certificate: tenants, operators, and what a keys file changes."""

import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.certificates import Authority
from support.frontend_world import failure, ids_request, open_channel, running_frontend

from pagewire.scheduler_svc.launch import TlsFiles
from pagewire.v1 import admin_pb2, model_pb2
from pagewire.v1.admin_pb2_grpc import AdminServiceStub
from pagewire.v1.inference_pb2_grpc import InferenceServiceStub
from pagewire.v1.model_pb2_grpc import ModelServiceStub
from pagewire.wire.model import ModelSpec
from pagewire.wire.requests import FinishKind, Submit

Run = Callable[[Coroutine[Any, Any, None]], None]
KEY, ADMIN_KEY = "0123456789abcdef", "fedcba9876543210"


class Clients:
    """A server's files, and channels with certificates of its clients' CA."""

    def __init__(self, folder: Path) -> None:
        self._authority = Authority(folder, "ca")
        key, certificate = self._authority.issue("localhost", "DNS:localhost", into="server")
        ca = str(self._authority.certificate)
        self.listeners = {
            "listen": "localhost:0",
            "admin_listen": "localhost:0",
            "tls": TlsFiles(certificate=str(certificate), key=str(key), client_ca=ca),
            "trust": self.trust("tester"),
        }

    def no_certificate(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self._authority.certificate.read_bytes())

    def trust(self, common_name: str, alternative_names: str = "") -> grpc.ChannelCredentials:
        return self._trust(self._authority.issue(common_name, alternative_names, into="client"))

    def trust_subject(self, subject: str, alternative_names: str = "", extension: str = "") -> grpc.ChannelCredentials:
        """An exclamation mark stands for a NUL."""
        files = self._authority.issue_subject(subject, alternative_names, extension, into="client")
        for name in (subject, alternative_names):
            if "!" in name:
                before, _, behind = name.partition("!")
                place = before[-5:] + "!" + behind[:5]
                self._authority.alter("client", place.encode(), place.replace("!", "\0").encode())
        return self._trust(files)

    def _trust(self, files: tuple[Path, Path]) -> grpc.ChannelCredentials:
        key, certificate = files
        root = self._authority.certificate.read_bytes()
        return grpc.ssl_channel_credentials(root, key.read_bytes(), certificate.read_bytes())


@pytest.fixture
def clients(tmp_path: Path) -> Clients:
    return Clients(tmp_path)


def test_probes_without_a_certificate_have_health_and_nothing_else(spec: ModelSpec, run: Run, clients: Clients) -> None:
    async def test() -> None:
        with tempfile.TemporaryDirectory(prefix="pw") as folder:  # a socket's path is short
            probes = f"unix:{folder}/health"
            async with running_frontend(spec, **clients.listeners, health_listen=probes) as world:
                async with open_channel(world.ready.address, clients.no_certificate()) as channel:
                    health: Any = health_pb2_grpc.HealthStub(channel)
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await health.Check(health_pb2.HealthCheckRequest())
                    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
                async with grpc.aio.insecure_channel(probes) as channel:
                    health = health_pb2_grpc.HealthStub(channel)
                    for name in ("", "pagewire.v1.InferenceService"):
                        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
                        assert answer.status == health_pb2.HealthCheckResponse.SERVING
                    for call in (
                        ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest()),
                        AdminServiceStub(channel).GetLoad(admin_pb2.GetLoadRequest()),
                    ):
                        assert (await failure(call)).code() is grpc.StatusCode.UNIMPLEMENTED

    run(test())


def test_a_certificates_common_name_is_the_tenant(spec: ModelSpec, run: Run, clients: Clients) -> None:
    async def test() -> None:
        async with running_frontend(spec, **clients.listeners) as world:
            salts = []
            for name in ("red", "blue", "red"):
                async with open_channel(world.ready.address, clients.trust(name)) as channel:
                    stub: Any = InferenceServiceStub(channel)
                    call = stub.StreamGenerate(ids_request())
                    submit = await world.engine.act(Submit)
                    salts.append(submit.salt)
                    await world.engine.answer(submit.handle, [1], FinishKind.LENGTH)
                    assert [message async for message in call]
            assert salts[0] == salts[2] != salts[1]
            async with open_channel(world.ready.address, clients.trust("")) as channel:
                models: Any = ModelServiceStub(channel)
                for call in (
                    models.ListModels(model_pb2.ListModelsRequest()),
                    InferenceServiceStub(channel).StreamGenerate(ids_request()),
                ):
                    error = await failure(call)
                    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
                    assert "common_name" in str(error.details())

    run(test())


def test_only_an_operators_certificate_reaches_the_admin_service(spec: ModelSpec, run: Run, clients: Clients) -> None:
    async def test() -> None:
        changes = {**clients.listeners, "admin_tenants": ("root", "ops")}
        async with running_frontend(spec, **changes) as world:
            for name, code in (
                ("red", grpc.StatusCode.PERMISSION_DENIED),
                ("admin", grpc.StatusCode.PERMISSION_DENIED),
            ):
                async with open_channel(world.ready.admin_address, clients.trust(name)) as channel:
                    stub: Any = AdminServiceStub(channel)
                    calls = (stub.GetLoad(admin_pb2.GetLoadRequest()), stub.WatchLoad(admin_pb2.WatchLoadRequest()))
                    assert [(await failure(call)).code() for call in calls] == [code, code]
            for name in ("root", "ops"):
                async with open_channel(world.ready.admin_address, clients.trust(name)) as channel:
                    admin: Any = AdminServiceStub(channel)
                    await admin.GetLoad(admin_pb2.GetLoadRequest())
                    watching = admin.WatchLoad(admin_pb2.WatchLoadRequest())
                    assert await watching.read()
                    watching.cancel()

    run(test())


@pytest.mark.parametrize(
    ("kind", "alternative_names", "let_in"),
    [
        ("uri", "URI:spiffe://example/red", True),
        ("uri", "DNS:red.example", False),
        ("dns", "DNS:red.example,URI:spiffe://example/red", True),
        ("dns", "DNS:red.example,DNS:blue.example", False),
        ("dns", "", False),
    ],
)
def test_an_alternative_name_is_the_tenant_where_it_is_to_be(
    spec: ModelSpec, run: Run, clients: Clients, kind: str, alternative_names: str, let_in: bool
) -> None:
    async def test() -> None:
        tenant = {"uri": "spiffe://example/red", "dns": "red.example"}[kind]
        changes = {**clients.listeners, "client_identity": kind, "admin_tenants": (tenant,)}
        async with running_frontend(spec, **changes) as world:
            # The common name does not count here.
            trust = clients.trust("admin", alternative_names)
            async with open_channel(world.ready.admin_address, trust) as channel:
                stub: Any = AdminServiceStub(channel)
                if let_in:
                    await stub.GetLoad(admin_pb2.GetLoadRequest())
                else:
                    error = await failure(stub.GetLoad(admin_pb2.GetLoadRequest()))
                    assert error.code() is grpc.StatusCode.UNAUTHENTICATED

    run(test())


@pytest.mark.parametrize(
    ("kind", "subject", "alternative_names", "complaint"),
    [
        ("common_name", "/O=Mr, \\+ Ops=\u00fc/CN=\u00e4dmin\\+x,=", "", None),
        ("common_name", f"/O=x{',CN=admin' * 2}/CN=admin", "", None),
        ("common_name", "/CN=admin/CN=mallory", "", "has 2 values of common_name"),
        ("common_name", "/CN=mallory/CN=admin", "", "has 2 values of common_name"),
        ("common_name", "/CN=admin+CN=mallory", "", "has 2 values of common_name"),
        ("common_name", "/CN=admin!x.evil", "", "is not the whole"),
        ("common_name", "/O=nobody", "DNS:admin", "has 0 names of kind common_name"),
        ("uri", "/CN=admin", "URI:spiffe://ops!.evil", "is not the whole"),
        ("uri", "/CN=admin", f"URI:spiffe://{'o' * 246}", None),
        ("uri", "/CN=admin", f"URI:spiffe://{'o' * 247}", "has 256 characters; the limit is 255"),
        ("dns", "/CN=admin", "DNS:admin!.evil", "is not the whole"),
    ],
)
def test_a_name_counts_as_a_whole_or_not_at_all(
    spec: ModelSpec, run: Run, clients: Clients, kind: str, subject: str, alternative_names: str, complaint: str | None
) -> None:
    async def test() -> None:
        tenants = ("admin", "\u00e4dmin+x,=", "spiffe://ops", f"spiffe://{'o' * 246}")
        changes = {**clients.listeners, "client_identity": kind, "admin_tenants": tenants}
        async with running_frontend(spec, **changes) as world:
            trust = clients.trust_subject(subject, alternative_names)
            async with open_channel(world.ready.admin_address, trust) as channel:
                stub: Any = AdminServiceStub(channel)
                if complaint is None:
                    await stub.GetLoad(admin_pb2.GetLoadRequest())
                else:
                    error = await failure(stub.GetLoad(admin_pb2.GetLoadRequest()))
                    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
                    assert complaint in str(error.details())

    run(test())


@pytest.mark.parametrize(
    ("kind", "subject", "alternative_names", "looks_like"),
    [
        ("dns", "/CN=mallory", "DNS:admin!.evil", b"\x82\x05admin"),
        ("uri", "/CN=mallory", "URI:spiffe://ops!.evil", b"\x86\x0cspiffe://ops"),
        ("common_name", "/CN=admin!x.evil", "", b"\x0c\x05admin"),
    ],
)
def test_what_looks_like_a_name_in_another_extension_is_none(
    spec: ModelSpec, run: Run, clients: Clients, kind: str, subject: str, alternative_names: str, looks_like: bytes
) -> None:
    async def test() -> None:
        changes = {**clients.listeners, "client_identity": kind, "admin_tenants": ("admin", "spiffe://ops")}
        async with running_frontend(spec, **changes) as world:
            own = f"1.2.3.4=DER:{looks_like.hex(':')}"
            trust = clients.trust_subject(subject, alternative_names, own)
            async with open_channel(world.ready.admin_address, trust) as channel:
                stub: Any = AdminServiceStub(channel)
                error = await failure(stub.GetLoad(admin_pb2.GetLoadRequest()))
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
                assert "is not the whole of what the certificate holds" in str(error.details())
            honest = clients.trust_subject("/CN=admin", "DNS:admin,URI:spiffe://ops", own)
            async with open_channel(world.ready.admin_address, honest) as channel:
                admin: Any = AdminServiceStub(channel)
                await admin.GetLoad(admin_pb2.GetLoadRequest())

    run(test())


def test_with_a_keys_file_the_key_says_who_and_a_certificate_is_needed_too(
    spec: ModelSpec, run: Run, clients: Clients, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"ann:{KEY}\nadmin:{ADMIN_KEY}\n")

    async def test() -> None:
        async with running_frontend(spec, api_keys_file=str(keys), **clients.listeners) as world:
            request = admin_pb2.GetLoadRequest()
            for name, key, code in (
                ("admin", None, grpc.StatusCode.UNAUTHENTICATED),
                ("admin", KEY, grpc.StatusCode.PERMISSION_DENIED),
                ("red", ADMIN_KEY, None),
            ):
                metadata = [] if key is None else [("authorization", f"Bearer {key}")]
                async with open_channel(world.ready.admin_address, clients.trust(name)) as channel:
                    stub: Any = AdminServiceStub(channel)
                    if code is None:
                        await stub.GetLoad(request, metadata=metadata)
                    else:
                        assert (await failure(stub.GetLoad(request, metadata=metadata))).code() is code
            async with open_channel(world.ready.admin_address, clients.no_certificate()) as channel:
                nobody: Any = AdminServiceStub(channel)
                call = nobody.GetLoad(request, metadata=[("authorization", f"Bearer {ADMIN_KEY}")])
                assert (await failure(call)).code() is grpc.StatusCode.UNAVAILABLE

    run(test())
