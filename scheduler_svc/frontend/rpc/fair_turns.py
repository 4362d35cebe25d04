"""Places for work that takes long, given in turn to the clients that wait, so that one waits for no other's queue.

It knows neither the work nor what makes a client: callers name whoever shares a turn. Invariants: no more places are
taken than there are; a place that is free while somebody waits is given at once; among those who wait the next is of
the client that was served longest ago, and the first of it that came.
"""

import asyncio
from collections import deque


class FairTurns:
    """Some places. Used on one event loop."""

    def __init__(self, num_places: int) -> None:
        self._num_free = num_places
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """By client; the first is next."""

    async def take(self, client: str) -> None:
        """Wait for a place, which is to be given back by `free`."""
        if self._num_free:
            self._num_free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self.free()  # it was given just now
            raise

    def free(self) -> None:
        """A place is given back."""
        while self._waiting:
            client, places = next(iter(self._waiting.items()))
            del self._waiting[client]
            place = places.popleft()
            if places:
                self._waiting[client] = places  # behind the others
            if not place.done():  # else it was cancelled
                place.set_result(None)
                return
        self._num_free += 1
