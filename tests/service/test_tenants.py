"""Two tenants of one service: neither's cached prompts nor its requests are the other's."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from support.service import LIMIT_S, Service, bearer, serve, stream_request

from pagewire.v1 import admin_pb2, generation_pb2

pytestmark = pytest.mark.slow

KEYS = {tenant: f"{tenant}-0123456789abcdef" for tenant in ("ann", "bob", "admin")}
PROMPT = list(range(1, 100))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    file = Path(tmp_path_factory.mktemp("keys"), "keys")
    file.write_text("".join(f"{tenant}:{key}\n" for tenant, key in KEYS.items()))
    with serve(api_keys_file=file, operator_key=KEYS["admin"], max_model_len=2048, block_size=16) as service:
        yield service


def usage(service: Service, tenant: str) -> generation_pb2.Usage:
    request = stream_request(PROMPT, stopping={"max_tokens": 2})
    events = list(service.inference.StreamGenerate(request, metadata=bearer(KEYS[tenant]), timeout=LIMIT_S))
    started = next(event.started for event in events if event.HasField("started"))
    assert started.cached_tokens == events[-1].usage.cached_tokens
    return events[-1].usage


def test_what_one_tenant_sent_is_cached_for_that_tenant_alone(service: Service) -> None:
    assert usage(service, "ann").cached_tokens == 0
    assert usage(service, "bob").cached_tokens == 0
    assert usage(service, "ann").cached_tokens == usage(service, "bob").cached_tokens == 96


def abort(service: Service, caller: str, request_id: str, tenant: str) -> int:
    """How many outputs were ended."""
    request = admin_pb2.AbortRequest(request_id=request_id, tenant=tenant)
    return service.admin.Abort(request, metadata=bearer(KEYS[caller]), timeout=LIMIT_S).aborted_outputs


def test_an_abort_that_names_another_tenant_finds_nothing(service: Service) -> None:
    request = stream_request(PROMPT, request_id="mine", stopping={"max_tokens": 1500, "ignore_eos": True})
    call = service.inference.StreamGenerate(request, metadata=bearer(KEYS["ann"]), timeout=LIMIT_S)
    assert next(call).HasField("started")

    for tenant, name in (("bob", "mine"), ("ann", "others"), ("nobody", "mine")):
        with pytest.raises(grpc.RpcError) as caught:
            abort(service, "admin", name, tenant)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == f"no output of a request {name!r} runs or waits"

    with pytest.raises(grpc.RpcError) as caught:
        abort(service, "ann", "mine", "ann")
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED

    assert abort(service, "admin", "mine", "ann") == 1
    ends = [event.finished.reason for event in call if event.HasField("finished")]
    assert ends == [generation_pb2.FINISH_REASON_ABORTED]

    with pytest.raises(grpc.RpcError) as caught:
        abort(service, "admin", "mine", "ann")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND, "it is over"
