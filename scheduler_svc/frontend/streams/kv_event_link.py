"""The link to KV events: the engine's batches, in order and without a gap, for one caller that follows them.

It owns two sockets for as long as the caller does. It knows batches and their numbers and nothing of what is in them.
What is kept of the past comes by a replay, what happens by the subscription; a batch that came both ways is told once,
and one that the subscription lost (a caller that reads slowly) is replayed. Where that cannot be done, or a new engine
has begun to count anew, the caller cannot know the cache any more: KvEventsLost.
"""

from collections.abc import AsyncIterator
from types import TracebackType

import zmq
import zmq.asyncio

from pagewire.scheduler_svc.frontend.errors import KvEventsLost, OutOfRange, Unavailable, UnavailableReason
from pagewire.scheduler_svc.launch import KvEventsLaunch
from pagewire.wire.codec import MAX_FRAME_BYTES, Codec, WireError
from pagewire.wire.kv_events import KvEventBatch

_NUMBER_BYTES = 8
_END = (-1).to_bytes(_NUMBER_BYTES, "big", signed=True)
_HIGH_WATER_MARK = 4096
_REPLAY_TIMEOUT_MS = 5000
_SILENCE_MS = 1000
"""After which the engine is asked whether there is really nothing new."""

Numbered = tuple[int, KvEventBatch]


class KvEventLink:
    """One caller's. A context; `batches` may be called once."""

    def __init__(self, launch: KvEventsLaunch) -> None:
        self._launch = launch
        self._codec: Codec[KvEventBatch] = Codec(KvEventBatch)
        self._context = zmq.asyncio.Context()
        self._live = self._socket(zmq.SUB)
        self._live.subscribe(launch.topic.encode())
        self._live.connect(launch.addresses[0])

    def _socket(self, kind: int) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, _HIGH_WATER_MARK)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        return socket

    async def batches(self, first: int) -> AsyncIterator[Numbered]:
        """From number `first` on, for ever; 0 is everything where all of it is kept, else what comes from now on.

        Raises OutOfRange where `first` is not kept, KvEventsLost and Unavailable.
        """
        last = -1
        last_ts = 0.0
        kept = await self._replay(first)
        if first and (not kept or kept[0][0] != first):
            oldest = kept or await self._replay(0)
            known = f"{oldest[0][0]} to {oldest[-1][0]} are kept" if oldest else "none is kept"
            raise OutOfRange(f"start_sequence_number is {first}, which is not kept any more or not there yet; {known}")
        if kept:
            last, last_ts = kept[-1][0], kept[-1][1].ts
        if first or (kept and kept[0][0] == 0):
            for numbered in kept:
                yield numbered
        while True:
            if not await self._live.poll(_SILENCE_MS):
                # Was the last batch lost on its way, or is it another engine that has nothing to say yet?
                kept = await self._replay(max(last, 0))
                if last >= 0 and (not kept or kept[0][0] != last or kept[0][1].ts != last_ts):
                    raise KvEventsLost("the engine was started again: its KV events begin anew")
                for numbered in kept:
                    if numbered[0] > last:
                        yield numbered
                        last, last_ts = numbered[0], numbered[1].ts
                continue
            number, batch = self._decoded(await self._live.recv_multipart())
            if number <= last:
                if batch.ts > last_ts:
                    raise KvEventsLost("the engine was started again: its KV events begin anew")
                continue  # the replay brought it
            if number > last + 1:
                missed = await self._replay(last + 1)
                if not missed or missed[0][0] != last + 1:
                    raise KvEventsLost(f"KV events {last + 1} to {number - 1} are lost")
                for numbered in missed:
                    yield numbered
                last, last_ts = missed[-1][0], missed[-1][1].ts
                continue
            yield number, batch
            last, last_ts = number, batch.ts

    async def _replay(self, first: int) -> list[Numbered]:
        """What is kept from that number on."""
        asking = self._socket(zmq.DEALER)
        try:
            asking.connect(self._launch.replay_addresses[0])
            await asking.send_multipart([b"", first.to_bytes(_NUMBER_BYTES, "big")])
            found: list[Numbered] = []
            while True:
                if not await asking.poll(_REPLAY_TIMEOUT_MS):
                    raise Unavailable(UnavailableReason.ENGINE_LOST, "the engine replays no KV events", 1.0)
                frames = await asking.recv_multipart()
                if len(frames) == 3 and frames[1] == _END:
                    return found
                found.append(self._decoded(frames))
        finally:
            asking.close(0)

    def _decoded(self, frames: list[bytes]) -> Numbered:
        try:
            if len(frames) != 3 or len(frames[1]) != _NUMBER_BYTES:
                raise WireError(f"{len(frames)} frames are no batch")
            return int.from_bytes(frames[1], "big"), self._codec.decode(frames[2])
        except WireError as error:
            raise KvEventsLost(f"a batch of KV events could not be read: {error}") from error

    def __enter__(self) -> "KvEventLink":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.destroy(linger=0)
