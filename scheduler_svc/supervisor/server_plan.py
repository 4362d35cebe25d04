"""The server plan: what a server consists of, decided once before anything starts, and each child's launch.

Pure: it reads no file, opens no socket and starts no process.
"""

import sys
from pathlib import Path

import msgspec

from pagewire.scheduler_svc.launch import ConnectionLimits, EngineLaunch, FrontendLaunch, KvEventsLaunch, TlsFiles
from pagewire.scheduler_svc.settings.checks import tenants_of
from pagewire.scheduler_svc.settings.settings import Settings
from pagewire.scheduler_svc.settings.sources import as_text
from pagewire.wire.launch import CurveKeys, Device, Endpoint, RankGroup, WorkerLaunch
from pagewire.wire.model import DType, ModelSpec

RANKS_STORE = "ranks.store"
"""File in the runtime directory where this host's ranks meet."""

_ENGINE_TIMEOUT_INTERVALS = 10
_LEAST_ENGINE_TIMEOUT_S = 5.0
"""An engine that says nothing for this long, or ten load intervals, counts as lost: a step of a large prompt on a slow
CPU may hold its next report up for a second or two."""

_STEP_SLACK_S: dict[Device, float] = {"cpu": 1.5, "sim": 1.5, "cuda": 30.0}
"""How much longer than three times what comparable steps took a step may take. On a GPU kernels may be compiled when
they are first used. Elsewhere, and with half a second for the engine's looks and their rounding, two seconds."""


class Commands(msgspec.Struct, frozen=True, kw_only=True):
    """How each child is started; `--launch FILE --lifeline-fd N` follows where nothing else is said. -P: the working
    directory's files must not stand in for modules of Python's own."""

    worker: tuple[str, ...] = (sys.executable, "-P", "-m", "pagewire.worker", "run")
    worker_forks: tuple[str, ...] = (sys.executable, "-P", "-m", "pagewire.worker", "fork-server")
    """What workers are forked from; `--device D --requests-fd N` follows."""
    engine: tuple[str, ...] = (sys.executable, "-P", "-m", "pagewire.scheduler_svc.engine")
    frontend_forks: tuple[str, ...] = (sys.executable, "-P", "-m", "pagewire.scheduler_svc.frontend", "fork-server")
    """What frontends are forked from; `--requests-fd N` follows."""
    gateway: tuple[str, ...] = (sys.executable, "-P", "-m", "pagewire.client", "gateway")
    """Which has flags of its own."""


class Addresses(msgspec.Struct, frozen=True):
    """Where a frontend listens; empty for an AdminService that is off."""

    address: str
    admin_address: str


def engine_timeout_s(settings: Settings) -> float:
    """How long an engine may say nothing before it counts as lost."""
    return max(_LEAST_ENGINE_TIMEOUT_S, _ENGINE_TIMEOUT_INTERVALS * settings.load_interval_s)


class ServerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that stays the same from start to end."""

    settings: Settings
    model: ModelSpec
    device: Device
    dtype: DType
    max_model_len: int
    runtime_dir: Path
    engine_keys: CurveKeys | None = None
    worker_keys: CurveKeys | None = None
    """Where workers connect by TCP; a rank on another host has the second alone."""
    link_password: str | None = None
    """What this server's processes show to each other."""
    started_unix_s: float
    otlp_endpoint: str | None = None
    """Where traces go, whoever said so."""
    host_name: str = "localhost"
    """Of this machine, in a cluster the pod's."""

    @property
    def world_size(self) -> int:
        """Ranks of the model, wherever they run."""
        return self.settings.tensor_parallel_size

    @property
    def num_local_ranks(self) -> int:
        """Those that the supervisor starts; the others come from other hosts."""
        return self.world_size - self.settings.remote_workers

    def worker_launch(self, rank: int, incarnation: int, earlier_num_blocks: int | None = None) -> WorkerLaunch:
        """What rank `rank` is started with; `earlier_num_blocks` as it had them, where it is started again."""
        settings = self.settings
        return WorkerLaunch(
            model=self.model,
            device=self.device,
            dtype=self.dtype,
            rank=rank,
            world_size=self.world_size,
            incarnation=incarnation,
            engine=self._worker_endpoint(engine_side=False),
            max_num_seqs=settings.max_num_seqs,
            max_model_len=self.max_model_len,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            block_size=settings.block_size,
            kv_cache_bytes=settings.kv_cache_bytes,
            earlier_num_blocks=earlier_num_blocks,
            num_threads=settings.num_threads,
            cpu_kernels=settings.cpu_kernels,
            quantization=settings.quantization,
            attention_backend=settings.attention_backend,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            enforce_eager=settings.enforce_eager,
            exact_continuation=settings.exact_continuation,
            sim_step_us=settings.sim_step_us,
            log_format=settings.log_format,
            group=self._group(rank),
        )

    def _group(self, rank: int) -> RankGroup | None:
        if self.world_size == 1:
            return None
        store = f"file://{self.runtime_dir}/{RANKS_STORE}"
        if self.settings.remote_workers:
            store = f"tcp://{self.settings.distributed_address}"
        return RankGroup(store=store, num_local_ranks=self.num_local_ranks, local_rank=rank)

    def engine_launch(self, incarnation: int) -> EngineLaunch:
        """What the engine is started with."""
        settings = self.settings
        return EngineLaunch(
            incarnation=incarnation,
            frontends=self._frontend_endpoint(),
            workers=self._worker_endpoint(engine_side=True),
            world_size=self.world_size,
            vocab_size=self.model.decoder.vocab_size,
            eos_token_ids=self.model.eos_token_ids,
            max_model_len=self.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_prefill_tokens_per_step=settings.max_prefill_tokens_per_step,
            max_queued=settings.max_queued,
            max_queued_tokens=settings.max_queued_tokens,
            enable_prefix_caching=settings.enable_prefix_caching,
            pipeline_depth=settings.pipeline_depth,
            load_interval_s=settings.load_interval_s,
            hang_timeout_s=settings.hang_timeout_s,
            step_slack_s=_STEP_SLACK_S[self.device],
            max_restarts=settings.max_restarts,
            kv_events=self._kv_events(),
            measures=settings.metrics_listen is not None,
            log_level=settings.log_level,
            log_format=settings.log_format,
        )

    def _kv_events(self) -> KvEventsLaunch | None:
        settings = self.settings
        if settings.kv_events is None:
            return None
        inside = self._frontend_kv_events()
        asked_for = [address for address in (settings.kv_events_replay,) if address is not None]
        return KvEventsLaunch(
            addresses=(settings.kv_events, *([] if inside is None else inside.addresses)),
            replay_addresses=(*asked_for, *([] if inside is None else inside.replay_addresses)),
            topic=self._kv_events_topic(),
        )

    def _frontend_kv_events(self) -> KvEventsLaunch | None:
        """Where frontends follow them, for callers of the facade."""
        if self.settings.kv_events is None or not self.settings.vllm_grpc:
            return None
        return KvEventsLaunch(
            addresses=(f"ipc://{self.runtime_dir}/kv-events.sock",),
            replay_addresses=(f"ipc://{self.runtime_dir}/kv-replay.sock",),
            topic=self._kv_events_topic(),
        )

    def _kv_events_topic(self) -> str:
        topic = self.settings.kv_events_topic
        return f"kv@{self.host_name}@{self.model.name}" if topic is None else topic

    def frontend_launch(self, index: int, incarnation: int, known: Addresses | None) -> FrontendLaunch:
        """What frontend `index` is started with; `known` are the addresses that an earlier one has bound, if any."""
        settings = self.settings
        tls = None
        if settings.tls_certificate is not None and settings.tls_key is not None:
            tls = TlsFiles(certificate=settings.tls_certificate, key=settings.tls_key, client_ca=settings.tls_client_ca)
        admin_listen = known.admin_address if known is not None else settings.admin_listen
        return FrontendLaunch(
            index=index,
            incarnation=incarnation,
            engine=self._frontend_endpoint(),
            model=self.model,
            device=self.device,
            dtype=self.dtype,
            listen=known.address if known is not None else settings.listen,
            admin_listen=admin_listen if index == 0 and settings.admin_listen else None,
            health_listen=settings.health_listen if index == 0 else None,
            reuse_port=settings.frontends > 1,
            max_num_seqs=settings.max_num_seqs,
            max_model_len=self.max_model_len,
            max_n=settings.max_n,
            max_queued=settings.max_queued,
            max_message_bytes=settings.max_message_bytes,
            max_request_bytes_in_flight=settings.max_request_bytes_in_flight,
            stream_buffer_tokens=settings.stream_buffer_tokens,
            slow_reader_timeout_s=settings.slow_reader_timeout_s,
            engine_timeout_s=engine_timeout_s(settings),
            vllm_grpc=settings.vllm_grpc,
            orca_load_reports=settings.orca_load_reports,
            otlp_endpoint=self.otlp_endpoint,
            kv_events=self._frontend_kv_events(),
            connections=ConnectionLimits(
                max_connections=settings.max_connections,
                max_idle_s=settings.max_connection_idle_s,
                max_age_s=settings.max_connection_age_s,
                age_grace_s=settings.max_connection_age_grace_s,
            ),
            tls=tls,
            api_keys_file=settings.api_keys_file,
            client_identity=settings.tls_client_identity,
            admin_tenants=tenants_of(settings.admin_tenants),
            tenant_limits_file=settings.tenant_limits_file,
            settings=as_text(settings),
            started_unix_s=self.started_unix_s,
            measures=settings.metrics_listen is not None,
            log_level=settings.log_level,
            log_format=settings.log_format,
        )

    @property
    def sockets(self) -> list[str]:
        """Files in the runtime directory that an engine which serves has bound."""
        bound = [self._frontend_endpoint().address, self._worker_endpoint(engine_side=True).address]
        if (events := self._frontend_kv_events()) is not None:
            bound += [*events.addresses, *events.replay_addresses]
        here = f"ipc://{self.runtime_dir}/"
        return [address.removeprefix(here) for address in bound if address.startswith(here)]

    def _frontend_endpoint(self) -> Endpoint:
        return Endpoint(address=f"ipc://{self.runtime_dir}/frontends.sock", password=self.link_password)

    def _worker_endpoint(self, engine_side: bool) -> Endpoint:
        keys = self.engine_keys if engine_side else self.worker_keys
        if keys is None:
            return Endpoint(address=f"ipc://{self.runtime_dir}/workers.sock", password=self.link_password)
        return Endpoint(address=self.settings.worker_transport, curve=keys)
