"""Messages that wait for a call's task, in order, and the deltas among them that more tokens of their output may join.

One side puts in without waiting, the other takes out. It knows neither tokens' texts nor why a stream ends.
"""

import asyncio
from collections import deque
from typing import NamedTuple

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

from pagewire.v1 import generation_pb2 as pb
from pagewire.v1.inference_pb2 import StreamGenerateResponse

MAX_TOKENS_PER_DELTA = 4096
"""Keeps a message far below any client's limit on message size."""


class OpenDelta(NamedTuple):
    """A message in the queue that more tokens of its output may join."""

    message: StreamGenerateResponse
    tokens: RepeatedCompositeFieldContainer[pb.Token]
    parts: RepeatedCompositeFieldContainer[pb.Part]


class MessageQueue:
    """Used on one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._messages: deque[tuple[StreamGenerateResponse, int | None]] = deque()  # with the output of a delta
        self._open_deltas: dict[int, OpenDelta] = {}  # by output
        self._waiter: asyncio.Future[None] | None = None
        self.is_collected = False
        """Whether all messages are taken at once, at the end: none wakes whoever waits."""

    def put(self, message: StreamGenerateResponse, delta_of: int | None = None) -> None:
        """Behind the others. `delta_of`: the output that it is a delta of."""
        self._messages.append((message, delta_of))
        if not self.is_collected:
            self.wake()

    def open_delta(self, output: int) -> OpenDelta | None:
        """Where an output's next token joins; none where it needs a new message."""
        delta = self._open_deltas.get(output)
        return None if delta is None or len(delta.tokens) >= MAX_TOKENS_PER_DELTA else delta

    def new_delta(self, output: int) -> OpenDelta:
        """A new message, which later tokens join."""
        message = StreamGenerateResponse()
        message.delta.output = output
        delta = self._open_deltas[output] = OpenDelta(message, message.delta.tokens, message.delta.parts)
        self.put(message, output)
        return delta

    def close_delta(self, output: int) -> None:
        """No more tokens of this output come."""
        self._open_deltas.pop(output, None)

    def pop(self) -> StreamGenerateResponse | None:
        """The oldest message, which nothing joins any more; none where none waits."""
        if not self._messages:
            return None
        message, delta_of = self._messages.popleft()
        if delta_of is not None:
            delta = self._open_deltas.get(delta_of)
            if delta is not None and delta.message is message:
                del self._open_deltas[delta_of]
        return message

    def all(self) -> list[StreamGenerateResponse]:
        """All that wait."""
        return [message for message, _ in self._messages]

    def clear(self) -> None:
        """Drop what waits."""
        self._messages.clear()

    @property
    def is_waited_for(self) -> bool:
        """Whether the other side waits in `wait`."""
        return self._waiter is not None

    def wake(self) -> None:
        """Let whoever waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Until something was put in, or `wake`."""
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
