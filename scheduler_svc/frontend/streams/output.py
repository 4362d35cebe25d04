"""Outputs: one output of a call is one sequence of the engine, from its submission to its end.

It keeps every token received, which is what makes a restart of the engine invisible, and the text still held back. It
knows the messages' enums and neither stream nor queue nor socket.
"""

from array import array

import msgspec
import numpy as np

from pagewire.scheduler_svc.frontend.streams.logprobs import TokenReports
from pagewire.scheduler_svc.frontend.streams.parts import AnswerParts
from pagewire.scheduler_svc.frontend.text.output_text import OutputText
from pagewire.v1 import generation_pb2 as pb
from pagewire.wire.columns import pack
from pagewire.wire.requests import FinishKind, Submit

_REASONS = {
    FinishKind.EOS: pb.FINISH_REASON_EOS,
    FinishKind.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishKind.STOP_TOKEN: pb.FINISH_REASON_STOP_TOKEN,
    FinishKind.ABORTED: pb.FINISH_REASON_ABORTED,
}


class Output:
    """One sequence: what the engine was asked for, what it has sent, and the text still held back."""

    __slots__ = (
        "index",
        "is_finished",
        "is_started",
        "parts",
        "reason",
        "received",
        "reports",
        "submit",
        "text",
    )

    def __init__(
        self,
        index: int,
        submit: Submit,
        text: OutputText | None,
        reports: TokenReports | None = None,
        parts: AnswerParts | None = None,
    ) -> None:
        self.index = index
        self.submit = submit
        self.received = array("i")
        """Every token that the engine has sent; what a new engine is told was generated so far."""
        self.is_started = False
        """Whether its first step has been planned."""
        self.is_finished = False
        self.reason: pb.FinishReason = pb.FINISH_REASON_UNSPECIFIED
        """Why it ended, once it has by itself."""
        self.text = text
        """None where text is neither wanted, searched nor read."""
        self.parts = parts
        """None where it is no chat's answer whose parts are wanted."""
        self.reports = reports
        """None where no log-probabilities come with its tokens."""

    @property
    def handle(self) -> int:
        """Names the sequence to the engine."""
        return self.submit.handle

    def stopped(self, stop: str) -> pb.Finished:
        """How it ended: by a stop string."""
        return pb.Finished(output=self.index, reason=pb.FINISH_REASON_STOP_STRING, stop_string=stop)

    def finished(self, kind: FinishKind) -> pb.Finished:
        """How it ended: as the engine says."""
        finished = pb.Finished(output=self.index, reason=_REASONS[kind])
        if kind in (FinishKind.EOS, FinishKind.STOP_TOKEN) and self.received:
            finished.stop_token_id = self.received[-1]
        return finished

    def resubmission(self, *, max_queue_time_s: float | None, is_scored: bool) -> Submit:
        """The same sequence once more, which goes on behind the tokens received. `max_queue_time_s`: what is left of
        it; `is_scored`: all of its prompt's log-probabilities have come."""
        return msgspec.structs.replace(
            self.submit,
            generated=pack(np.frombuffer(self.received, dtype=np.intc)),
            max_queue_time_s=max_queue_time_s,
            prompt_logprobs=None if is_scored else self.submit.prompt_logprobs,
        )
