"""Facts: the model, the server and its load, in the facade's words.

Fields that speak of what is not built (media, key-value transfer between servers, speculation) stay as the proto has
them where there is none.
"""

import importlib.metadata
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from smg_grpc_proto import vllm_engine_pb2 as vllm

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.rpc.model_service import ServedModel, can_constrain
from pagewire.scheduler_svc.frontend.streams.engine_status import EngineStatus
from pagewire.scheduler_svc.frontend.vllm_engine.tokenizer_files import CONFIG
from pagewire.scheduler_svc.launch import FrontendLaunch
from pagewire.v1 import model_pb2
from pagewire.wire.requests import Load
from pagewire.wire.sampling import SamplingParams

_SERVER_TYPE = "vllm-grpc"
"""The proto's own value: whose service this is, not whose server."""
_SECTIONS = ("core", "all")
_RATE_INTERVAL_S = 1.0
_ARCHITECTURES = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
}


class Facts:
    """What there is to say of one server."""

    def __init__(
        self, launch: FrontendLaunch, model: ServedModel, status: EngineStatus, clock: Callable[[], float]
    ) -> None:
        self._launch = launch
        self._model = model
        self._status = status
        self._rate = TokenRate(clock)
        self.last_received_unix_s = 0.0
        """When the last Generate came in."""

    def model_info(self) -> Any:
        """A GetModelInfoResponse."""
        spec, limits = self._model.spec, self._model.limits
        defaults, neutral = spec.sampling, SamplingParams()
        changed = {
            field.name: value
            for field in model_pb2.DefaultSampling.DESCRIPTOR.fields
            if (value := getattr(defaults, field.name)) != getattr(neutral, field.name)
        }
        path = self._launch.settings.get("model", spec.name)
        return vllm.GetModelInfoResponse(
            model_path=path,
            is_generation=True,
            max_context_length=limits.max_model_len,
            vocab_size=limits.vocab_size,
            served_model_name=spec.name,
            tokenizer_path=self._tokenizer_path() or path,
            model_type=spec.decoder.architecture,
            architectures=[_ARCHITECTURES[spec.decoder.architecture]],
            eos_token_ids=spec.eos_token_ids,
            max_req_input_len=limits.max_model_len - 1,
            default_sampling_params_json=msgspec.json.encode(changed).decode() if changed else "",
        )

    def _tokenizer_path(self) -> str | None:
        """The folder of the model's own files, where there is one: a gateway on this machine reads them itself, and any
        other asks for them."""
        file = self._model.spec.tokenizer_file
        if file is None or not (Path(file).parent / CONFIG).is_file():
            return None
        return str(Path(file).parent)

    def server_info(self) -> Any:
        """A GetServerInfoResponse."""
        load, info, launch = self._status.load, self._status.info, self._launch
        return vllm.GetServerInfoResponse(
            active_requests=load.running + load.waiting + load.paused if load is not None else 0,
            last_receive_timestamp=self.last_received_unix_s,
            uptime_seconds=max(0.0, time.time() - launch.started_unix_s),
            server_type=_SERVER_TYPE,
            data_parallel_size=1,
            kv_cache_dtype="auto",
            block_size=info.block_size if info is not None else 0,
            attention_backend=info.attention_backend if info is not None else "",
            model_dtype=f"torch.{launch.dtype}",
            max_num_seqs=launch.max_num_seqs,
            constrained_decoding_start="first_token" if can_constrain(launch.model, launch.device) else "",
        )

    def loads(self, request: Any) -> Any:
        """A GetLoadsResponse to a GetLoadsRequest. Raises InvalidArgument."""
        if request.HasField("dp_rank") and request.dp_rank != 0:
            raise InvalidArgument("dp_rank", f"is {request.dp_rank}; this server has one rank, 0")
        for index, section in enumerate(request.include):
            if section not in _SECTIONS:
                raise InvalidArgument(f"include[{index}]", "names a section that is not here; core is all there is")
        response = vllm.GetLoadsResponse(
            timestamp=datetime.now(UTC).isoformat(), version=importlib.metadata.version("pagewire"), dp_rank_count=1
        )
        load, info = self._status.load, self._status.info
        if load is not None and info is not None:
            self._describe(load, info.block_size, response.loads.add())
        return response

    def _describe(self, load: Load, block_size: int, into: Any) -> None:
        into.num_running_reqs = load.running
        into.num_waiting_reqs = load.waiting
        into.num_total_reqs = load.running + load.waiting + load.paused
        into.num_used_tokens = load.used_blocks * block_size
        into.max_total_num_tokens = load.total_blocks * block_size
        into.token_usage = load.used_blocks / load.total_blocks if load.total_blocks else 0.0
        into.gen_throughput = self._rate.tokens_per_s(load.output_tokens)
        into.cache_hit_rate = load.cached_prompt_tokens / load.prompt_tokens if load.prompt_tokens else 0.0
        into.max_running_requests = self._launch.max_num_seqs
        into.utilization = load.running / self._launch.max_num_seqs


class TokenRate:
    """Tokens a second between two looks that are at least a second apart."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: tuple[float, int] | None = None
        self._rate = 0.0

    def tokens_per_s(self, total: int) -> float:
        """`total`: tokens since the engine's start. 0 before the second look, and after a new engine's first."""
        now_s = self._clock()
        if self._seen is None or total < self._seen[1]:
            self._seen, self._rate = (now_s, total), 0.0
        elif now_s - self._seen[0] >= _RATE_INTERVAL_S:
            self._rate = (total - self._seen[1]) / (now_s - self._seen[0])
            self._seen = (now_s, total)
        return self._rate
