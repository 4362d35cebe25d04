"""Authentication: API keys, and the tenants they stand for.

Only the keys' SHA-256 digests are kept, so that neither a log nor a dump of this object shows one, and digests of equal
length are compared in constant time, always all of them. It knows gRPC's metadata but no service, and not when the file
is read again: a key that is gone by then is known to no call that arrives.

Without a keys file there is one anonymous tenant, whose name is empty. With one, every call but a health check brings
`authorization: Bearer KEY`; calls of the admin listener need the key of the tenant `admin`.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc

from pagewire.scheduler_svc.frontend.errors import PermissionDenied, Unauthenticated
from pagewire.scheduler_svc.startup_errors import StartupError
from pagewire.wire.codec import WireError, decode_text

ADMIN_TENANT = "admin"
MIN_KEY_CHARACTERS = 16
_HEALTH_PREFIXES = ("/grpc.health.v1.Health/", "/vllm.grpc.engine.VllmEngine/HealthCheck")
_BEARER = "bearer "
"""In any case, as HTTP has it."""

Metadata = Iterable[tuple[str, str | bytes]]
Keys = list[tuple[bytes, str]]
"""A key's SHA-256, and its tenant."""


class KeysFileError(StartupError):
    """The keys file cannot be used; the message gives the line, and never a key."""


class Authenticator:
    """Turns a call's metadata into its tenant."""

    def __init__(self) -> None:
        """Without keys."""
        self._keys: Keys | None = None

    def use_keys(self, keys: Keys) -> None:
        """These, and no others, from now on."""
        self._keys = keys

    def tenant(self, metadata: Metadata | None) -> str:
        """The caller's tenant, empty where keys are not used. Raises Unauthenticated."""
        if self._keys is None:
            return ""
        values = [value for name, value in metadata or () if name == "authorization"]
        if len(values) != 1 or not isinstance(values[0], str) or not values[0].lower().startswith(_BEARER):
            raise Unauthenticated("this server needs one metadata entry 'authorization' with 'Bearer' and an API key")
        presented = hashlib.sha256(values[0][len(_BEARER) :].encode()).digest()
        found: str | None = None
        for digest, tenant in self._keys:
            if hmac.compare_digest(digest, presented):
                found = tenant
        if found is None:
            raise Unauthenticated("the API key is not known")
        return found

    def admin(self, metadata: Metadata | None) -> None:
        """Raise Unauthenticated or PermissionDenied unless the caller may use the admin listener."""
        if self._keys is not None and self.tenant(metadata) != ADMIN_TENANT:
            raise PermissionDenied(f"the admin listener needs the key of the tenant {ADMIN_TENANT!r}")


def read_keys(path: str) -> Keys:
    """Read lines of `tenant:key`; empty lines and # comments are left out. Raises KeysFileError, OSError."""
    keys: Keys = []
    try:
        lines = decode_text(Path(path).read_bytes()).splitlines()
    except WireError as error:
        raise KeysFileError(f"{path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        tenant, separator, key = (part.strip() for part in entry.partition(":"))
        if not separator or not tenant:
            raise KeysFileError(f"{path}, line {number}: expected tenant:key")
        if len(key) < MIN_KEY_CHARACTERS or not key.isascii() or not key.isprintable():
            raise KeysFileError(
                f"{path}, line {number}: the key of tenant {tenant!r} must have at least {MIN_KEY_CHARACTERS} "
                "printable ASCII characters"
            )
        digest = hashlib.sha256(key.encode()).digest()
        if any(digest == known for known, _ in keys):
            raise KeysFileError(f"{path}, line {number}: the key of tenant {tenant!r} stands in an earlier line too")
        keys.append((digest, tenant))
    if not keys:
        raise KeysFileError(f"{path} has no key")
    return keys


class AuthInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Ends calls whose metadata `check` refuses, before their handler sees them. Health is open.

    It raises what `check` raises: the boundary before it answers."""

    def __init__(self, check: Callable[[Metadata | None], object]) -> None:
        self._check = check

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Called by grpc for each call."""
        if not handler_call_details.method.startswith(_HEALTH_PREFIXES):
            self._check(handler_call_details.invocation_metadata)
        return await continuation(handler_call_details)
