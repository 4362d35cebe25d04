"""Parts on their way to the client: an answer's text as it leaves becomes messages of the contract.

It knows the messages, and of what text says only what the reader tells.
"""

import hashlib
from collections.abc import Iterable

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

from pagewire.scheduler_svc.frontend.chat.parts import (
    CallArguments,
    CallBegun,
    CallComplete,
    Content,
    Malformed,
    Part,
    Reasoning,
)
from pagewire.scheduler_svc.frontend.chat.reader import AnswerReader
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2
from pagewire.wire.requests import Submit

_ID_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_LENGTH = 9
"""What Mistral's templates take, and no other minds."""

_MAX_JOINED_CHARACTERS = 1024
"""Of one part: each token that joins it copies it."""

Parts = RepeatedCompositeFieldContainer[pb.Part]


class AnswerParts:
    """One output's parts."""

    __slots__ = ("_call_ids", "_hidden", "_reader", "_size")

    def __init__(self, reader: AnswerReader, submit: Submit, hidden: frozenset[int] = frozenset()) -> None:
        """`hidden`: tokens whose text says nothing, where it is sent at all."""
        self._reader = reader
        self._call_ids = CallIds(submit)
        self._hidden = hidden
        self._size = 0
        """Characters of the part that was added last."""

    def take(self, token: int, text: bytes, into: Parts) -> None:
        """Add what this token's text, whole characters, turns out to say."""
        if text and token not in self._hidden:
            self.put(self._reader.take(text.decode()), into)

    def end(self) -> list[Part]:
        """What was held back."""
        return self._reader.end()

    def put(self, parts: Iterable[Part], into: Parts) -> None:
        """Add parts, each joined to the last where it goes on and that is not long."""
        for part in parts:
            last = into[-1] if into and self._size < _MAX_JOINED_CHARACTERS else None
            match part:
                case Content():
                    entry = last if last is not None and last.HasField("content") else self._new(into)
                    entry.content += part.text
                    self._size += len(part.text)
                case Reasoning():
                    entry = last if last is not None and last.HasField("reasoning") else self._new(into)
                    entry.reasoning += part.text
                    self._size += len(part.text)
                case CallBegun():
                    call = self._new(into).tool_call
                    call.index, call.id, call.name = part.index, self._call_ids.of(part.index), part.name
                case CallArguments():
                    self._call(last, into, part.index).arguments += part.text
                    self._size += len(part.text)
                case CallComplete():
                    self._call(last, into, part.index).is_complete = True
                case Malformed():
                    malformed = pb.MalformedCall(text=part.text, reason=part.reason, index=part.index)
                    self._new(into).malformed_call.CopyFrom(malformed)

    def _call(self, last: pb.Part | None, into: Parts, index: int) -> pb.ToolCallPart:
        if last is not None and last.HasField("tool_call") and last.tool_call.index == index:
            return last.tool_call
        call = self._new(into).tool_call
        call.index = index
        return call

    def _new(self, into: Parts) -> pb.Part:
        self._size = 0
        return into.add()


class CallIds:
    """Names of one output's calls: the same whenever the same request is made, others in every other place of a
    conversation."""

    __slots__ = ("_digest", "_submit")

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._digest: hashlib.blake2b | None = None  # of what all of them share, once there is one

    def of(self, index: int) -> str:
        """A call's; the prompt is read for the first alone."""
        if self._digest is None:
            self._digest = hashlib.blake2b(self._submit.prompt, digest_size=16)
            self._digest.update(self._submit.sampling.seed.to_bytes(8, "little"))
        digest = self._digest.copy()
        digest.update(index.to_bytes(4, "little"))
        number = int.from_bytes(digest.digest(), "little")
        letters = []
        for _ in range(_ID_LENGTH):
            number, letter = divmod(number, len(_ID_ALPHABET))
            letters.append(_ID_ALPHABET[letter])
        return "".join(letters)


def join_parts(parts: Iterable[pb.Part], into: inference_pb2.Completion) -> None:
    """The whole answer from all of its parts."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: dict[int, pb.ToolCall] = {}
    arguments: dict[int, list[str]] = {}
    for part in parts:
        match part.WhichOneof("kind"):
            case "content":
                content.append(part.content)
            case "reasoning":
                reasoning.append(part.reasoning)
            case "tool_call":
                piece = part.tool_call
                if piece.HasField("name"):
                    calls[piece.index] = pb.ToolCall(id=piece.id, name=piece.name)
                arguments.setdefault(piece.index, []).append(piece.arguments)
            case "malformed_call":
                # What came of the call that it was taken for is void.
                into.malformed_calls.add().CopyFrom(part.malformed_call)
                if part.malformed_call.HasField("index"):
                    del calls[part.malformed_call.index]
    message = into.message
    message.role = pb.CHAT_ROLE_ASSISTANT
    for index, call in calls.items():
        call.arguments = "".join(arguments[index])
        message.tool_calls.add().CopyFrom(call)
    if reasoning:
        message.reasoning_content = "".join(reasoning)
    if content or not (calls or reasoning):
        message.content = "".join(content)
