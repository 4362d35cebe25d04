"""A real gRPC server of the public contract whose answers a test scripts.

`ScriptedService` runs in this process on a free port. Each method answers from a list of scripted replies, or by its
default: a model that says `answer`, byte by byte, whatever the prompt. Like a real one it continues where a prompt that
holds part of the answer leaves off, because its token depends on the position alone.
"""

from __future__ import annotations

import codecs
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc

Responses = Iterator[inference_pb2.StreamGenerateResponse]
Stream = Callable[[inference_pb2.StreamGenerateRequest, grpc.ServicerContext], Responses]

PROMPT_IDS = [1000, 1001, 1002]
EOS = 999
SEED = 7


def has_parts(generation: pb.Generation) -> bool:
    """Whether a request asks for them."""
    output = generation.output
    return generation.prompt.HasField("chat") and (output.parts or not output.HasField("parts"))


def status(code: grpc.StatusCode, message: str, *details: Any) -> Any:
    """What a real server passes to `context.abort_with_status`."""
    described = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        described.details.add().Pack(detail)
    return rpc_status.to_status(described)


def unavailable(reason: str = "", retry_after_s: float | None = None) -> Any:
    """UNAVAILABLE, with details where they are given."""
    details: list[Any] = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain="pagewire"))
    if retry_after_s is not None:
        details.append(_retry_info(retry_after_s))
    return status(grpc.StatusCode.UNAVAILABLE, "away", *details)


def overloaded(retry_after_s: float) -> Any:
    """RESOURCE_EXHAUSTED, and when to come again."""
    return status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", _retry_info(retry_after_s))


def _retry_info(retry_after_s: float) -> Any:
    delay = Duration()
    delay.FromMilliseconds(round(retry_after_s * 1000))
    return error_details_pb2.RetryInfo(retry_delay=delay)


class ScriptedService(inference_pb2_grpc.InferenceServiceServicer, model_pb2_grpc.ModelServiceServicer):
    """Use it in a `with`. Attributes may be changed between calls."""

    def __init__(
        self,
        answer: str = "Hello, wörld €",
        prompt_ids: list[int] = PROMPT_IDS,
        tls: grpc.ServerCredentials | None = None,
    ) -> None:
        self.answer = [*answer.encode(), EOS]
        self.prompt_ids = prompt_ids
        self.chat = True
        self.strip_leading_space = False
        """As SentencePiece does at the start of every output."""
        self.break_after: list[int] = []
        """Of each stream in turn, how many tokens it sends before it breaks; later ones do not break."""
        self.streams: list[Stream] = []
        """Replies to streams in turn, each instead of the default."""
        self.hangs = False
        """Whether Generate never answers."""
        self.failures: list[Any] = []
        """Statuses that the next calls, of whatever method, end with before anything else."""
        self.seen: list[Any] = []
        """Every request, in order."""
        self.metadata: list[dict[str, str]] = []
        self.ended = threading.Event()
        """Set when a call of `hang` has ended on the client's side."""
        self.hanging = threading.Event()
        self.health = health.HealthServicer()
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(32))
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, self._server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        for name in ("", "pagewire.v1.InferenceService", "pagewire.v1.ModelService"):
            self.health.set(name, health_pb2.HealthCheckResponse.SERVING)
        if tls is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", tls)
        self.address = f"127.0.0.1:{port}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    def requests(self, kind: type) -> list[Any]:
        """The requests seen of one type."""
        return [request for request in self.seen if isinstance(request, kind)]

    def _saw(self, request: Any, context: grpc.ServicerContext) -> None:
        with self._lock:
            self.seen.append(request)
            self.metadata.append({key: value for key, value in context.invocation_metadata() if isinstance(value, str)})
            failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            context.abort_with_status(failure)

    def hang(self, context: grpc.ServicerContext) -> None:
        """Wait until the client has ended the call."""
        self.watch(context)
        self.hanging.set()
        assert self.ended.wait(30)

    def watch(self, context: grpc.ServicerContext) -> None:
        """Set `ended` when the call ends. A call that ends between two messages never comes to `hang`."""
        if not context.add_callback(self.ended.set):
            self.ended.set()

    def hang_after_started(self) -> None:
        """Of the next stream, send the first event alone."""

        def script(_request: inference_pb2.StreamGenerateRequest, context: grpc.ServicerContext) -> Responses:
            self.watch(context)
            yield inference_pb2.StreamGenerateResponse(started=pb.Started(request_id="x", seed=1, prompt_tokens=3))
            self.hang(context)

        self.streams = [script]

    # InferenceService

    def Generate(
        self, request: inference_pb2.GenerateRequest, context: grpc.ServicerContext
    ) -> inference_pb2.GenerateResponse:
        self._saw(request, context)
        if self.hangs:
            self.watch(context)
            self.hang(context)
        response = inference_pb2.GenerateResponse()
        texts: dict[int, bytes] = {}
        for event in self._generate(request.generation):
            match event.WhichOneof("event"):
                case "started":
                    response.started.CopyFrom(event.started)
                case "delta":
                    for _ in range(event.delta.output + 1 - len(response.outputs)):
                        response.outputs.add()
                    response.outputs[event.delta.output].tokens.extend(event.delta.tokens)
                    joined = b"".join(token.text for token in event.delta.tokens)
                    texts[event.delta.output] = texts.get(event.delta.output, b"") + joined
                case "finished":
                    response.outputs[event.finished.output].finished.CopyFrom(event.finished)
                    text = texts[event.finished.output].decode()
                    response.outputs[event.finished.output].text = text
                    if has_parts(request.generation):
                        message = pb.ChatMessage(role=pb.CHAT_ROLE_ASSISTANT, content=text)
                        response.outputs[event.finished.output].message.CopyFrom(message)
                case "usage":
                    response.usage.CopyFrom(event.usage)
        return response

    def StreamGenerate(self, request: inference_pb2.StreamGenerateRequest, context: grpc.ServicerContext) -> Responses:
        self._saw(request, context)
        with self._lock:
            script = self.streams.pop(0) if self.streams else None
            left = self.break_after.pop(0) if self.break_after else None
        if script is not None:
            yield from script(request, context)
            return
        for event in self._generate(request.generation):
            if event.WhichOneof("event") == "delta" and left is not None:
                if left == 0:
                    context.abort_with_status(unavailable())
                left -= 1
            yield event
        if left is not None:
            context.abort_with_status(unavailable())

    def Tokenize(
        self, request: inference_pb2.TokenizeRequest, context: grpc.ServicerContext
    ) -> inference_pb2.TokenizeResponse:
        self._saw(request, context)
        return inference_pb2.TokenizeResponse(ids=self.prompt_ids, text=request.prompt.text)

    def Detokenize(
        self, request: inference_pb2.DetokenizeRequest, context: grpc.ServicerContext
    ) -> inference_pb2.DetokenizeResponse:
        self._saw(request, context)
        text = bytes(token for token in request.ids if token < 256).decode(errors="replace")
        return inference_pb2.DetokenizeResponse(text=text.removeprefix(" ") if self.strip_leading_space else text)

    def _generate(self, generation: pb.Generation) -> Responses:
        """The default model's stream."""
        num_prompt = len(self.prompt_ids)
        if generation.prompt.WhichOneof("kind") == "token_ids":
            num_prompt = len(generation.prompt.token_ids.ids)
        start = num_prompt - len(self.prompt_ids)
        end = len(self.answer)
        if generation.stopping.HasField("max_tokens"):
            end = min(end, start + generation.stopping.max_tokens)
        seed = generation.sampling.seed if generation.sampling.HasField("seed") else SEED
        started = pb.Started(
            request_id=generation.request_id or "scripted", seed=seed, prompt_tokens=num_prompt, cached_tokens=start
        )
        yield inference_pb2.StreamGenerateResponse(started=started)
        num_outputs = generation.n or 1
        for output in range(num_outputs):
            texts = Texts(list(generation.stopping.stop_strings), self.strip_leading_space)
            stopped = ""
            for token in self.answer[start:end]:
                text = texts.take(token)
                entry = pb.Token(id=token, text=text.encode())
                delta = pb.Delta(output=output, tokens=[entry])
                if text and has_parts(generation):
                    delta.parts.add(content=text)
                yield inference_pb2.StreamGenerateResponse(delta=delta)
                stopped = texts.stopped
                if stopped:
                    break
            finished = pb.Finished(output=output, reason=pb.FINISH_REASON_LENGTH)
            if stopped:
                finished = pb.Finished(output=output, reason=pb.FINISH_REASON_STOP_STRING, stop_string=stopped)
            elif end == len(self.answer):
                finished = pb.Finished(output=output, reason=pb.FINISH_REASON_EOS, stop_token_id=EOS)
            yield inference_pb2.StreamGenerateResponse(finished=finished)
        usage = pb.Usage(prompt_tokens=num_prompt, cached_tokens=start, completion_tokens=(end - start) * num_outputs)
        usage.timings.prefill.FromMilliseconds(12)
        yield inference_pb2.StreamGenerateResponse(usage=usage)

    # ModelService

    def ListModels(
        self, request: model_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> model_pb2.ListModelsResponse:
        self._saw(request, context)
        return model_pb2.ListModelsResponse(models=[self._model()])

    def GetModel(self, request: model_pb2.GetModelRequest, context: grpc.ServicerContext) -> model_pb2.GetModelResponse:
        self._saw(request, context)
        if request.name not in ("", "scripted"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"model {request.name!r} is not served; scripted is")
        return model_pb2.GetModelResponse(model=self._model())

    def _model(self) -> model_pb2.Model:
        return model_pb2.Model(
            name="scripted",
            architecture="llama",
            dtype="bfloat16",
            limits=model_pb2.Limits(max_model_len=4096, vocab_size=2000, max_n=16),
            capabilities=model_pb2.Capabilities(text=True, chat=self.chat),
            default_sampling=model_pb2.DefaultSampling(temperature=1, top_p=1),
            eos_token_ids=[EOS],
            exact_continuation=True,
        )


class Texts:
    """Text as it becomes complete: whole characters, and nothing that may begin a stop string."""

    def __init__(self, stops: list[str], strip_leading_space: bool) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._stops = stops
        self._held = ""
        self._strip = strip_leading_space
        self.stopped = ""

    def take(self, token: int) -> str:
        """The text that a token completes."""
        if token == EOS:
            held, self._held = self._held, ""
            return held
        text = self._decoder.decode(bytes([token]))
        if self._strip and text:
            text, self._strip = text.removeprefix(" "), False
        self._held += text
        for stop in self._stops:
            if self._held.endswith(stop):
                self.stopped = stop
                return self._held.removesuffix(stop)
        keep = max((n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text
