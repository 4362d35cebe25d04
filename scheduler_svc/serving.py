"""Serving: from settings to a running server, or to one rank of a server on another host, and to the exit status.

It finds the model, decides what depends on it and on this machine, makes what the supervisor acts through, and takes it
down again. It knows neither flags nor signals before the supervisor's loop: those are the command's.
"""

import asyncio
import logging
import os
import platform
import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pagewire.scheduler_svc.metrics.families import Family, pagewire_families
from pagewire.scheduler_svc.metrics.totals import ServerTotals
from pagewire.scheduler_svc.metrics.vllm_names import vllm_families
from pagewire.scheduler_svc.models.cache import cache_dir_of
from pagewire.scheduler_svc.models.resolve import check_weights, resolve_model
from pagewire.scheduler_svc.progress import closing_progress, make_progress
from pagewire.scheduler_svc.settings.device import (
    check_tensor_parallel,
    choose_device,
    choose_dtype,
    choose_max_model_len,
    read_cpuinfo,
)
from pagewire.scheduler_svc.settings.exposure import exposure_warnings
from pagewire.scheduler_svc.settings.settings import Settings
from pagewire.scheduler_svc.settings.traces import traces_endpoint
from pagewire.scheduler_svc.standard_streams import complain
from pagewire.scheduler_svc.supervisor.curve_keys import read_curve_keys, read_worker_keys
from pagewire.scheduler_svc.supervisor.events import Outcome
from pagewire.scheduler_svc.supervisor.gateway_process import GatewayProcess
from pagewire.scheduler_svc.supervisor.held_address import HeldAddress
from pagewire.scheduler_svc.supervisor.host import Host, SystemdNotifier, SystemdProgress
from pagewire.scheduler_svc.supervisor.ready_report import ReadyReport
from pagewire.scheduler_svc.supervisor.remote_rank import RemoteRank, remote_launch
from pagewire.scheduler_svc.supervisor.runtime_dir import RuntimeDir
from pagewire.scheduler_svc.supervisor.server_plan import Addresses, Commands, ServerPlan, engine_timeout_s
from pagewire.scheduler_svc.supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from pagewire.scheduler_svc.metrics.listener import MetricsListener


def run_server(settings: Settings, commands: Commands, ready: ReadyReport, *, quiet: bool) -> int:
    """Serve until the end; returns the exit status. Raises StartupError."""
    started_unix_s = time.time()
    for warning in exposure_warnings(settings):
        logging.warning("%s", warning)
    with (
        ready,
        _held_addresses(settings),
        _gateway(settings, commands) as gateway,
        _metrics(settings) as metrics,
        _host_of(settings, commands, quiet=quiet) as host,
    ):
        plan = _plan(settings, host, started_unix_s)
        if settings.curve_dir is not None:
            engine_keys, worker_keys = read_curve_keys(Path(settings.curve_dir), os.environ)
            plan = msgspec.structs.replace(plan, engine_keys=engine_keys, worker_keys=worker_keys)

        def announce(addresses: Addresses) -> None:
            if gateway is not None:
                gateway.start(addresses.address, addresses.admin_address)
            openai_url = "" if gateway is None else gateway.url
            ready.announce(plan.model.name, addresses, openai_url, "" if metrics is None else metrics.url)

        host = msgspec.structs.replace(host, announce=announce)
        answering: AbstractAsyncContextManager[None] = nullcontext()
        if metrics is not None:
            host = msgspec.structs.replace(host, totals=metrics.totals)
            answering = metrics.serving(_families(plan))
        outcome = asyncio.run(_served(Supervisor(plan, host), gateway, answering))
    return _ended(outcome, settings)


async def _served(
    supervisor: Supervisor, gateway: GatewayProcess | None, answering: AbstractAsyncContextManager[None]
) -> Outcome:
    """The gateway ends behind the server, whose last streams it carries."""
    try:
        async with answering:
            return await supervisor.run()
    finally:
        if gateway is not None:
            await gateway.stop()


def run_rank(settings: Settings, rank: int, commands: Commands, *, quiet: bool) -> int:
    """Run one rank of a server on another host until told to stop; returns the exit status. Raises StartupError."""
    assert settings.curve_dir is not None, "settings with a transport of tcp have keys"
    keys = read_worker_keys(Path(settings.curve_dir), os.environ)
    with _host_of(settings, commands, quiet=quiet) as host:
        plan = msgspec.structs.replace(_plan(settings, host, time.time()), worker_keys=keys)
        outcome = asyncio.run(RemoteRank(remote_launch(plan, rank), host).run())
    return _ended(outcome, settings)


@contextmanager
def _held_addresses(settings: Settings) -> Iterator[None]:
    """What frontends will listen on is this server's alone, from before its model is fetched. Raises SettingsError."""
    with (
        HeldAddress.hold("listen", settings.listen, is_shared=settings.frontends > 1),
        HeldAddress.hold("admin_listen", settings.admin_listen, is_shared=False),
        HeldAddress.hold("health_listen", settings.health_listen or "", is_shared=False),
    ):
        yield


@contextmanager
def _gateway(settings: Settings, commands: Commands) -> Iterator[GatewayProcess | None]:
    """None where none is wanted. Raises SettingsError."""
    if settings.openai is None:
        yield None
        return
    with GatewayProcess(settings.openai, commands.gateway, os.environ) as gateway:
        yield gateway


@contextmanager
def _metrics(settings: Settings) -> Iterator["MetricsListener | None"]:
    """None where none are wanted. Raises SettingsError."""
    if settings.metrics_listen is None:
        yield None
        return
    # prometheus-client takes as long to import as all else that the supervisor does before the model.
    from pagewire.scheduler_svc.metrics.listener import MetricsListener

    with MetricsListener(settings.metrics_listen, ServerTotals(engine_timeout_s(settings))) as metrics:
        yield metrics


def _families(plan: ServerPlan) -> list[Family]:
    families = pagewire_families(plan.model.name, version("pagewire"), plan.device)
    if plan.settings.metrics_names == "vllm":
        families += vllm_families(plan.model.name)
    return families


@contextmanager
def _host_of(settings: Settings, commands: Commands, *, quiet: bool) -> Iterator[Host]:
    """Announces nothing."""
    notifier = SystemdNotifier(os.environ)
    with (
        RuntimeDir.open(settings.runtime_dir) as runtime_dir,
        closing_progress(SystemdProgress(make_progress(quiet, settings.log_format), notifier)) as progress,
    ):
        yield Host(
            commands=commands,
            runtime_dir=runtime_dir,
            environ=os.environ,
            progress=progress,
            notifier=notifier,
            announce=lambda addresses: None,
        )


def _plan(settings: Settings, host: Host, started_unix_s: float) -> ServerPlan:
    """Find the model, and decide what depends on it and on this machine."""
    otlp_endpoint = traces_endpoint(settings, os.environ)
    device = choose_device(settings)
    model = resolve_model(
        settings.model,
        served_name=settings.served_model_name,
        weights_needed=device != "sim",
        cache_dir=cache_dir_of(settings.cache_dir, os.environ),
        environ=os.environ,
        progress=host.progress,
    )
    if device != "sim":
        check_weights(model)
    check_tensor_parallel(settings, device, model.decoder)
    return ServerPlan(
        settings=settings,
        model=model,
        device=device,
        dtype=choose_dtype(settings, device, read_cpuinfo()),
        max_model_len=choose_max_model_len(settings, device, model.decoder),
        runtime_dir=host.runtime_dir.path,
        link_password=secrets.token_hex(32),
        started_unix_s=started_unix_s,
        otlp_endpoint=otlp_endpoint,
        host_name=platform.node() or "localhost",
    )


def _ended(outcome: Outcome, settings: Settings) -> int:
    if outcome.message:
        complain(outcome.message, settings.log_format)
    return outcome.status
