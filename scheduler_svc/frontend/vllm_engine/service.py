"""VllmEngine: vLLM's gRPC service, answered by the same generations as ours.

Calls come through the same boundary, keys, limits and drain as those of our own services; what there is to say about
them is said in the facade's words. It knows nothing of the engine but its status and how a request is aborted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from smg_grpc_proto import vllm_engine_pb2 as vllm
from smg_grpc_proto import vllm_engine_pb2_grpc
from smg_grpc_proto.generated import common_pb2

from pagewire.scheduler_svc.frontend.errors import (
    Exhausted,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unimplemented,
)
from pagewire.scheduler_svc.frontend.rpc.generations import Generations
from pagewire.scheduler_svc.frontend.rpc.message_fields import refuse_unknown_fields
from pagewire.scheduler_svc.frontend.streams.engine_client import EngineClient
from pagewire.scheduler_svc.frontend.streams.kv_event_link import KvEventLink
from pagewire.scheduler_svc.frontend.vllm_engine.answer import Answer
from pagewire.scheduler_svc.frontend.vllm_engine.facts import Facts
from pagewire.scheduler_svc.frontend.vllm_engine.kv_events import KvEventMessages
from pagewire.scheduler_svc.frontend.vllm_engine.request import (
    generation_of,
    in_facades_words,
    refuse_set_fields,
)
from pagewire.scheduler_svc.frontend.vllm_engine.tokenizer_files import TokenizerArchive, chunks
from pagewire.scheduler_svc.launch import KvEventsLaunch
from pagewire.v1 import inference_pb2

NAME = vllm.DESCRIPTOR.services_by_name["VllmEngine"].full_name
MAX_ABORTED_IDS = 1024
MAX_FOLLOWERS = 64

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, kw_only=True)
class VllmEngineParts:
    """What the facade is made of."""

    generations: Generations
    engine: EngineClient
    facts: Facts
    is_serving: Callable[[], bool]
    tokenizer: TokenizerArchive | None
    """None of a model without one."""
    kv_events: KvEventsLaunch | None
    """Where the engine publishes them, if it does."""


class VllmEngineService(vllm_engine_pb2_grpc.VllmEngineServicer):  # type: ignore[misc]  # the package has no types
    """Serves vllm.grpc.engine.VllmEngine."""

    def __init__(self, parts: VllmEngineParts) -> None:
        self._parts = parts
        self._num_followers = 0

    async def Generate(self, request: Any, context: Context) -> None:
        """Streams chunks and a complete for each output; not streamed, the completes alone."""
        parts = self._parts
        parts.facts.last_received_unix_s = time.time()
        refuse_unknown_fields(request)
        answer = Answer(request.stream, request.sampling_params.HasField("logprobs"))
        is_streamed = request.stream
        generation = generation_of(request)
        del request  # it would stay for as long as the stream does

        async def write(message: inference_pb2.StreamGenerateResponse) -> None:
            if (response := answer.take(message)) is not None:
                await context.write(response)

        try:
            if is_streamed:
                streaming = parts.generations.stream(generation, context, write)
                del generation
                await streaming
            else:
                collecting = parts.generations.collect(generation, context)
                del generation
                responses = [answer.take(message) for message in (await collecting)[0]]
                # In the order of the outputs, as vLLM's server has them: there are gateways that number what comes.
                for response in sorted(filter(None, responses), key=lambda each: each.complete.index):
                    await context.write(response)
        except InvalidArgument as error:
            raise in_facades_words(error) from error

    async def Abort(self, request: Any, context: Context) -> Any:
        """Ends the caller's requests, from whichever frontend; of an id that is nobody's, or another tenant's, it says
        nothing."""
        refuse_unknown_fields(request)
        if len(request.request_ids) > MAX_ABORTED_IDS:
            raise InvalidArgument(
                "request_ids", f"has {len(request.request_ids)} ids; at most {MAX_ABORTED_IDS} may be"
            )
        tenant = self._parts.generations.tenant(context)
        for request_id in request.request_ids:
            await self._parts.engine.abort_request(request_id, tenant)
        return vllm.AbortResponse()

    async def HealthCheck(self, request: Any, context: Context) -> Any:
        """As grpc.health.v1 has it."""
        refuse_unknown_fields(request)
        refuse_set_fields(request)
        is_healthy = self._parts.is_serving()
        return vllm.HealthCheckResponse(healthy=is_healthy, message="serving" if is_healthy else "not serving")

    async def GetModelInfo(self, request: Any, context: Context) -> Any:
        """The one model."""
        refuse_unknown_fields(request)
        refuse_set_fields(request)
        return self._parts.facts.model_info()

    async def GetServerInfo(self, request: Any, context: Context) -> Any:
        """The server's shape."""
        refuse_unknown_fields(request)
        refuse_set_fields(request)
        return self._parts.facts.server_info()

    async def GetLoads(self, request: Any, context: Context) -> Any:
        """The engine's last heartbeat."""
        refuse_unknown_fields(request)
        return self._parts.facts.loads(request)

    async def GetTokenizer(self, request: Any, context: Context) -> None:
        """The model's tokenizer files as a ZIP archive in pieces, the last one with its SHA-256."""
        refuse_unknown_fields(request)
        refuse_set_fields(request)
        if self._parts.tokenizer is None:
            raise NotFound("this model has no tokenizer: prompts are token ids alone")
        content, digest = await self._parts.tokenizer.content()
        held: bytes | None = None
        for piece in chunks(content):
            if held is not None:
                await context.write(common_pb2.GetTokenizerChunk(data=held))
            held = piece
        await context.write(common_pb2.GetTokenizerChunk(data=held, sha256=digest))

    async def SubscribeKvEvents(self, request: Any, context: Context) -> None:
        """What becomes of cached blocks, from a number on that is kept yet; from 0, where everything is, else from now
        on. Callers that take load records before the first batch get none: the load is in GetLoads."""
        refuse_unknown_fields(request)
        if self._parts.kv_events is None:
            _refuse("SubscribeKvEvents", "this server publishes no KV events; its setting kv_events makes it do so")
        if self._num_followers >= MAX_FOLLOWERS:
            raise ResourceExhausted(f"{MAX_FOLLOWERS} callers follow KV events already", 1.0, Exhausted.CALLS)
        if request.start_sequence_number >= 2**63:
            raise InvalidArgument(
                "start_sequence_number", f"is {request.start_sequence_number}; its range is 0 to {2**63 - 1}"
            )
        messages = KvEventMessages()
        self._num_followers += 1
        try:
            with KvEventLink(self._parts.kv_events) as link:
                async for number, batch in link.batches(request.start_sequence_number):
                    await context.write(messages.message(number, batch))
        finally:
            self._num_followers -= 1

    async def Embed(self, request: Any, context: Context) -> None:
        """Not built."""
        _refuse("Embed", "this server has no embeddings")

    async def FlushCache(self, request: Any, context: Context) -> None:
        """An operator's."""
        _refuse("FlushCache", "it is the operator's: pagewire.v1.AdminService/FlushCache on the admin listener")

    async def StartProfile(self, request: Any, context: Context) -> None:
        """Not built."""
        _refuse("StartProfile", "this server has no profiler")

    async def StopProfile(self, request: Any, context: Context) -> None:
        """Not built."""
        _refuse("StopProfile", "this server has no profiler")


def _refuse(method: str, why: str) -> NoReturn:
    raise Unimplemented(f"{NAME}/{method} is not served: {why}")


def add_to(server: grpc.aio.Server, parts: VllmEngineParts) -> str:
    """Serve it on a server that has not started; returns the service's name."""
    vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(VllmEngineService(parts), server)
    return str(NAME)
