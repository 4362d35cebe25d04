"""Resumption: how a stream goes on after its connection broke.

A sampled token depends on the prompt, the parameters, the seed and its position alone, so a request submitted again
with the seed that the server reported brings the same tokens. Two ways:

- continue: the prompt's ids and the tokens received so far become the new prompt, `max_tokens` shrinks by as many, and
  the work done is a prefill that the prefix cache mostly holds;
- repeat: the same request from its beginning, whose tokens up to the break are generated again.

Continuing is exact only where nothing but token ids is carried across the seam. Presence and frequency penalties count
generated tokens apart from the prompt's (repetition penalty and bad words look at both alike), a constraint's state and
what a chat's parts are read with begin at the answer's start, and text may be held back at the seam: bytes of an
unfinished character, or the start of a stop string. So constraints, presence and frequency penalties, chats with parts
and several outputs are repeated, and the seam lies where the delivered text is all the text that its tokens have, which
the server's Detokenize says; where no such place is near the end, the request is repeated. The seam lies at least one
token before the break, so that the first tokens on the new connection can be compared with what was delivered
(`transcript`).

"The same tokens" holds as far as the same logits do. Where GetModel says `exact_continuation`, they are the same to the
bit. Elsewhere those of a prefill may differ in their last bits from those of the decode that it replaces; that can flip
a near tie after the seam, as preemption inside the engine can. What was delivered stays, and what follows is a sample
of the same distribution.

It does no I/O: `resubmission` yields requests and is sent their answers, by the synchronous client and the other alike.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias

from pagewire.client.chats import wants_parts
from pagewire.client.errors import Overloaded, PagewireError, Unavailable
from pagewire.client.transcript import Transcript
from pagewire.client.types import Started, Token
from pagewire.v1 import inference_pb2

Ask: TypeAlias = inference_pb2.TokenizeRequest | inference_pb2.DetokenizeRequest
Answer: TypeAlias = inference_pb2.TokenizeResponse | inference_pb2.DetokenizeResponse

_REPEAT_UP_TO = 16
"""So few tokens are sooner generated again than carried over."""

_SEAMS_TO_TRY = 8
"""An unfinished character takes at most 4 tokens of single bytes; a held-back stop string may take more."""

_MAX_REQUEST_ID = 128


class Resumption:
    """Decides about one stream. `request` stays as the caller gave it."""

    def __init__(self, request: inference_pb2.StreamGenerateRequest, transcript: Transcript, enabled: bool) -> None:
        self._request = request
        self._transcript = transcript
        self._enabled = enabled
        self._repeat_only = not _can_continue(request)
        self._count = 0

    def may_follow(self, error: PagewireError) -> bool:
        """Whether the stream may be submitted again after this error.

        Always before its first message. After it, only where the server has gone rather than said that it will go
        (DRAINING), and where token ids are there to compare; and where it goes on already, and there is no room for it.
        """
        if isinstance(error, Overloaded):
            return self.has_resumed
        if not isinstance(error, Unavailable):
            return False
        if self._transcript.started is None:
            return True
        options = self._request.generation.output
        has_ids = options.token_ids if options.HasField("token_ids") else True
        return self._enabled and has_ids and error.reason != "DRAINING"

    @property
    def has_resumed(self) -> bool:
        """Whether the stream has been submitted again after its first message."""
        return self._count > 0

    def may_follow_divergence(self) -> bool:
        """A continuation was not the same: whether the request may be repeated instead. Asked once; then no more."""
        first, self._repeat_only = not self._repeat_only, True
        return first

    def resubmission(self) -> Generator[Ask, Answer, inference_pb2.StreamGenerateRequest]:
        """The request to send now. The transcript is rewound to what that request brings."""
        started = self._transcript.started
        if started is None:
            return self._request
        self._count += 1
        delivered = self._transcript.tokens[0]
        generated: list[Token] = []
        prompt_ids: list[int] = []
        if not self._repeat_only and len(delivered) > _REPEAT_UP_TO:
            seam = yield from self._seam(delivered)
            if seam:
                prompt_ids = yield from self._prompt_ids()
                # Another count than the server's own means that this is not the prompt that it continued.
                generated = delivered[:seam] if len(prompt_ids) == started.prompt_tokens else []
        self._transcript.rewind(len(generated))
        return self._build(started, prompt_ids, generated)

    def _seam(self, delivered: list[Token]) -> Generator[Ask, Answer, int]:
        """How many tokens go into the prompt: none, or as many as make exactly the text delivered with them."""
        generation = self._request.generation
        for seam in range(len(delivered) - 1, max(0, len(delivered) - 1 - _SEAMS_TO_TRY), -1):
            if all(token.text is None for token in delivered):
                return seam
            if not any(token.text for token in delivered[seam:]):
                continue  # nothing to compare: a tokenizer may drop the space before an output's first word
            options = generation.output
            answer = yield inference_pb2.DetokenizeRequest(
                model=generation.model if generation.HasField("model") else None,
                ids=[token.id for token in delivered[:seam] if token.id is not None],
                skip_special_tokens=options.skip_special_tokens if options.HasField("skip_special_tokens") else None,
            )
            if answer.text == "".join(token.text or "" for token in delivered[:seam]):
                return seam
        return 0

    def _prompt_ids(self) -> Generator[Ask, Answer, list[int]]:
        generation = self._request.generation
        if generation.prompt.WhichOneof("kind") == "token_ids":
            return list(generation.prompt.token_ids.ids)
        answer = yield inference_pb2.TokenizeRequest(
            model=generation.model if generation.HasField("model") else None, prompt=generation.prompt
        )
        return list(answer.ids) if isinstance(answer, inference_pb2.TokenizeResponse) else []

    def _build(
        self, started: Started, prompt_ids: list[int], generated: list[Token]
    ) -> inference_pb2.StreamGenerateRequest:
        request = inference_pb2.StreamGenerateRequest()
        request.CopyFrom(self._request)
        generation = request.generation
        generation.sampling.seed = started.seed
        if generated or len(self._transcript.prompt_tokens) == started.prompt_tokens:
            generation.output.ClearField("prompt_logprobs")
            generation.output.ClearField("num_prompt_candidates")
        # The engine may still hold the broken request under its own id.
        request_id = f"{started.request_id}.{self._count}"
        if len(request_id) <= _MAX_REQUEST_ID:
            generation.request_id = request_id
        else:
            generation.ClearField("request_id")
        if generated:
            ids = prompt_ids + [token.id for token in generated if token.id is not None]
            generation.prompt.token_ids.ids[:] = ids
            stopping = generation.stopping
            if stopping.HasField("max_tokens"):
                stopping.max_tokens -= len(generated)
            if stopping.HasField("min_tokens"):
                stopping.min_tokens = max(0, stopping.min_tokens - len(generated))
        return request


def _can_continue(request: inference_pb2.StreamGenerateRequest) -> bool:
    generation = request.generation
    penalized = generation.sampling.presence_penalty or generation.sampling.frequency_penalty
    is_held = generation.HasField("constraint") or penalized or wants_parts(generation)
    return generation.n in (0, 1) and not is_held
