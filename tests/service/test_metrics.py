"""A whole service's metrics: each moves when it is provoked, none falls, and callers cannot make series."""

import asyncio
import contextlib
import itertools
import math
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import zmq
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.scraping import Scrape, wait_for_scrape
from support.service import LIMIT_S, Service, bearer, serve, stream_request

from pagewire.scheduler_svc.metrics.families import Family, pagewire_families
from pagewire.scheduler_svc.metrics.vllm_names import vllm_families
from pagewire.v1 import admin_pb2, generation_pb2, inference_pb2, inference_pb2_grpc

pytestmark = pytest.mark.slow

KEYS = {tenant: f"{tenant}-0123456789abcdef" for tenant in ("ann", "bob", "admin")}
PROMPT = list(range(1, 100))
WINDOW = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
FAMILIES = [*pagewire_families("random:tiny", "", "sim"), *vllm_families("random:tiny")]
NEVER_MOVE = {"pagewire_server_info", "vllm:cache_config_info", "pagewire_kv_blocks", "pagewire_kv_block_size_tokens"}
"""Facts of a service."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = Path(tmp_path_factory.mktemp("keys"), "keys")
    file.write_text("".join(f"{tenant}:{key}\n" for tenant, key in KEYS.items()))
    return file


@contextlib.contextmanager
def measured(keys: Path, **settings: object) -> Iterator[Service]:
    with serve(
        api_keys_file=keys,
        operator_key=KEYS["admin"],
        metrics_listen="127.0.0.1:0",
        metrics_names="vllm",
        max_model_len=4096,
        load_interval_s=0.05,
        **settings,
    ) as service:
        yield service


def stream(service: Service, tenant: str = "ann", max_tokens: int = 3000, **fields: object) -> grpc.Call:
    request = stream_request(PROMPT, stopping={"max_tokens": max_tokens, "ignore_eos": True}, **fields)
    return service.inference.StreamGenerate(request, metadata=bearer(KEYS[tenant]), timeout=LIMIT_S)


def code_of(call: grpc.Call) -> grpc.StatusCode:
    with contextlib.suppress(grpc.RpcError):
        list(call)
    return call.code()


def kill(service: Service, role: str) -> None:
    """Whoever has this role; one that is being started is waited for."""
    while (process := service.children().get(role)) is None:
        pass
    process.kill()


def never_read(service: Service) -> tuple[grpc.Channel, grpc.Call]:
    """A stream whose client takes its first message alone."""
    channel = grpc.insecure_channel(service.address, options=[*WINDOW, ("grpc.use_local_subchannel_pool", 1)])
    request = stream_request(PROMPT, stopping={"max_tokens": 3000, "ignore_eos": True}, n=2)
    call = inference_pb2_grpc.InferenceServiceStub(channel).StreamGenerate(
        request, metadata=bearer(KEYS["bob"]), timeout=LIMIT_S
    )
    next(call)
    return channel, call


def moved(family: Family, before: Scrape, seen: list[Scrape]) -> bool:
    """Whether any series of it ever said something else than before."""
    name = f"{family.name}_count" if family.kind == "histogram" else family.sample_name
    return any(
        value != before.samples.get(key, 0.0)
        for found in seen
        for key, value in found.samples.items()
        if key[0] == name
    )


def test_every_metric_moves_when_it_is_provoked(keys: Path, tmp_path: Path) -> None:
    sockets = tmp_path / "run"
    with measured(
        keys,
        runtime_dir=sockets,
        sim_step_us=2000,
        max_num_seqs=4,
        max_queued=16,
        max_n=4,
        stream_buffer_tokens=64,
        slow_reader_timeout_s=1,
        frontends=2,
    ) as service:
        before = wait_for_scrape(service, lambda now: now.value("pagewire_engine_ready") == 1, "the engine")
        seen = [before]

        def until(what: str, name: str, at_least: float = 1.0, **labels: str) -> None:
            seen.append(wait_for_scrape(service, lambda now: now.value(name, **labels) >= at_least, what))

        # More than there are slots for: an operator ends one, its client another, the others come to their end.
        calls = [stream(service, max_tokens=1500, request_id=f"r{number}") for number in range(7)]
        until("a full house", "pagewire_sequences_running", 4)
        until("others to wait", "pagewire_sequences_waiting", 3)
        until("their tokens", "pagewire_waiting_tokens", 3 * len(PROMPT))
        too_many = [stream(service) for _ in range(8)]  # a tenant has half of the queue
        until("open calls", "pagewire_requests_open", 7)
        until("one too many", "pagewire_refusals_total", 1, reason="queue_full")
        for call in [*too_many, calls[1]]:
            call.cancel()
        abort = admin_pb2.AbortRequest(request_id="r0", tenant="ann")
        service.admin.Abort(abort, metadata=bearer(KEYS["admin"]), timeout=LIMIT_S)
        assert {code_of(call) for call in [calls[0], *calls[2:]]} == {grpc.StatusCode.OK}
        until("their ends", "pagewire_requests_total", 6, outcome="completed")
        until("an abort", "pagewire_outputs_total", 1, reason="aborted")
        until("a cancel", "pagewire_requests_total", 1, outcome="cancelled")
        until("a hit", "pagewire_tenant_cached_tokens_total", 32, tenant="ann")

        # Refusals.
        assert code_of(stream(service, model="another")) is grpc.StatusCode.NOT_FOUND
        assert code_of(stream(service, sampling={"temperature": -1})) is grpc.StatusCode.INVALID_ARGUMENT
        unknown = service.inference.StreamGenerate(stream_request(PROMPT), metadata=bearer("nobody's"))
        assert code_of(unknown) is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError):
            service.admin.GetLoad(admin_pb2.GetLoadRequest(), metadata=bearer(KEYS["ann"]), timeout=LIMIT_S)
        for reason in ("not_found", "invalid_argument", "unauthenticated", "permission_denied"):
            until(reason, "pagewire_refusals_total", 1, reason=reason)
        until("refused calls", "pagewire_requests_total", 2, outcome="refused")

        # A reader that stays away.
        num_cancelled = seen[-1].value("pagewire_requests_total", outcome="cancelled")
        channel, call = never_read(service)
        until("paused sequences", "pagewire_sequences_paused", 2)
        until("their preemption", "pagewire_preemptions_total", 2)
        until("the stream's end", "pagewire_refusals_total", 1, reason="slow_reader")
        until("its outcome", "pagewire_requests_total", num_cancelled + 1, outcome="cancelled")
        call.cancel()
        channel.close()

        # A stranger at the engine's socket.
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.linger = 0
            stranger.plain_username, stranger.plain_password = b"x", b"wrong"
            stranger.connect(f"ipc://{sockets}/frontends.sock")
            until("its refusal", "pagewire_dropped_frames_total", 1, kind="frontends.refused_connections")

        for role in ("worker", "frontend", "engine"):
            kill(service, role)
            until(f"a new {role}", "pagewire_process_restarts_total", 1, process=role)
        until("the engine", "pagewire_engine_ready", 1)

        unmoved = [family.sample_name for family in FAMILIES if not moved(family, before, seen)]
        assert set(unmoved) == NEVER_MOVE
        for family in FAMILIES:
            if family.kind in ("counter", "histogram"):
                assert_never_falls(family, seen)


def assert_never_falls(family: Family, seen: list[Scrape]) -> None:
    names = {family.sample_name} if family.kind == "counter" else {f"{family.name}_{end}" for end in ("sum", "bucket")}
    for earlier, later in itertools.pairwise(seen):
        for key, value in earlier.samples.items():
            assert key[0] not in names or later.samples.get(key, -math.inf) >= value, key


@pytest.mark.parametrize("role", ["engine", "frontend"])
def test_counts_survive_a_kill(keys: Path, role: str) -> None:
    with measured(keys) as service:
        for _ in range(3):
            assert code_of(stream(service, max_tokens=20)) is grpc.StatusCode.OK

        def has_all(now: Scrape) -> bool:
            return (
                now.value("pagewire_requests_total", outcome="completed") == 3
                and now.value("pagewire_output_tokens_total") == 60
            )

        before = wait_for_scrape(service, has_all, "three calls")
        for number in (1, 2):
            kill(service, role)
            gone = wait_for_scrape(
                service,
                lambda now, number=number: now.value("pagewire_process_restarts_total", process=role) == number,
                "a restart",
            )
            assert has_all(gone)
            assert gone.value("pagewire_time_to_first_token_seconds_count") == 3
            block_s = "pagewire_tenant_kv_block_seconds_total"
            assert gone.value(block_s, tenant="ann") >= before.value(block_s, tenant="ann") > 0
            wait_for_scrape(service, lambda now: now.value("pagewire_engine_ready") == 1, "the engine")
        call = None
        while call is None or call.code() is grpc.StatusCode.UNAVAILABLE:  # while the channel comes back
            call = stream(service, max_tokens=20)
            code_of(call)
        assert call.code() is grpc.StatusCode.OK
        wait_for_scrape(
            service,
            lambda now: (
                now.value("pagewire_requests_total", outcome="completed") == 4
                and now.value("pagewire_output_tokens_total") == 80
                and now.value("pagewire_tenant_output_tokens_total", tenant="ann") == 80
            ),
            "a fourth call",
        )


NUM_CALLS, NUM_METHODS, NUM_PATHS = 20_000, 10_000, 10_000


async def call_with_other_names(address: str, key: str) -> None:
    """Each call names a model, a header and its value, and a tenant of its own."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        places = asyncio.Semaphore(64)

        async def tokenize(number: int) -> None:
            request = inference_pb2.TokenizeRequest(
                model=f"model-{number}", prompt=generation_pb2.Prompt(text=f"prompt {number}")
            )
            metadata = ((f"x-header-{number}", f"value-{number}"), ("x-tenant", f"tenant-{number}"), *bearer(key))
            async with places:
                with contextlib.suppress(grpc.RpcError):
                    await stub.Tokenize(request, metadata=metadata, timeout=LIMIT_S)

        async def unknown(number: int) -> None:
            method = channel.unary_unary(f"/pagewire.v1.InferenceService/Method{number}")
            async with places:
                with contextlib.suppress(grpc.RpcError):
                    await method(b"", metadata=((f"y-header-{number}", "x"),), timeout=LIMIT_S)

        await asyncio.gather(*map(tokenize, range(NUM_CALLS)))
        await asyncio.gather(*map(unknown, range(NUM_METHODS)))


async def ask_for_other_paths(url: str) -> None:
    host, _, port = url.removeprefix("http://").removesuffix("/metrics").rpartition(":")
    places = asyncio.Semaphore(16)

    async def ask(number: int) -> None:
        async with places:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"GET /path-{number} HTTP/1.1\r\nX-Header-{number}: {number}\r\n\r\n".encode())
            assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
            writer.close()

    await asyncio.gather(*map(ask, range(NUM_PATHS)))


def test_a_hundred_thousand_names_leave_the_series_as_they_were(keys: Path) -> None:
    with measured(keys) as service:
        assert code_of(stream(service, max_tokens=2)) is grpc.StatusCode.OK
        assert code_of(stream(service, model="another")) is grpc.StatusCode.NOT_FOUND
        before = wait_for_scrape(
            service, lambda now: now.value("pagewire_refusals_total", reason="not_found") == 1, "a refusal"
        )
        # Models, headers, values of headers and tenants that nobody knows; methods with headers; paths with headers.
        assert 4 * NUM_CALLS + 2 * NUM_METHODS + 2 * NUM_PATHS >= 100_000
        asyncio.run(call_with_other_names(service.address, KEYS["ann"]))
        asyncio.run(ask_for_other_paths(service.said["metrics_url"]))
        after = wait_for_scrape(
            service,
            lambda now: now.value("pagewire_refusals_total", reason="not_found") == 1 + NUM_CALLS,
            "all refusals",
        )
        assert after.series == before.series


def test_open_metrics_where_it_is_asked_for(keys: Path) -> None:
    with measured(keys) as service:
        assert service.said["metrics_url"].startswith("http://127.0.0.1:")
        request = urllib.request.Request(
            service.said["metrics_url"], headers={"Accept": "application/openmetrics-text;version=1.0.0"}
        )
        with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
            assert response.headers["Content-Type"].startswith("application/openmetrics-text")
            found = {family.name for family in text_string_to_metric_families(response.read().decode())}
        assert {family.name for family in FAMILIES if family.kind == "histogram"} <= found


def test_without_a_listener_nothing_is_counted() -> None:
    with serve() as service:
        assert service.said.get("metrics_url", "") == ""
