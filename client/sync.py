"""The synchronous client.

A `Client` may be used from several threads. Every method raises the tree in `errors`; UNAVAILABLE is tried again as
`retry` says. `aio` has the same methods for asyncio.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Literal, Self, TypeVar, Unpack, overload

import grpc
from grpc_health.v1 import health_pb2

from pagewire.client import requests, responses
from pagewire.client.calls import Calls, Cancellable, each_of
from pagewire.client.errors import Cancelled, PagewireError, from_rpc_error
from pagewire.client.prompts import (
    Chat,
    ChatFormat,
    Json,
    MessageLike,
    Parameters,
    Prompt,
    Prompts,
    ToolChoiceLike,
    ToolLike,
)
from pagewire.client.retry import Attempts, RetryPolicy
from pagewire.client.sync_stream import Connection, Stream
from pagewire.client.transport import DEFAULT_MAX_MESSAGE_BYTES, DEFAULT_TARGET, Tls, Transport
from pagewire.client.types import HealthStatus, Model, Result, Tokenized
from pagewire.v1 import inference_pb2, model_pb2

Q = TypeVar("Q")
A = TypeVar("A")

DEFAULT_CONCURRENCY = 64
"""Prompts of one call that are under way at once; the server queues more than that itself, but each takes a thread."""


class Client:
    """Talks to one service. `with` closes it, which cancels what is under way."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        api_key: str | None = None,
        tls: Tls | None = None,
        retry: RetryPolicy | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        """`target` is host:port or unix:/path. Connects with the first call. Raises InvalidRequest for a PEM file that
        cannot be read."""
        self.target = target
        self._connection = Connection(
            Transport(target=target, api_key=api_key, tls=tls, max_message_bytes=max_message_bytes)
        )
        self._retry = RetryPolicy() if retry is None else retry

    @overload
    def generate(
        self, prompt: Prompt, *, timeout_s: float | None = ..., **parameters: Unpack[Parameters]
    ) -> Result: ...

    @overload
    def generate(
        self,
        prompt: Prompts,
        *,
        timeout_s: float | None = ...,
        max_concurrency: int = ...,
        return_exceptions: Literal[False] = ...,
        **parameters: Unpack[Parameters],
    ) -> list[Result]: ...

    @overload
    def generate(
        self,
        prompt: Prompts,
        *,
        timeout_s: float | None = ...,
        max_concurrency: int = ...,
        return_exceptions: Literal[True],
        **parameters: Unpack[Parameters],
    ) -> list[Result | PagewireError]: ...

    def generate(
        self,
        prompt: Prompt | Prompts,
        *,
        timeout_s: float | None = None,
        max_concurrency: int = DEFAULT_CONCURRENCY,
        return_exceptions: bool = False,
        **parameters: Unpack[Parameters],
    ) -> object:
        """Generate for one prompt, or for several at once with the results in order.

        `timeout_s` bounds each prompt. Where some of several fail, the others still finish; then BatchError holds all
        outcomes, or with `return_exceptions` they are returned, errors among results.
        """
        many = requests.several(prompt)
        if many is None:
            return self._generate(requests.one(prompt), timeout_s, parameters, Calls())
        requests.check_for_several(parameters)
        outcomes = each_of(
            lambda each, calls: self._generate(each, timeout_s, parameters, calls), many, max_concurrency
        )
        return outcomes if return_exceptions else requests.all_or_raise(outcomes)

    def stream(
        self, prompt: Prompt, *, timeout_s: float | None = None, resume: bool = True, **parameters: Unpack[Parameters]
    ) -> Stream:
        """Generate and iterate over the events, or over `.text`. Put it in a `with`: leaving cancels the call.

        `resume`: go on after a broken connection where that is exact.
        """
        request = inference_pb2.StreamGenerateRequest(generation=requests.generation(prompt, parameters))
        return Stream(self._connection, request, Attempts(self._retry, timeout_s), resume)

    def chat(
        self,
        messages: Sequence[MessageLike],
        *,
        tools: Sequence[ToolLike] = (),
        tool_choice: ToolChoiceLike | None = None,
        parallel_tool_calls: bool | None = None,
        max_reasoning_tokens: int | None = None,
        continue_final_message: bool | None = None,
        format: ChatFormat | None = None,
        template_arguments: Json | None = None,
        timeout_s: float | None = None,
        **parameters: Unpack[Parameters],
    ) -> Result:
        """The answer to a conversation, whose `message` may be put behind the others. `stream(Chat(messages, …))`
        streams it."""
        prompt = Chat(
            messages,
            tools,
            template_arguments,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            max_reasoning_tokens=max_reasoning_tokens,
            continue_final_message=continue_final_message,
            format=format,
        )
        return self._generate(prompt, timeout_s, parameters, Calls())

    @overload
    def tokenize(
        self,
        prompt: Prompt,
        *,
        model: str | None = ...,
        add_special_tokens: bool | None = ...,
        timeout_s: float | None = ...,
    ) -> Tokenized: ...

    @overload
    def tokenize(
        self,
        prompt: Prompts,
        *,
        model: str | None = ...,
        add_special_tokens: bool | None = ...,
        timeout_s: float | None = ...,
    ) -> list[Tokenized]: ...

    def tokenize(
        self,
        prompt: Prompt | Prompts,
        *,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        timeout_s: float | None = None,
    ) -> Tokenized | list[Tokenized]:
        """The token ids that `generate` would use, of one prompt or several. Several raise BatchError."""

        def tokenize(each: Prompt, calls: Calls) -> Tokenized:
            request = requests.tokenize(each, model, add_special_tokens)
            return responses.tokenized(self._call(self._connection.inference.Tokenize, request, timeout_s, calls))

        many = requests.several(prompt)
        if many is None:
            return tokenize(requests.one(prompt), Calls())
        return requests.all_or_raise(each_of(tokenize, many, DEFAULT_CONCURRENCY))

    def detokenize(
        self,
        ids: Sequence[int],
        *,
        model: str | None = None,
        skip_special_tokens: bool | None = None,
        timeout_s: float | None = None,
    ) -> str:
        """The text of token ids; incomplete UTF-8 becomes U+FFFD."""
        request = requests.detokenize(ids, model, skip_special_tokens)
        return self._call(self._connection.inference.Detokenize, request, timeout_s).text

    def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """The models served."""
        answer = self._call(self._connection.models.ListModels, model_pb2.ListModelsRequest(), timeout_s)
        return [responses.model(each) for each in answer.models]

    def model(self, name: str = "", *, timeout_s: float | None = None) -> Model:
        """One model; without a name, the only one served. Raises NotFound."""
        answer = self._call(self._connection.models.GetModel, model_pb2.GetModelRequest(name=name), timeout_s)
        return responses.model(answer.model)

    def health(self, service: str = "", *, timeout_s: float | None = None) -> HealthStatus:
        """Whether the server takes requests. Raises NotFound for a service that it does not have."""
        request = health_pb2.HealthCheckRequest(service=service)
        return responses.health(self._call(self._connection.health.Check, request, timeout_s))

    def watch_health(self, service: str = "") -> Iterator[HealthStatus]:
        """The state now and after every change, until the iterator is closed. Unavailable when the server goes."""
        request = health_pb2.HealthCheckRequest(service=service)
        call = self._connection.health.Watch(request, metadata=self._connection.metadata)
        cancellable: Cancellable = call
        try:
            for answer in call:
                yield responses.health(answer)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            cancellable.cancel()

    def close(self) -> None:
        """Close the channel; what is under way is cancelled."""
        self._connection.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _generate(self, prompt: Prompt, timeout_s: float | None, parameters: Parameters, calls: Calls) -> Result:
        request = inference_pb2.GenerateRequest(generation=requests.generation(prompt, parameters))
        return responses.result(self._call(self._connection.inference.Generate, request, timeout_s, calls))

    def _call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Q, A],
        request: Q,
        timeout_s: float | None,
        calls: Calls | None = None,
    ) -> A:
        calls = calls or Calls()
        attempts = Attempts(self._retry, timeout_s)
        while True:
            try:
                # A future rather than the plain call, because that one cannot be cancelled from outside.
                return calls.result(
                    method.future(request, timeout=attempts.remaining_s(), metadata=self._connection.metadata)
                )
            except grpc.FutureCancelledError as cancelled:
                raise Cancelled("the call was cancelled") from cancelled
            except grpc.RpcError as broken:
                error = from_rpc_error(broken)
                delay = attempts.failed(error)
                if delay is None:
                    raise error from broken
            calls.wait(delay)
