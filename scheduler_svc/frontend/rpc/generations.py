"""Generations: from a call with a validated request to sequences in the engine, and their end.

It knows the order of a call: validate, read the prompt, submit; whoever gets the stream delivers it and closes it. The
request's own message is no matter to it, so that every service that generates, ours or a facade, opens streams here.
Invariant: however a call ends, by itself, by an error, by cancellation, by its deadline or with its connection, its
sequences are ended in the engine at that moment.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import msgspec

from pagewire.scheduler_svc.frontend.chat.reader import AnswerReader
from pagewire.scheduler_svc.frontend.errors import DeadlineExceeded
from pagewire.scheduler_svc.frontend.fairness import RequestBytes
from pagewire.scheduler_svc.frontend.request.bad_words import bad_word_ids
from pagewire.scheduler_svc.frontend.request.constraint import compiled
from pagewire.scheduler_svc.frontend.request.prompt import PromptReader, check_prompt_length
from pagewire.scheduler_svc.frontend.request.validate import (
    ValidGeneration,
    chain_salt,
    resolve_max_tokens,
    validate_generation,
)
from pagewire.scheduler_svc.frontend.rpc.auth import Authenticator
from pagewire.scheduler_svc.frontend.rpc.drain import RunningCalls
from pagewire.scheduler_svc.frontend.rpc.message_fields import refuse_unknown_fields
from pagewire.scheduler_svc.frontend.rpc.model_service import ServedModel
from pagewire.scheduler_svc.frontend.rpc.request_records import RequestRecords, WatchedCall
from pagewire.scheduler_svc.frontend.rpc.tenant_limits import TenantUsage, Turn
from pagewire.scheduler_svc.frontend.streams.backpressure import ReaderLimits
from pagewire.scheduler_svc.frontend.streams.engine_client import EngineClient
from pagewire.scheduler_svc.frontend.streams.logprobs import PromptReport, ReportSettings, TokenReports
from pagewire.scheduler_svc.frontend.streams.measures import FrontendMeasures, call_of
from pagewire.scheduler_svc.frontend.streams.output import Output
from pagewire.scheduler_svc.frontend.streams.parts import AnswerParts
from pagewire.scheduler_svc.frontend.streams.stream import RequestStream, StreamSettings
from pagewire.scheduler_svc.frontend.text.chat_format import ReasoningStart
from pagewire.scheduler_svc.frontend.text.grammar_compiler import GrammarCompiler
from pagewire.scheduler_svc.frontend.text.output_text import OutputText
from pagewire.scheduler_svc.frontend.text.stop_strings import StopAutomaton
from pagewire.scheduler_svc.frontend.text.tokenizer import TextTokenizer
from pagewire.v1 import inference_pb2 as pb
from pagewire.wire.columns import pack
from pagewire.wire.logits import LogitControls
from pagewire.wire.requests import Submit

REQUEST_ID_METADATA = "pagewire-request-id"
_SEED_RANGE = 2**64

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, kw_only=True)
class GenerationParts:
    """What generations are made with."""

    model: ServedModel
    engine: EngineClient
    calls: RunningCalls
    authenticator: Authenticator
    tokenizer: TextTokenizer | None
    prompts: PromptReader
    grammars: GrammarCompiler | None
    """None where no output can be constrained."""
    request_bytes: RequestBytes
    usage: TenantUsage
    records: RequestRecords
    reader: ReaderLimits
    """Of one stream."""
    clock: Callable[[], float]
    """Monotonic, in seconds."""
    draw_seed: Callable[[], int]
    """0 to 2^64 - 1."""
    draw_request_id: Callable[[], str]
    measures: FrontendMeasures | None = None
    """None where nobody counts."""


class Generations:
    """Every call that generates, whatever service it came by."""

    def __init__(self, parts: GenerationParts) -> None:
        self._parts = parts

    async def stream(
        self,
        request: pb.GenerateRequest | pb.StreamGenerateRequest,
        context: Context,
        write: Callable[[pb.StreamGenerateResponse], Awaitable[None]],
    ) -> None:
        """Hand every message to `write` as it comes; waits for each. Raises RequestErrors."""
        reader = asyncio.current_task()
        tenant = self.tenant(context)
        watched = self._parts.records.watch(context, tenant, is_streamed=True)
        measured = call_of(self._parts.measures, tenant)
        with watched as call, measured as measure, self._parts.usage.turn(tenant) as turn:
            opening = self._open(request, context, call, turn, reader, self._parts.reader)
            del request  # it would stay for as long as the stream does
            call.stream = stream = measure.opened(await opening)
            try:
                while (message := await stream.next()) is not None:
                    await write(message)
            except grpc.aio.InternalError:
                raise asyncio.CancelledError from None  # the client has gone; grpc is about to cancel the call
            except asyncio.CancelledError:
                # A stream that fails while its client does not read cancels its reader; grpc cancels it when the client
                # has gone. Only the first is an answer.
                if stream.error is not None and reader is not None and reader.uncancel() == 0:
                    raise stream.error from None
                raise
            finally:
                self._close(stream)
                turn.num_tokens = stream.num_tokens

    async def collect(
        self, request: pb.GenerateRequest | pb.StreamGenerateRequest, context: Context
    ) -> tuple[list[pb.StreamGenerateResponse], RequestStream]:
        """All messages of the same stream, and the stream, which is closed. Raises RequestErrors."""
        tenant = self.tenant(context)
        watched = self._parts.records.watch(context, tenant, is_streamed=False)
        measured = call_of(self._parts.measures, tenant)
        with watched as call, measured as measure, self._parts.usage.turn(tenant) as turn:
            opening = self._open(request, context, call, turn, None, None)
            del request  # as above
            call.stream = stream = measure.opened(await opening)
            try:
                return await stream.collect(), stream
            finally:
                self._close(stream)
                turn.num_tokens = stream.num_tokens

    def tenant(self, context: Context) -> str:
        """The caller's tenant, empty where there is but one."""
        return self._parts.authenticator.tenant(context)

    def client(self, context: Context) -> str:
        """Whom work is done for that others wait for: a tenant, or one connection where there are none."""
        return self.tenant(context) or context.peer()

    async def _open(
        self,
        request: pb.GenerateRequest | pb.StreamGenerateRequest,
        context: Context,
        call: WatchedCall,
        turn: Turn,
        reader: "asyncio.Task[Any] | None",
        limits_of_reader: ReaderLimits | None,
    ) -> RequestStream:
        """From the call's arrival to sequences in the engine. Raises RequestErrors; whoever gets a stream closes it.

        The request is let go of once it is validated, and what was made of it with the return: nothing between a stream
        and its client holds a message of megabytes.
        """
        parts = self._parts
        tenant = self.tenant(context)
        with parts.request_bytes.hold(tenant, request.ByteSize()):
            refuse_unknown_fields(request)
            valid = validate_generation(request.generation, parts.model.spec, parts.model.limits)
            priority = call.priority = turn.priority(valid.priority, is_set=request.generation.HasField("priority"))
            del request
            parts.calls.check()
            parts.engine.status.check()
            request_id = parts.draw_request_id() if valid.request_id is None else valid.request_id
            call.name(request_id)
            call.is_chat = valid.turn is not None
            limits = parts.model.limits
            read = await parts.prompts.read(valid.prompt, valid.prompt_path, limits, self.client(context))
        prompt_ids = read.ids
        check_prompt_length(len(prompt_ids), valid.prompt_path, limits)
        max_tokens = resolve_max_tokens(valid.max_tokens, len(prompt_ids), limits)
        remaining_s = context.time_remaining()
        if remaining_s is not None and remaining_s <= 0:
            raise DeadlineExceeded("the deadline passed before the request reached the engine")
        start = valid.turn.start(read.text or "") if valid.turn is not None else ReasoningStart.NONE
        controls = await self._controls(valid, start, context)
        form = None if valid.turn is None else valid.turn.form(start, read.parameter_types, valid.language)
        seed = parts.draw_seed() if valid.seed is None else valid.seed
        settings = StreamSettings(
            request_id=request_id,
            seed=seed,
            num_prompt_tokens=len(prompt_ids),
            want_token_ids=valid.want_token_ids,
            want_text=valid.want_text,
            reader=limits_of_reader,
            held_by="generation.constraint" if valid.turn is None else valid.turn.asking_field,
            prompt_report=None if valid.prompt_logprobs is None else self._prompt_report(valid, prompt_ids),
        )
        stream = RequestStream(settings, parts.clock, parts.engine.sequences)
        stops = StopAutomaton(valid.stop_strings) if valid.stop_strings else None
        salt = chain_salt(tenant, valid.cache_salt)
        prompt = pack(prompt_ids)
        for index in range(valid.n):
            submit = Submit(
                handle=parts.engine.sequences.new_handle(),
                request_id=request_id,
                prompt=prompt,
                generated=b"",
                sampling=msgspec.structs.replace(valid.sampling, seed=(seed + index) % _SEED_RANGE),
                max_tokens=max_tokens,
                stop_token_ids=list(valid.stop_token_ids),
                ignore_eos=valid.ignore_eos,
                priority=priority,
                salt=salt,
                max_queue_time_s=valid.max_queue_time_s,
                controls=controls,
                logprobs=valid.logprobs,
                prompt_logprobs=valid.prompt_logprobs if index == 0 else None,
                cache_salt=valid.cache_salt,
                tenant=tenant,
            )
            text, reports = self._text(valid, stops, prompt_ids), self._reports(valid)
            answer = None if form is None else AnswerParts(AnswerReader(form), submit, self._hidden(valid))
            stream.outputs.append(Output(index, submit, text, reports, answer))
        parts.engine.status.check()
        parts.calls.enter(stream)
        try:
            # Once the call is let in: what fails without headers, gRPC's own clients may try again.
            await context.send_initial_metadata(((REQUEST_ID_METADATA, request_id),))
            stream.reader = reader
            # From here to the caller's try there is no await, so nothing can come between submitting and closing.
            parts.engine.status.check()
            parts.engine.sequences.submit(stream)
        except grpc.aio.InternalError:
            self._close(stream)
            raise asyncio.CancelledError from None  # as in `stream`
        except BaseException:
            self._close(stream)
            raise
        return stream

    def _text(self, valid: ValidGeneration, stops: StopAutomaton | None, prompt_ids: list[int]) -> OutputText | None:
        """Text is made where it is wanted or searched."""
        tokenizer = self._parts.tokenizer
        if tokenizer is None or not (valid.want_text or stops is not None or valid.turn is not None):
            return None
        detokenizer = tokenizer.detokenizer(
            skip_special_tokens=valid.skip_special_tokens,
            prompt=prompt_ids,
            shown=frozenset() if valid.turn is None else valid.turn.format.markers,
        )
        return OutputText(detokenizer, stops, valid.include_stop, valid.min_tokens)

    def _hidden(self, valid: ValidGeneration) -> frozenset[int]:
        """Special tokens that are sent as text, and are in no part."""
        tokenizer = self._parts.tokenizer
        if tokenizer is None or valid.turn is None or valid.skip_special_tokens:
            return frozenset()
        return tokenizer.special_ids(valid.turn.format.markers)

    async def _controls(self, valid: ValidGeneration, start: ReasoningStart, context: Context) -> LogitControls | None:
        """With bad words, which only a tokenizer can make ids of, and the grammar, which must be compiled."""
        parts, controls = self._parts, valid.controls
        if valid.bad_words and parts.tokenizer is not None:
            vocab_size = parts.model.limits.vocab_size
            words = await bad_word_ids(valid.bad_words, parts.tokenizer, vocab_size, self.client(context))
            controls = msgspec.structs.replace(controls or LogitControls(), bad_words=words)
        language = valid.language if valid.turn is None else valid.turn.language(valid.language, start)
        if language is not None:
            grammar = await compiled(language, parts.grammars, self.client(context))
            controls = msgspec.structs.replace(controls or LogitControls(), grammar=grammar)
        return controls

    def _reports(self, valid: ValidGeneration) -> TokenReports | None:
        if valid.logprobs is None:
            return None
        return TokenReports(ReportSettings(valid.want_logprobs, valid.logprobs.num_candidates, self._bytes_of))

    def _prompt_report(self, valid: ValidGeneration, prompt_ids: list[int]) -> PromptReport:
        tokenizer, texts = self._parts.tokenizer, None
        if tokenizer is not None and valid.want_text:
            texts = tokenizer.texts(prompt_ids, skip_special_tokens=valid.skip_special_tokens)
        return PromptReport(
            prompt_ids,
            texts,
            want_token_ids=valid.want_token_ids,
            num_candidates=valid.prompt_logprobs or 0,
            bytes_of=self._bytes_of,
        )

    def _bytes_of(self, token: int) -> bytes:
        """A token's own bytes; none of a model without a tokenizer."""
        tokenizer = self._parts.tokenizer
        return b"" if tokenizer is None else tokenizer.bytes_of(token)

    def _close(self, stream: RequestStream) -> None:
        stream.close()
        self._parts.calls.leave(stream)
