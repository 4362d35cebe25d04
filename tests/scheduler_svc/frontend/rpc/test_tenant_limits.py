"""Tenants' limits: what the file may say, what each tenant gets, and when a refused one may come again."""

import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st
from support.frontend_world import detail, failure, ids_request, running_frontend, unary, violated_field

from pagewire.scheduler_svc.frontend.errors import InvalidArgument, ResourceExhausted
from pagewire.scheduler_svc.frontend.rpc.tenant_limits import (
    LimitsFileError,
    TenantLimits,
    TenantUsage,
    Turn,
    read_limits,
)
from pagewire.wire.control import Reload
from pagewire.wire.model import ModelSpec
from pagewire.wire.requests import FinishKind, RejectKind, Submit

Run = Callable[[Coroutine[Any, Any, None]], None]
KEYS = {tenant: f"sixteen-letters-of-{tenant}" for tenant in ("red", "blue")}


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def usage_of(clock: Clock, **limits: int) -> TenantUsage:
    usage = TenantUsage(clock)
    usage.use({"red": TenantLimits(**limits)})
    return usage


def wait_s(usage: TenantUsage, tenant: str = "red") -> float | None:
    """What a refused call is told to wait; none for one that is let in, and has then ended."""
    try:
        with usage.turn(tenant):
            return None
    except ResourceExhausted as refused:
        return refused.retry_after_s or -1.0


@given(
    per_minute=st.integers(1, 1000),
    waits=st.lists(st.floats(0, 30), max_size=50),
)
def test_requests_a_minute_are_never_more_and_the_told_time_is_right(per_minute: int, waits: list[float]) -> None:
    clock = Clock()
    usage = usage_of(clock, requests_per_minute=per_minute)
    begun_s, num_let_in = clock.now_s, 0
    for pause_s in waits:
        clock.now_s += pause_s
        told_s = wait_s(usage)
        num_let_in += told_s is None
        # A minute's worth at first, and then as time goes.
        assert num_let_in <= per_minute + (clock.now_s - begun_s) * per_minute / 60 + 1e-6
        if told_s is not None:
            clock.now_s += told_s * 0.9
            assert wait_s(usage) is not None  # not before
            clock.now_s += told_s * 0.1 + 0.001
            assert wait_s(usage) is None  # and then it is let in
            num_let_in += 1


def test_tokens_are_taken_off_at_the_end_and_a_debt_is_waited_for() -> None:
    clock = Clock()
    usage = usage_of(clock, tokens_per_minute=60)
    with usage.turn("red") as turn:
        with usage.turn("red"):  # nobody knows yet what the first will use
            pass
        turn.num_tokens = 90
    assert wait_s(usage) == 31.0  # 30 of debt, and one token's worth
    clock.now_s += 31.0
    assert wait_s(usage) is None
    assert wait_s(usage, "blue") is None  # who is not in the file has no limit


def test_requests_at_once_are_given_back_however_they_end() -> None:
    usage = usage_of(Clock(), max_concurrent_requests=2)
    for _ in range(3):
        with contextlib.suppress(KeyError), usage.turn("red"), usage.turn("red"):
            assert wait_s(usage) == 1.0
            raise KeyError
        assert wait_s(usage) is None


def test_a_priority_above_the_tenants_is_refused_and_none_is_lowered() -> None:
    turn = Turn(TenantLimits(max_priority=-5))
    assert turn.priority(-7, is_set=True) == -7
    assert turn.priority(0, is_set=False) == -5
    with pytest.raises(InvalidArgument, match=r"generation\.priority is 0; this tenant's limit is -5"):
        turn.priority(0, is_set=True)
    assert Turn(TenantLimits()).priority(100, is_set=True) == 100


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", ""),
        ("[]", "object"),
        ('{"red": {"max_requests": 1}}', "max_requests"),
        ('{"red": {"requests_per_minute": 0}}', "requests_per_minute"),
        ('{"red": {"max_priority": 101}}', "max_priority"),
        ('{"red": {"tokens_per_minute": 1.5}}', "tokens_per_minute"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, complaint: str) -> None:
    file = tmp_path / "limits.json"
    file.write_text(content)
    with pytest.raises(LimitsFileError, match=f"{file}: .*{complaint}"):
        read_limits(str(file))


def test_calls_are_limited_by_tenant_and_the_file_is_read_again(spec: ModelSpec, run: Run, tmp_path: Path) -> None:
    keys, limits = tmp_path / "keys", tmp_path / "limits.json"
    keys.write_text("".join(f"{tenant}:{key}\n" for tenant, key in KEYS.items()))
    limits.write_text('{"red": {"requests_per_minute": 1, "max_priority": 0}, "*": {"max_concurrent_requests": 1}}')
    red, blue = ([("authorization", f"Bearer {key}")] for key in KEYS.values())

    async def test() -> None:
        files = {"api_keys_file": str(keys), "tenant_limits_file": str(limits)}
        # The clock that is set forward is the engine's silence's too.
        async with running_frontend(spec, engine_timeout_s=1000.0, **files) as world:
            stream = world.inference.StreamGenerate

            async def refused(metadata: Any) -> float:
                error = await failure(stream(ids_request(), metadata=metadata))
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                told = detail(error, error_details_pb2.RetryInfo).retry_delay
                return float(told.seconds + told.nanos / 1e9)

            assert violated_field(await failure(stream(ids_request(priority=1), metadata=red))) == "generation.priority"
            assert 59 < await refused(red) <= 60  # that one counted
            world.clock.advance(60)
            for metadata in (blue, red):
                call = stream(ids_request(), metadata=metadata)
                submit = await world.engine.act(Submit)
                if metadata is blue:
                    assert await refused(blue) == 1.0
                await world.engine.answer(submit.handle, [1], FinishKind.LENGTH)
                assert [message async for message in call]
            assert 59 < await refused(red) <= 60
            limits.write_text('{"red": {"tokens_per_minute": 3}}')
            world.frontend.handle(Reload())
            while (await failure_or_none(stream(ids_request(), metadata=red, timeout=0.05))) == "RESOURCE_EXHAUSTED":
                pass

    run(test())


def test_a_tenant_that_has_no_key_is_warned_of_when_the_file_is_read(
    spec: ModelSpec, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys, limits = tmp_path / "keys", tmp_path / "limits.json"
    keys.write_text("".join(f"{tenant}:{key}\n" for tenant, key in KEYS.items()))
    limits.write_text('{"red": {}, "*": {}, "blu": {"requests_per_minute": 1}}')

    async def test() -> None:
        async with running_frontend(spec, api_keys_file=str(keys), tenant_limits_file=str(limits)):
            pass

    run(test())
    said = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert said == [f"{limits} limits 1 tenants that have no key: 'blu'"]


def test_a_request_that_never_ran_costs_no_tokens(spec: ModelSpec, run: Run, tmp_path: Path) -> None:
    keys, limits = tmp_path / "keys", tmp_path / "limits.json"
    keys.write_text(f"red:{KEYS['red']}\n")
    limits.write_text('{"red": {"tokens_per_minute": 3}}')
    red = [("authorization", f"Bearer {KEYS['red']}")]

    async def test() -> None:
        files = {"api_keys_file": str(keys), "tenant_limits_file": str(limits)}
        async with running_frontend(spec, **files) as world:
            calls: tuple[Callable[[], Any], ...] = (
                lambda: world.inference.StreamGenerate(ids_request(1, 2, 3, 4), metadata=red),
                lambda: world.inference.Generate(unary(ids_request(1, 2, 3, 4)), metadata=red),
            )
            for call in calls:
                refused = call()
                submit = await world.engine.act(Submit)
                await world.engine.reject(submit.handle, RejectKind.QUEUE_FULL)
                assert "the script says no" in str((await failure(refused)).details())
            ran = calls[0]()
            submit = await world.engine.act(Submit)
            await world.engine.answer(submit.handle, [1], FinishKind.LENGTH)
            assert [message async for message in ran]
            assert "has used its 3 tokens a minute" in str((await failure(calls[0]())).details())

    run(test())


async def failure_or_none(call: Any) -> str:
    """How a call ends that nobody answers: refused, or by its deadline."""
    return str((await failure(call)).code().name)
