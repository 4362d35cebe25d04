"""Transcript: what one stream has delivered to its reader, each event once, whatever connections it took.

Owns the record and the rule that a resubmitted stream (`resume`) delivers nothing twice. It does no I/O. After a
resubmission the server repeats the tokens from some position on; those already delivered are compared with the record
and dropped, so a continuation that is not the same is found before any of it is delivered.
"""

from __future__ import annotations

from dataclasses import replace

from pagewire.client.errors import ProtocolError
from pagewire.client.parts import PartsDiffer, PartsRecord
from pagewire.client.types import Completion, Delta, Event, Finished, PromptTokens, Result, Started, Token, Usage


class Diverged(Exception):
    """A resubmitted stream repeats something other than what was delivered."""


class Transcript:
    """The record of one stream of `num_outputs` outputs."""

    def __init__(self, num_outputs: int, *, has_parts: bool = False) -> None:
        """`has_parts`: its outputs are a chat's, told in parts too."""
        self.started: Started | None = None
        self.tokens: tuple[list[Token], ...] = tuple([] for _ in range(num_outputs))
        self.prompt_tokens: list[Token] = []
        self._parts = [PartsRecord() for _ in range(num_outputs)]
        self._has_parts = has_parts
        self._finished: dict[int, Finished] = {}
        self._usage: Usage | None = None
        self._position = [0] * num_outputs
        """Of each output, how many tokens the current connection has brought, those sent in its prompt included."""
        self._prompt_position = 0
        """The same of the prompt's."""
        self._generated = 0
        self._resumed = False

    @property
    def complete(self) -> bool:
        """Whether the last event has come."""
        return self._usage is not None

    def rewind(self, generated: int) -> None:
        """The request was submitted again, with the first `generated` tokens of output 0 as part of its prompt."""
        self._resumed = True
        self._generated = generated
        self._prompt_position = 0
        self._position = [0] * len(self.tokens)
        self._position[0] = generated
        for parts in self._parts:
            parts.rewind()

    def accept(self, event: Event) -> Event | None:
        """Record an event; what of it the reader has not seen, or none.

        Raises ProtocolError for an event out of place, and Diverged where a resubmission repeats something else.
        """
        match event:
            case Started():
                return self._accept_started(event)
            case PromptTokens():
                return self._accept_prompt(event)
            case Delta():
                return self._accept_delta(event)
            case Finished():
                return self._accept_finished(event)
            case Usage():
                return self._accept_usage(event)

    def result(self) -> Result:
        """The whole generation. Raises ProtocolError where the stream ended before all of its events had come."""
        if self.started is None or self._usage is None or len(self._finished) < len(self.tokens):
            raise ProtocolError("the stream ended before all of its events had come")
        outputs = []
        for index, tokens in enumerate(self.tokens):
            without_text = any(token.text is None for token in tokens)
            text = None if without_text else "".join(token.text or "" for token in tokens)
            end = self._finished[index]
            parts = self._parts[index]
            message = parts.message() if self._has_parts else None
            outputs.append(Completion(text, tuple(tokens), end.reason, end.matched, message, parts.malformed_calls))
        start = self.started
        return Result(start.request_id, start.seed, tuple(outputs), self._usage, tuple(self.prompt_tokens))

    def _accept_started(self, event: Started) -> Started | None:
        if self.started is None:
            self.started = event
            return event
        if not self._resumed:
            raise ProtocolError("the stream started twice")
        if (event.seed, event.prompt_tokens) != (self.started.seed, self.started.prompt_tokens + self._generated):
            raise Diverged(f"it has seed {event.seed} and {event.prompt_tokens} prompt tokens")
        return None

    def _accept_prompt(self, event: PromptTokens) -> PromptTokens | None:
        if self.started is None:
            raise ProtocolError("the stream has prompt tokens before it started")
        new = _append(self.prompt_tokens, event.tokens, self._prompt_position, "the prompt")
        self._prompt_position += len(event.tokens)
        return PromptTokens(new) if new else None

    def _accept_delta(self, event: Delta) -> Delta | None:
        output = self._output(event.output)
        new = _append(self.tokens[output], event.tokens, self._position[output], f"output {output}")
        self._position[output] += len(event.tokens)
        try:
            parts = self._parts[output].accept(event.parts)
        except PartsDiffer as error:
            raise Diverged(f"output {output} differs: {error}") from error
        return Delta(output, new, parts) if new or parts else None

    def _accept_finished(self, event: Finished) -> Finished | None:
        output = self._output(event.output)
        if self._position[output] < len(self.tokens[output]) or self._parts[output].is_behind:
            raise Diverged(f"output {output} ends after {self._position[output]} tokens")
        if output not in self._finished:
            self._finished[output] = event
            return event
        if not self._resumed:
            raise ProtocolError(f"output {output} ended twice")
        return None

    def _accept_usage(self, event: Usage) -> Usage:
        if self.started is None or self._usage is not None:
            raise ProtocolError("the stream's usage is out of place")
        self._usage = replace(
            event,
            prompt_tokens=event.prompt_tokens - self._generated,
            cached_tokens=self.started.cached_tokens if self._resumed else event.cached_tokens,
            completion_tokens=event.completion_tokens + self._generated,
        )
        return self._usage

    def _output(self, index: int) -> int:
        if self.started is None or index >= len(self.tokens):
            raise ProtocolError(f"the stream has tokens of output {index}, which was not asked for or not started")
        return index


def _append(delivered: list[Token], tokens: tuple[Token, ...], first: int, of_what: str) -> tuple[Token, ...]:
    """Those that are new, from position `first` on. Raises Diverged where one delivered is now another."""
    new = []
    for position, token in enumerate(tokens, start=first):
        if position == len(delivered):
            delivered.append(token)
            new.append(token)
        elif (token.id, token.text) != (delivered[position].id, delivered[position].text):
            raise Diverged(f"token {position} of {of_what} is {token.id}, not {delivered[position].id}")
    return tuple(new)
