"""A frontend, put together: listeners, services, the engine, and the supervisor's commands.

It owns the order of starting, draining and stopping, and nothing of a request. `__main__` gives it the outside host:
launch file, clock, randomness, and a way to talk to the supervisor.

    start   text parts, engine link, listeners bound and serving, then Ready
    drain   NOT_SERVING at once; new calls for `delay_s` more; then refused; at most `grace_s` more for those that run,
            then cut with UNAVAILABLE; listeners closed; Drained
    reload  keys and certificates are read again
    stop    cut, close, end
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import msgspec
from grpc_reflection.v1alpha import reflection

from pagewire.scheduler_svc.endings import is_ending
from pagewire.scheduler_svc.frontend.errors import InternalError
from pagewire.scheduler_svc.frontend.fairness import RequestBytes
from pagewire.scheduler_svc.frontend.limits import MAX_CALLS
from pagewire.scheduler_svc.frontend.request.prompt import PromptReader
from pagewire.scheduler_svc.frontend.rpc.admin import AdminService
from pagewire.scheduler_svc.frontend.rpc.auth import Authenticator, AuthInterceptor
from pagewire.scheduler_svc.frontend.rpc.boundary import ErrorBoundary
from pagewire.scheduler_svc.frontend.rpc.credentials import Credentials
from pagewire.scheduler_svc.frontend.rpc.drain import RunningCalls
from pagewire.scheduler_svc.frontend.rpc.generations import GenerationParts, Generations
from pagewire.scheduler_svc.frontend.rpc.health import Health, serve_health
from pagewire.scheduler_svc.frontend.rpc.inference import InferenceService
from pagewire.scheduler_svc.frontend.rpc.listener import ADMIN_CONNECTIONS, bind, create_server
from pagewire.scheduler_svc.frontend.rpc.load_reports import LoadReports
from pagewire.scheduler_svc.frontend.rpc.model_service import ModelService, ServedModel, can_constrain
from pagewire.scheduler_svc.frontend.rpc.observers import RequestObservers
from pagewire.scheduler_svc.frontend.rpc.tenant_limits import TenantUsage
from pagewire.scheduler_svc.frontend.streams.backpressure import ReaderLimits
from pagewire.scheduler_svc.frontend.streams.engine_client import EngineClient
from pagewire.scheduler_svc.frontend.streams.measures import FrontendMeasures
from pagewire.scheduler_svc.frontend.text.chat_template import ChatTemplate, RenderLimits, TemplateRefusedError
from pagewire.scheduler_svc.frontend.text.grammar_compiler import CompileLimits, GrammarCompiler
from pagewire.scheduler_svc.frontend.text.tokenizer import NUM_THREADS, TextTokenizer
from pagewire.scheduler_svc.launch import FrontendLaunch
from pagewire.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc
from pagewire.wire.control import (
    Drain,
    Drained,
    DrainRequested,
    EngineRestarted,
    FromChild,
    Ready,
    Reload,
    Stop,
    ToChild,
    WorkerLost,
)

_log = logging.getLogger(__name__)
_HEALTH_CHECK_INTERVAL_S = 0.5
_CLOSE_GRACE_S = 0.5
_BEAT_INTERVAL_S = 1.0
_INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
_MODEL = model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name


async def _start(template: ChatTemplate, origin: str) -> None:
    """Raises TemplateRefusedError, which names the file where that is known."""
    try:
        await template.start()
    except TemplateRefusedError as error:
        raise TemplateRefusedError(f"{origin}: {error}" if origin else str(error)) from error


@dataclass(frozen=True, kw_only=True)
class FrontendHost:
    """What a frontend takes from outside."""

    clock: Callable[[], float]
    """Monotonic, in seconds."""
    draw_seed: Callable[[], int]
    draw_request_id: Callable[[], str]
    send: Callable[[FromChild], None]
    """To the supervisor."""
    beat: Callable[[], None]
    """Tells the supervisor that the event loop goes round."""
    offer: Callable[[FromChild], object]
    """To the supervisor, without waiting; may be left out."""


class Frontend:
    """One frontend process's parts. Make it, then `run` it, on one event loop."""

    def __init__(self, launch: FrontendLaunch, host: FrontendHost) -> None:
        self._launch = launch
        self._host = host
        self._calls = RunningCalls()
        self._was_told_to_stop = False
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._servers: list[grpc.aio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, on_ready: Callable[[Ready], None]) -> None:
        """Serve until a Stop. Raises what keeps it from starting, and InternalError for a broken invariant."""
        launch = self._launch
        spec = launch.model
        usage = TenantUsage(self._host.clock)
        self._credentials = Credentials(launch, usage)
        threads = ThreadPoolExecutor(max_workers=NUM_THREADS, thread_name_prefix="tokenizer")
        tokenizer = None if spec.tokenizer_file is None else TextTokenizer(spec.tokenizer_file, spec, threads)
        template: ChatTemplate | None = None
        if tokenizer is not None and (spec.chat_template is not None or spec.tool_use_template is not None):
            # A rendered prompt may be as long as a text prompt may be.
            limits = RenderLimits(max_output_bytes=launch.max_message_bytes)
            template = ChatTemplate(spec.chat_template, limits, spec.tool_use_template)
        grammars = GrammarCompiler(spec, CompileLimits()) if can_constrain(spec, launch.device) else None
        self._health = Health(self._is_serving, _HEALTH_CHECK_INTERVAL_S)
        self._measures = FrontendMeasures(self._host.clock) if launch.measures else None
        self._engine = EngineClient(launch, self._host.clock, self._health.poke, self._broken, self._measures)
        model = ServedModel(launch, self._engine.status)
        observers = RequestObservers(launch, self._host.clock)
        parts = GenerationParts(
            model=model,
            engine=self._engine,
            calls=self._calls,
            authenticator=self._credentials.authenticator,
            tokenizer=tokenizer,
            prompts=PromptReader(tokenizer, template),
            grammars=grammars,
            request_bytes=RequestBytes(launch.max_request_bytes_in_flight),
            usage=usage,
            records=observers.records(self._host.clock),
            reader=ReaderLimits(pause_tokens=launch.stream_buffer_tokens, timeout_s=launch.slow_reader_timeout_s),
            clock=self._host.clock,
            draw_seed=self._host.draw_seed,
            draw_request_id=self._host.draw_request_id,
            measures=self._measures,
        )
        try:
            if grammars is not None and launch.incarnation > 0:
                # Constrained streams may come back from the one before, and would wait for it behind all others.
                grammars.start_soon()
            if template is not None:
                await _start(template, spec.template_origin)
            address = await self._listen(parts, threads)
            admin_address = await self._listen_admin(parts.authenticator)
            if launch.health_listen is not None:
                boundary = ErrorBoundary(MAX_CALLS, self._broken)
                self._servers.append(await serve_health(self._health, launch, (_INFERENCE, _MODEL), boundary))
            self._spawn(self._health.run())
            self._spawn(self._engine.follow())
            self._spawn(self._credentials.follow())
            self._spawn(self._beat())
            on_ready(Ready(address, admin_address))
            await self._ended
        finally:
            if not (self._was_told_to_stop or self._calls.draining.is_set()):
                self._calls.lose_process("a frontend of the server ends")  # and will be started again
            self._calls.refuse_new()
            self._calls.cut()
            await self._close_listeners(_CLOSE_GRACE_S)
            if self._measures is not None:
                self._host.offer(self._measures.report())  # with the calls that this end has ended
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._engine.close()
            for helpers in (template, grammars):
                if helpers is not None:
                    await helpers.close()
            observers.close()
            threads.shutdown(wait=False, cancel_futures=True)

    async def _listen(self, parts: GenerationParts, threads: Executor) -> str:
        launch = self._launch
        reports: LoadReports | None = None
        if launch.orca_load_reports:
            reports = LoadReports(self._engine.status, launch.max_num_seqs, self._host.clock)
        interceptors = [self._boundary(reports), AuthInterceptor(parts.authenticator, for_admins=False)]
        server = create_server(launch.max_message_bytes, launch.reuse_port, launch.connections, interceptors)
        generations = Generations(parts)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceService(generations, parts), server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(parts.model), server)
        services = [_INFERENCE, _MODEL]
        if launch.vllm_grpc:
            services.append(self._add_facade(server, generations, parts.model, threads))
        return await self._serve(server, launch.listen, services)

    def _add_facade(
        self, server: grpc.aio.Server, generations: Generations, model: ServedModel, threads: Executor
    ) -> str:
        # Its messages are a package of their own, which is not installed with every server.
        from pagewire.scheduler_svc.frontend.vllm_engine.facts import Facts
        from pagewire.scheduler_svc.frontend.vllm_engine.service import VllmEngineParts, add_to
        from pagewire.scheduler_svc.frontend.vllm_engine.tokenizer_files import TokenizerArchive

        definition = model.spec.tokenizer_file
        parts = VllmEngineParts(
            generations=generations,
            engine=self._engine,
            facts=Facts(self._launch, model, self._engine.status, self._host.clock),
            is_serving=self._is_serving,
            tokenizer=None if definition is None else TokenizerArchive(model.spec, definition, threads),
            kv_events=self._launch.kv_events,
        )
        return add_to(server, parts)

    async def _listen_admin(self, authenticator: Authenticator) -> str:
        launch = self._launch
        if launch.admin_listen is None:
            return ""
        interceptors = [self._boundary(), AuthInterceptor(authenticator, for_admins=True)]
        connections = msgspec.structs.replace(launch.connections, max_connections=ADMIN_CONNECTIONS)
        server = create_server(launch.max_message_bytes, False, connections, interceptors)
        admin = AdminService(launch, self._engine, self._calls, self._request_drain)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
        return await self._serve(server, launch.admin_listen, (_ADMIN,))

    def _boundary(self, reports: LoadReports | None = None) -> ErrorBoundary:
        on_refusal = None if self._measures is None else self._measures.refused
        return ErrorBoundary(MAX_CALLS, self._broken, on_refusal, reports)

    async def _serve(self, server: grpc.aio.Server, address: str, services: Sequence[str]) -> str:
        self._health.add_to(server, services)
        reflection.enable_server_reflection((*services, "grpc.health.v1.Health", reflection.SERVICE_NAME), server)
        bound = bind(server, address, self._credentials.tls)
        await server.start()
        self._servers.append(server)
        return bound

    async def _beat(self) -> None:
        while True:
            self._host.beat()
            if self._measures is not None:
                self._host.offer(self._measures.report())
            await asyncio.sleep(_BEAT_INTERVAL_S)

    def _is_serving(self) -> bool:
        return self._engine.status.is_serving and not self._calls.draining.is_set()

    def _request_drain(self, grace_s: float | None) -> None:
        self._host.send(DrainRequested(grace_s))

    def handle(self, command: ToChild) -> None:
        """A command of the supervisor, on the event loop."""
        try:
            self._obey(command)
        except BaseException as error:
            if is_ending(error):
                raise
            _log.error("a command of the supervisor met a bug", exc_info=error)
            self._broken(InternalError(f"{type(command).__name__}: {error!r}"))

    def _obey(self, command: ToChild) -> None:
        match command:
            case Drain():
                if not self._calls.draining.is_set():
                    self._calls.draining.set()
                    self._health.poke()
                    self._spawn(self._drain(command))
            case EngineRestarted():
                self._engine.engine_restarted()
            case Reload():
                self._spawn(self._credentials.reload())
            case Stop(worker_lost):
                if worker_lost:
                    self._calls.lose_process("the server ends: one of its processes was lost too often")
                self._was_told_to_stop = True
                self.stop()
            case WorkerLost():
                _log.warning("a command for the engine reached a frontend: %s", command)

    def stop(self) -> None:
        """End now."""
        if not self._ended.done():
            self._ended.set_result(None)

    def _broken(self, error: InternalError) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)

    async def _drain(self, drain: Drain) -> None:
        await asyncio.sleep(drain.delay_s)
        self._calls.refuse_new()
        cut_streams = 0
        if not await self._calls.wait_idle(drain.grace_s):
            cut_streams = self._calls.cut()
        await self._close_listeners(_CLOSE_GRACE_S)
        self._host.send(Drained(cut_streams))

    async def _close_listeners(self, grace_s: float) -> None:
        servers, self._servers = self._servers, []
        await asyncio.gather(*[server.stop(grace_s) for server in servers])

    def _spawn(self, coroutine: Coroutine[object, object, None]) -> None:
        """A task of the frontend's own; a bug in it ends the process."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a task failed", exc_info=error)
            self._broken(InternalError(repr(error)))
