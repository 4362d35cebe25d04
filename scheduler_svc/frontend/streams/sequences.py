"""Open sequences: those that this frontend has in the engine, by handle.

It turns the engine's batches into calls of their streams, one pass over the columns, and outputs into submissions. It
knows neither sockets nor text. Invariants: a handle in the table has been submitted and has had no terminal message;
every handle that leaves the table before its terminal message is named in an Abort; after a restart of the engine
every handle in the table is submitted again, with the tokens it has received, and paused where its stream is.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

from pagewire.scheduler_svc.frontend.errors import (
    Exhausted,
    InvalidArgument,
    RequestError,
    ResourceExhausted,
)
from pagewire.scheduler_svc.frontend.streams.measures import FrontendMeasures
from pagewire.scheduler_svc.frontend.streams.output import Output
from pagewire.scheduler_svc.frontend.streams.stream import RequestStream
from pagewire.wire.codec import WireError
from pagewire.wire.columns import are_below, pack, unpack
from pagewire.wire.requests import (
    Abort,
    FinishKind,
    FromFrontend,
    Pause,
    Rejected,
    RejectKind,
    Resume,
    TokenBatch,
)

_log = logging.getLogger(__name__)
_MAX_HANDLE = 2**31 - 1
_DEFAULT_RETRY_S = 1.0


class _OpenSequence(NamedTuple):
    stream: RequestStream
    output: Output


class SequenceTable:
    """Open sequences. Used from the event loop's thread alone."""

    def __init__(
        self,
        send: Callable[[FromFrontend], None],
        call_later: Callable[[float, Callable[[], None]], object],
        clock: Callable[[], float],
        vocab_size: int,
        measures: FrontendMeasures | None = None,
    ) -> None:
        """`send` gives a message to the engine; `call_later` runs something in so many seconds; `measures` are told
        when tokens come, where somebody counts."""
        self._measures = measures
        self._applied_s = 0.0
        """When the last batch was."""
        self._send = send
        self._call_later = call_later
        self._clock = clock
        self._vocab_size = vocab_size
        self._open: dict[int, _OpenSequence] = {}
        self._paused: set[RequestStream] = set()
        """Streams that were paused and are to be looked at."""
        self._resubmitted: set[int] = set()
        self._to_retry: set[int] = set()  # refused for want of room; a timer submits them once more
        self._last_handle = 0

    def __len__(self) -> int:
        return len(self._open)

    def new_handle(self) -> int:
        """A handle that is not in use; handles come round after 2^31 sequences."""
        while True:
            self._last_handle = self._last_handle % _MAX_HANDLE + 1
            if self._last_handle not in self._open:
                return self._last_handle

    def submit(self, stream: RequestStream) -> None:
        """Hand a stream's sequences to the engine, in order, or none of them. Raises what `send` raises."""
        sent: list[int] = []
        try:
            for output in stream.outputs:
                self._send(output.submit)
                self._open[output.handle] = _OpenSequence(stream, output)
                sent.append(output.handle)
        except RequestError:
            self.close(sent)
            raise

    def close(self, handles: list[int]) -> None:
        """Forget sequences and tell the engine to end them; those that have ended already are left out."""
        still_open = [handle for handle in handles if self._forget(handle) is not None]
        if still_open:
            self._send(Abort(pack(still_open)))

    def pause(self, stream: RequestStream) -> None:
        """Let a stream's sequences rest: its reader is behind."""
        self._paused.add(stream)
        if still_open := self._handles(stream):
            self._send(Pause(pack(still_open)))

    def resume(self, stream: RequestStream) -> None:
        """Its reader has caught up."""
        self._paused.discard(stream)
        if still_open := self._handles(stream):
            self._send(Resume(pack(still_open)))

    def end_overdue(self) -> None:
        """Asked from time to time: end the paused streams whose readers have taken nothing for too long."""
        now_s = self._clock()
        for stream in list(self._paused):
            stream.end_if_overdue(now_s)
            if not stream.is_paused:
                self._paused.discard(stream)

    def _handles(self, stream: RequestStream) -> list[int]:
        return [output.handle for output in stream.outputs if output.handle in self._open]

    def _forget(self, handle: int) -> _OpenSequence | None:
        self._resubmitted.discard(handle)
        self._to_retry.discard(handle)
        return self._open.pop(handle, None)

    def apply(self, batch: TokenBatch) -> None:
        """One step's tokens. Raises WireError, before anything is changed, for a batch that cannot be."""
        handles, tokens = self._columns(batch)
        opened = self._open
        now_s = self._clock()
        for started in batch.started:
            sequence = opened.get(started.handle)
            if sequence is not None:
                self._resubmitted.discard(started.handle)
                sequence.stream.started(sequence.output, started)
        for scores in batch.prompt_logprobs:
            sequence = opened.get(scores.handle)
            if sequence is not None:
                sequence.stream.scored(scores)
        for logprobs in batch.logprobs:
            sequence = opened.get(handles[logprobs.index])
            if sequence is not None and sequence.output.reports is not None:
                sequence.output.reports.put(logprobs)
        ended_by_text: list[int] = []
        measures, applied_s, num_alike = self._measures, self._applied_s, 0
        self._applied_s = now_s
        for handle, token in zip(handles, tokens, strict=True):
            sequence = opened.get(handle)
            if sequence is None:
                continue  # tokens that were on their way when a sequence was aborted here are nobody's any more
            stream, output = sequence
            if output.is_finished:
                continue
            if measures is not None:
                last_s, output.last_token_s = output.last_token_s, now_s
                if last_s == applied_s:
                    num_alike += 1
                else:
                    measures.token(stream, last_s, now_s)
            if stream.take(output, token, now_s):
                ended_by_text.append(handle)
        if measures is not None and num_alike:
            measures.tokens(now_s - applied_s, num_alike)
        for finished in batch.finished:
            sequence = self._forget(finished.handle)
            if sequence is None or sequence.output.is_finished:
                continue
            if finished.kind is FinishKind.NO_ROOM:
                sequence.stream.fail(_no_room(finished.limit))
            else:
                sequence.stream.finish(sequence.output, finished, now_s)
        if ended_by_text:
            self.close(ended_by_text)

    def _columns(self, batch: TokenBatch) -> tuple[list[int], list[int]]:
        try:
            handles, tokens = unpack(batch.handles), unpack(batch.tokens)
        except ValueError as error:
            raise WireError(f"a token batch has a torn column: {error}") from error
        if len(handles) != len(tokens):
            raise WireError(f"a token batch has {len(handles)} handles and {len(tokens)} tokens")
        if not are_below(tokens, self._vocab_size):
            raise WireError(f"a token batch has an id outside 0 to {self._vocab_size - 1}")
        if batch.logprobs or batch.prompt_logprobs:
            self._check_logprobs(batch, len(tokens))
        return handles.tolist(), tokens.tolist()

    def _check_logprobs(self, batch: TokenBatch, num_tokens: int) -> None:
        columns = [(each.ids, each.values) for each in batch.logprobs]
        columns += [(each.ids, each.values) for each in batch.prompt_logprobs]
        for ids, values in columns:
            # NO_TOKEN may stand among them.
            if len(values) != len(ids) or not are_below(unpack(ids) + 1, self._vocab_size + 1):
                raise WireError(f"log-probabilities have {len(ids)} bytes of ids and {len(values)} of values")
        for each in batch.logprobs:
            if each.index >= num_tokens:
                raise WireError(f"log-probabilities are of token {each.index}; the batch has {num_tokens}")

    def reject(self, rejected: Rejected) -> None:
        """The engine did not take a sequence."""
        sequence = self._open.get(rejected.handle)
        if sequence is None:
            return
        stream = sequence.stream
        if rejected.kind is RejectKind.QUEUE_TIMEOUT and stream.has_started:
            # The limit is on the request's first step, which another output has had: this one waits on.
            self._resubmitted.add(rejected.handle)
            self._submit_again(rejected.handle)
            return
        if rejected.kind is RejectKind.QUEUE_FULL and rejected.handle in self._resubmitted:
            # This stream was accepted by the engine before; it waits for its place instead of being lost.
            delay_s = min(rejected.retry_after_s or _DEFAULT_RETRY_S, _DEFAULT_RETRY_S)
            self._to_retry.add(rejected.handle)
            self._call_later(delay_s, lambda: self._retry(rejected.handle))
            return
        was_accepted = rejected.handle in self._resubmitted
        self._forget(rejected.handle)
        if was_accepted and rejected.kind is RejectKind.INVALID:
            # An earlier engine took it: what is wrong is not the request, but the room that is left.
            stream.fail(ResourceExhausted(rejected.message, None, Exhausted.MEMORY))
            return
        stream.fail(_error(rejected))

    def _retry(self, handle: int) -> None:
        if handle in self._to_retry:
            self._to_retry.discard(handle)
            self._submit_again(handle)

    def forget_retries(self) -> None:
        """The engine that had no room is gone; `resubmit_all` gives every sequence to the next one."""
        self._to_retry.clear()

    def resubmit_all(self) -> None:
        """A new engine is there: give it every sequence with what the earlier one delivered."""
        for handle in self._open:
            self._resubmitted.add(handle)
        for handle in list(self._open):
            self._submit_again(handle)
        if self._open:
            _log.info("submitted %d sequences again to a new engine", len(self._open))

    def _submit_again(self, handle: int) -> None:
        sequence = self._open.get(handle)
        if sequence is None:
            return
        try:
            self._send(sequence.stream.resubmission(sequence.output, self._clock()))
            if sequence.stream.is_paused:
                self._send(Pause(pack([handle])))
        except RequestError as error:
            self._forget(handle)
            sequence.stream.fail(error)


def _no_room(limit: int) -> RequestError:
    message = f"the worker was started again with less memory: it holds {limit} tokens of a sequence"
    return ResourceExhausted(f"{message}, and this one came to that", None, Exhausted.MEMORY)


def _error(rejected: Rejected) -> RequestError:
    match rejected.kind:
        case RejectKind.INVALID:
            field = f"generation.{rejected.field}" if rejected.field else "generation"
            return InvalidArgument(field, rejected.message)
        case RejectKind.QUEUE_FULL:
            delay_s = _DEFAULT_RETRY_S if rejected.retry_after_s is None else rejected.retry_after_s
            return ResourceExhausted(rejected.message, delay_s, Exhausted.QUEUE)
        case RejectKind.QUEUE_TIMEOUT:
            return ResourceExhausted(rejected.message, rejected.retry_after_s, Exhausted.QUEUE_TIME)
