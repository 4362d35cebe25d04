"""Answers: from the messages of one of our streams to the facade's GenerateResponses.

A streamed answer is a chunk for every delta and, as each output ends, a GenerateComplete; an answer at once is the
completes alone. A chunk carries what is new, its count too, because gateways of vLLM add up. A complete carries all
ids, as its proto says; log-probabilities that chunks have carried are not in it once more.
"""

from array import array
from typing import Any

from smg_grpc_proto import vllm_engine_pb2 as vllm

from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2

_FINISH_REASONS = {
    pb.FINISH_REASON_EOS: "stop",
    pb.FINISH_REASON_STOP_STRING: "stop",
    pb.FINISH_REASON_STOP_TOKEN: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_ABORTED: "abort",
}
"""vLLM's words for them."""


class Answer:
    """What has come of one call."""

    def __init__(self, is_streamed: bool, want_logprobs: bool) -> None:
        self._is_streamed = is_streamed
        self._want_logprobs = want_logprobs
        self._started = pb.Started()
        self._prompt: list[pb.Token] = []
        self._outputs: dict[int, _Output] = {}

    def take(self, message: inference_pb2.StreamGenerateResponse) -> Any | None:
        """The GenerateResponse that this message becomes, if it does."""
        match message.WhichOneof("event"):
            case "started":
                self._started = message.started
            case "prompt_tokens":
                self._prompt.extend(message.prompt_tokens.tokens)
            case "delta":
                return self._delta(message.delta)
            case "finished":
                return self._complete(message.finished)
        return None

    def _delta(self, delta: pb.Delta) -> Any | None:
        output = self._outputs.setdefault(delta.output, _Output())
        ids = [token.id for token in delta.tokens]
        output.ids.extend(ids)
        if not self._is_streamed:
            if self._want_logprobs:
                output.tokens.extend(delta.tokens)
            return None
        chunk = vllm.GenerateStreamChunk(
            token_ids=ids,
            prompt_tokens=self._started.prompt_tokens,
            completion_tokens=len(ids),
            cached_tokens=self._started.cached_tokens,
            index=delta.output,
        )
        if self._want_logprobs:
            _describe_logprobs(delta.tokens, chunk.output_logprobs)
        if self._prompt and not output.has_prompt:
            _describe_prompt(self._prompt, chunk.input_logprobs)
        output.has_prompt = True
        return vllm.GenerateResponse(chunk=chunk)

    def _complete(self, finished: pb.Finished) -> Any:
        output = self._outputs.pop(finished.output, None) or _Output()
        complete = vllm.GenerateComplete(
            output_ids=output.ids,
            finish_reason=_FINISH_REASONS[finished.reason],
            prompt_tokens=self._started.prompt_tokens,
            completion_tokens=len(output.ids),
            cached_tokens=self._started.cached_tokens,
            index=finished.output,
        )
        if finished.reason == pb.FINISH_REASON_STOP_STRING:
            complete.matched_stop_str = finished.stop_string
        elif finished.reason == pb.FINISH_REASON_STOP_TOKEN:
            complete.matched_token_id = finished.stop_token_id
        if output.tokens:
            _describe_logprobs(output.tokens, complete.output_logprobs)
        if self._prompt and not output.has_prompt:
            _describe_prompt(self._prompt, complete.input_logprobs)
        return vllm.GenerateResponse(complete=complete)


class _Output:
    """One output so far."""

    __slots__ = ("has_prompt", "ids", "tokens")

    def __init__(self) -> None:
        self.ids = array("I")
        self.tokens: list[pb.Token] = []
        """With their log-probabilities, where these wait for the end."""
        self.has_prompt = False
        """Whether the prompt's log-probabilities have gone out with it."""


def _describe_logprobs(tokens: Any, into: Any) -> None:
    """`tokens` are pb.Tokens; `into` is an OutputLogProbs."""
    into.SetInParent()
    for token in tokens:
        into.token_ids.append(token.id)
        into.token_logprobs.append(token.logprob)
        if token.candidates:
            _describe_candidates(token, into.top_logprobs.add())


def _describe_prompt(tokens: list[pb.Token], into: Any) -> None:
    """`into` is an InputLogProbs. The first token has no log-probability."""
    has_candidates = any(token.candidates for token in tokens)
    for token in tokens:
        into.token_ids.append(token.id)
        entry = into.token_logprobs.add()
        if token.HasField("logprob"):
            entry.value = token.logprob
        if has_candidates:
            _describe_candidates(token, into.top_logprobs.add())


def _describe_candidates(token: pb.Token, into: Any) -> None:
    into.token_ids.extend([candidate.id for candidate in token.candidates])
    into.values.extend([candidate.logprob for candidate in token.candidates])
