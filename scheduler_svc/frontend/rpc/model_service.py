"""ModelService: what is served, the model's spec with the limits that settings and the engine set.

The spec and the settings are fixed at start; what the worker's memory can hold comes from the engine, once it knows.
"""

import logging
from collections.abc import Mapping
from typing import Any

import grpc
import msgspec

from pagewire.scheduler_svc.frontend.limits import (
    MAX_BAD_WORDS,
    MAX_STOP_STRING_BYTES,
    MAX_STOP_STRINGS,
    ModelLimits,
    check_model,
)
from pagewire.scheduler_svc.frontend.request.chat_turn import describe_format, model_format
from pagewire.scheduler_svc.frontend.rpc.message_fields import refuse_unknown_fields
from pagewire.scheduler_svc.frontend.streams.engine_status import EngineStatus
from pagewire.scheduler_svc.frontend.text.chat_format import ChatFormat, ReasoningFormat, ToolCallFormat
from pagewire.scheduler_svc.launch import FrontendLaunch
from pagewire.v1 import model_pb2 as pb
from pagewire.v1 import model_pb2_grpc
from pagewire.wire.launch import Device
from pagewire.wire.logits import MAX_CANDIDATES, MAX_LOGIT_BIAS, MAX_NAMED_IDS
from pagewire.wire.model import ModelSpec
from pagewire.wire.sampling import PARAMETERS, SamplingParams

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


_NO_LOGITS: Mapping[Device, str] = {
    "sim": "is not supported by device sim, which has no logits",
}


class ServedModel:
    """The one model of this server."""

    def __init__(self, launch: FrontendLaunch, status: EngineStatus) -> None:
        self.spec = _with_what_can_be_applied(launch.model, launch.device)
        self._launch = launch
        self._status = status

    @property
    def limits(self) -> ModelLimits:
        """What requests must keep to now."""
        info = self._status.info
        launched = self._launch.max_model_len
        return ModelLimits(
            vocab_size=self.spec.decoder.vocab_size,
            max_model_len=min(launched, info.max_model_len) if info and info.max_model_len else launched,
            max_kv_tokens=info.num_blocks * info.block_size if info else 0,
            max_n=self._launch.max_n,
            no_logits=_NO_LOGITS.get(self._launch.device),
        )

    def describe(self) -> pb.Model:
        """As ModelService shows it."""
        spec, limits = self.spec, self.limits
        has_text = spec.tokenizer_file is not None
        has_chat = has_text and (spec.chat_template is not None or spec.tool_use_template is not None)
        chat_format = model_format(spec) if has_chat else ChatFormat()
        return pb.Model(
            name=spec.name,
            architecture=spec.decoder.architecture,
            dtype=self._launch.dtype,
            limits=pb.Limits(
                max_model_len=limits.max_model_len,
                vocab_size=limits.vocab_size,
                max_n=limits.max_n,
                max_queued=self._launch.max_queued,
                max_stop_strings=MAX_STOP_STRINGS,
                max_stop_string_bytes=MAX_STOP_STRING_BYTES,
                max_message_bytes=self._launch.max_message_bytes,
                max_kv_tokens=limits.max_kv_tokens,
                max_logit_bias=MAX_LOGIT_BIAS,
                max_bad_words=MAX_BAD_WORDS,
                max_candidates=MAX_CANDIDATES,
                max_logprob_token_ids=MAX_NAMED_IDS,
            ),
            capabilities=pb.Capabilities(
                text=has_text,
                chat=has_chat,
                logprobs=limits.no_logits is None,
                penalties=limits.no_logits is None,
                constraints=can_constrain(spec, self._launch.device),
                reasoning=chat_format.reasoning is not ReasoningFormat.NONE,
                tool_calls=chat_format.tool_calls is not ToolCallFormat.NONE,
            ),
            tokenizer_digest=spec.tokenizer_digest,
            weights_digest=spec.weights_digest,
            default_sampling=pb.DefaultSampling(
                **{field.name: getattr(spec.sampling, field.name) for field in pb.DefaultSampling.DESCRIPTOR.fields}
            ),
            eos_token_ids=spec.eos_token_ids,
            chat_format=describe_format(chat_format) if has_chat else None,
            exact_continuation=self._status.info is not None and self._status.info.recomputes_exactly,
        )


def can_constrain(spec: ModelSpec, device: Device) -> bool:
    """Whether outputs can be held to a language."""
    return device not in _NO_LOGITS and spec.tokenizer_file is not None and bool(spec.eos_token_ids)


def _with_what_can_be_applied(spec: ModelSpec, device: Device) -> ModelSpec:
    """The model's defaults, but for penalties where the device cannot apply them: better none than no answer."""
    if device not in _NO_LOGITS or not spec.sampling.needs_history:
        return spec
    neutral = SamplingParams()
    dropped = {name: getattr(neutral, name) for name, each in PARAMETERS.items() if each.needs_history}
    _log.warning("the model's default penalties are not applied on device %s", device)
    return msgspec.structs.replace(spec, sampling=msgspec.structs.replace(spec.sampling, **dropped))


class ModelService(model_pb2_grpc.ModelServiceServicer):
    """Serves pagewire.v1.ModelService."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """The one model."""
        refuse_unknown_fields(request)
        return pb.ListModelsResponse(models=[self._model.describe()])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """By name; empty for the only one. Raises NotFound."""
        refuse_unknown_fields(request)
        check_model(request.name, self._model.spec)
        return pb.GetModelResponse(model=self._model.describe())
