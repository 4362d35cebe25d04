"""ModelService: what is served, the model's spec with the limits that settings and the engine set.

The spec and the settings are fixed at start; what the worker's memory can hold comes from the engine, once it knows.
"""

from typing import Any

import grpc

from pagewire.scheduler_svc.frontend.limits import (
    MAX_BAD_WORDS,
    MAX_STOP_STRING_BYTES,
    MAX_STOP_STRINGS,
    ModelLimits,
    check_model,
)
from pagewire.scheduler_svc.frontend.rpc.message_fields import refuse_unknown_fields
from pagewire.scheduler_svc.frontend.streams.engine_status import EngineStatus
from pagewire.scheduler_svc.launch import FrontendLaunch
from pagewire.v1 import model_pb2 as pb
from pagewire.v1 import model_pb2_grpc
from pagewire.wire.logits import MAX_CANDIDATES, MAX_LOGIT_BIAS, MAX_NAMED_IDS

Context = grpc.aio.ServicerContext[Any, Any]


class ServedModel:
    """The one model of this server."""

    def __init__(self, launch: FrontendLaunch, status: EngineStatus) -> None:
        self.spec = launch.model
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
            has_logits=self._launch.device != "sim",
        )

    def describe(self) -> pb.Model:
        """As ModelService shows it."""
        spec, limits = self.spec, self.limits
        has_text = spec.tokenizer_file is not None
        has_chat = has_text and (spec.chat_template is not None or spec.tool_use_template is not None)
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
                text=has_text, chat=has_chat, logprobs=limits.has_logits, penalties=limits.has_logits
            ),
            tokenizer_digest=spec.tokenizer_digest,
            weights_digest=spec.weights_digest,
            default_sampling=pb.DefaultSampling(
                **{field.name: getattr(spec.sampling, field.name) for field in pb.DefaultSampling.DESCRIPTOR.fields}
            ),
            eos_token_ids=spec.eos_token_ids,
        )


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
