"""One output of a call: one sequence of the engine, from its submission to its end.

It keeps every token received, which is what makes a restart of the engine invisible, and the text still held back. It
knows the messages' enums and neither queue nor socket.
"""

from array import array
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

from pagewire.scheduler_svc.frontend.errors import ModelFailed, RequestError
from pagewire.scheduler_svc.frontend.text.output_text import OutputText
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1.inference_pb2 import StreamGenerateResponse
from pagewire.wire.columns import pack
from pagewire.wire.requests import FinishKind, SeqStarted, Submit

_REASONS = {
    FinishKind.EOS: pb.FINISH_REASON_EOS,
    FinishKind.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishKind.STOP_TOKEN: pb.FINISH_REASON_STOP_TOKEN,
    FinishKind.ABORTED: pb.FINISH_REASON_ABORTED,
}


class TokenSink(Protocol):
    """The stream that an output belongs to."""

    @property
    def has_started(self) -> bool:
        """Whether any output's first step has been planned."""

    def started(self, started: SeqStarted) -> None:
        """Output 0's first step has been planned."""

    def add(self, output: "Output", token: int, text: bytes, now_s: float) -> None:
        """One decided token."""

    def output_finished(self, output: "Output", finished: pb.Finished) -> None:
        """The output has ended."""

    def fail(self, error: RequestError) -> None:
        """The whole call ends with an error."""


class OpenDelta(NamedTuple):
    """A message in the queue that more tokens of its output may join."""

    message: StreamGenerateResponse
    tokens: RepeatedCompositeFieldContainer[pb.Token]


class Output:
    """One sequence: what the engine was asked for, what it has sent, and the text still held back."""

    __slots__ = ("_stream", "_text", "index", "is_finished", "is_started", "open_delta", "received", "submit")

    def __init__(self, index: int, submit: Submit, text: OutputText | None, stream: TokenSink) -> None:
        self.index = index
        self.submit = submit
        self.received = array("i")
        """Every token that the engine has sent; what a new engine gets as given."""
        self.is_started = False
        self.is_finished = False
        self.open_delta: OpenDelta | None = None
        self._text = text
        self._stream = stream

    @property
    def handle(self) -> int:
        """Names the sequence to the engine."""
        return self.submit.handle

    @property
    def is_request_started(self) -> bool:
        """Whether its request has begun, with this output or another."""
        return self._stream.has_started

    def started(self, started: SeqStarted) -> None:
        """The first step has been planned. A new engine says it again; once counts."""
        if not self.is_started:
            self.is_started = True
            if self.index == 0:
                self._stream.started(started)

    def take(self, token: int, now_s: float) -> bool:
        """One more token. True when its text completed a stop string: the output has ended, and the engine does not
        know."""
        self.received.append(token)
        text = self._text
        if text is None:
            self._stream.add(self, token, b"", now_s)
            return False
        for decided, its_text in text.take(token):
            self._stream.add(self, decided, its_text, now_s)
        if text.matched is None:
            return False
        self._finish(pb.Finished(output=self.index, reason=pb.FINISH_REASON_STOP_STRING, stop_string=text.matched))
        return True

    def finish(self, kind: FinishKind, now_s: float) -> None:
        """The engine ended the sequence."""
        if kind is FinishKind.FAILED:
            self.is_finished = True
            self._stream.fail(ModelFailed("the model's logits for this request were not numbers"))
            return
        if self._text is not None:
            for token, its_text in self._text.flush():
                self._stream.add(self, token, its_text, now_s)
            if self._text.matched is not None:
                stop = self._text.matched
                self._finish(pb.Finished(output=self.index, reason=pb.FINISH_REASON_STOP_STRING, stop_string=stop))
                return
        finished = pb.Finished(output=self.index, reason=_REASONS[kind])
        if kind in (FinishKind.EOS, FinishKind.STOP_TOKEN) and self.received:
            finished.stop_token_id = self.received[-1]
        self._finish(finished)

    def _finish(self, finished: pb.Finished) -> None:
        self.is_finished = True
        self._stream.output_finished(self, finished)

    def fail(self, error: RequestError) -> None:
        """The engine does not take the sequence: its whole request ends."""
        self._stream.fail(error)

    def resubmission(self) -> Submit:
        """The same sequence once more, which goes on behind the tokens received. One whose request had started has
        queued once already."""
        return msgspec.structs.replace(
            self.submit,
            generated=pack(np.frombuffer(self.received, dtype=np.intc)),
            max_queue_time_s=None if self.is_request_started else self.submit.max_queue_time_s,
        )
