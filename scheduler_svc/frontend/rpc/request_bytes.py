"""How many bytes of requests this frontend holds: from the arrival of a message until its prompt has become token ids.

A message of megabytes costs several times its size while it is parsed, rendered and tokenized; a few hundred at once
would cost gigabytes. So there is a limit on all of them, and where there are tenants one may hold half of it, so that
it leaves the others room. It knows sizes and tenants, and no message.
"""

import contextlib
from collections.abc import Iterator

from pagewire.scheduler_svc.frontend.errors import ResourceExhausted

_RETRY_S = 1.0


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
            )
        held = self._by_tenant.get(tenant, 0)
        if tenant and held and held + size > self._limit_of_tenant:
            raise ResourceExhausted(
                f"requests of {held} bytes of tenant {tenant} are being read; with the {size} of this one they are "
                f"over a tenant's limit of {self._limit_of_tenant}",
                _RETRY_S,
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
