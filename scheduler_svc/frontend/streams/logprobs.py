"""Log-probabilities on their way to the client: of an output's tokens until each leaves, of a prompt's until all have.

Turns the engine's columns into the messages' fields. It knows neither queue nor stream. Ids are within the vocabulary:
whoever reads the engine's batches has seen to it.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

from pagewire.v1 import generation_pb2 as pb
from pagewire.wire.columns import unpack, unpack_floats
from pagewire.wire.plan import NO_TOKEN
from pagewire.wire.requests import PromptLogprobs, TokenLogprobs


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """What a request wants to see of log-probabilities."""

    want_chosen: bool
    """Of the output's tokens."""
    num_candidates: int
    """The first of the ids that come with a token of the output; the others are named."""
    bytes_of: Callable[[int], bytes]
    """A token's own bytes."""


class TokenReports:
    """Those of one output's tokens, in order, from their arrival until the tokens leave."""

    __slots__ = ("_settings", "_waiting")

    def __init__(self, settings: ReportSettings) -> None:
        self._settings = settings
        self._waiting: deque[TokenLogprobs] = deque()

    def put(self, logprobs: TokenLogprobs) -> None:
        """The next token's have come."""
        self._waiting.append(logprobs)

    def take(self, entry: pb.Token) -> None:
        """The oldest token leaves: fill in what is wanted."""
        if not self._waiting:  # a worker that gave none: the token itself is right
            return
        logprobs, settings = self._waiting.popleft(), self._settings
        if settings.want_chosen:
            entry.logprob = logprobs.chosen
        ids, values = unpack(logprobs.ids).tolist(), unpack_floats(logprobs.values).tolist()
        count = settings.num_candidates
        _add(entry.candidates, zip(ids[:count], values[:count], strict=True), settings.bytes_of)
        _add(entry.named, zip(ids[count:], values[count:], strict=True), settings.bytes_of)


class PromptReport:
    """The prompt's tokens, as their log-probabilities come in order of positions; from the start again after a
    preemption or a restart, which the client is not told again."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        texts: Sequence[bytes] | None,
        *,
        want_token_ids: bool,
        num_candidates: int,
        bytes_of: Callable[[int], bytes],
    ) -> None:
        """`texts` is what each token adds to the prompt's text; none where text is not wanted."""
        self._ids = prompt_ids
        self._texts = texts
        self._want_token_ids = want_token_ids
        self._num_candidates = num_candidates
        self._bytes_of = bytes_of
        self._next = 0

    @property
    def is_complete(self) -> bool:
        """Whether every token has left."""
        return self._next == len(self._ids)

    def first(self) -> list[pb.Token]:
        """The first token, before which nothing stands that it could be likely after."""
        self._next = 1
        return [self._token(0)]

    def take(self, logprobs: PromptLogprobs) -> list[pb.Token]:
        """The tokens that are new. Raises ValueError where some are missing between, or more come than there are."""
        chosen = unpack_floats(logprobs.chosen)
        end = logprobs.position + len(chosen)
        if logprobs.position > self._next or end > len(self._ids):
            raise ValueError(f"scores of positions {logprobs.position} to {end - 1} came where {self._next} was next")
        shape = (len(chosen), self._num_candidates)
        ids = unpack(logprobs.ids).reshape(shape).tolist()
        values = unpack_floats(logprobs.values).reshape(shape).tolist()
        new = []
        while self._next < end:
            index = self._next - logprobs.position
            entry = self._token(self._next)
            if not math.isnan(chosen[index]):
                entry.logprob = float(chosen[index])
            _add(entry.candidates, zip(ids[index], values[index], strict=True), self._bytes_of)
            new.append(entry)
            self._next += 1
        return new

    def _token(self, position: int) -> pb.Token:
        entry = pb.Token()
        if self._want_token_ids:
            entry.id = self._ids[position]
        if self._texts is not None:
            entry.text = self._texts[position]
        return entry


def _add(
    into: RepeatedCompositeFieldContainer[pb.Candidate],
    pairs: Iterable[tuple[int, float]],
    bytes_of: Callable[[int], bytes],
) -> None:
    for token, logprob in pairs:
        if token != NO_TOKEN:
            into.add(id=token, bytes=bytes_of(token), logprob=logprob)
