"""Fairness among clients: places for work that takes long, given in turn, and the bytes of requests that are held.

It knows neither the work nor any message: callers name whoever shares a turn, and say how large a request is.

Turns: no more places are taken than there are; a place that is free while somebody waits is given at once; among those
who wait the next is of the client that was served longest ago, and the first of it that came.

Bytes: a message of megabytes costs several times its size while it is parsed, rendered and tokenized; a few hundred at
once would cost gigabytes. So there is a limit on all of them, from a message's arrival until its prompt has become
token ids, and where there are tenants one may hold half of it, so that it leaves the others room.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator

from pagewire.scheduler_svc.frontend.errors import Exhausted, ResourceExhausted

_RETRY_S = 1.0


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


class RequestBytes:
    """Counts. Used from the event loop's thread alone."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes; no message is larger."""
        self._limit = limit
        self._limit_of_tenant = limit // 2
        self._total = 0
        self._by_tenant: dict[str, int] = {}

    @contextlib.contextmanager
    def hold(self, tenant: str, size: int) -> Iterator[None]:
        """Count a request of so many bytes while the block runs. `tenant` is empty where there are none.

        Raises ResourceExhausted where there is no room for it. A tenant that holds nothing is let in with any size.
        """
        if self._total + size > self._limit:
            raise ResourceExhausted(
                f"requests of {self._total} bytes are being read; with the {size} of this one they are over the limit "
                f"of {self._limit}",
                _RETRY_S,
                Exhausted.REQUEST_BYTES,
            )
        held = self._by_tenant.get(tenant, 0)
        if tenant and held and held + size > self._limit_of_tenant:
            raise ResourceExhausted(
                f"requests of {held} bytes of tenant {tenant} are being read; with the {size} of this one they are "
                f"over a tenant's limit of {self._limit_of_tenant}",
                _RETRY_S,
                Exhausted.REQUEST_BYTES,
            )
        self._total += size
        self._by_tenant[tenant] = held + size
        try:
            yield
        finally:
            self._total -= size
            self._by_tenant[tenant] -= size
            if not self._by_tenant[tenant]:
                del self._by_tenant[tenant]
