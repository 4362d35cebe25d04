"""ModelService: what is served. It reads `ServedModel` and nothing else."""

from typing import Any

import grpc

from pagewire.scheduler_svc.frontend.request.fields import check_model
from pagewire.scheduler_svc.frontend.request.served_model import ServedModel
from pagewire.scheduler_svc.frontend.rpc.unknown_fields import refuse_unknown_fields
from pagewire.v1 import model_pb2 as pb
from pagewire.v1 import model_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


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
