"""Authentication: who calls, by API key or by certificate, and the tenants they stand for.

Only the keys' SHA-256 digests are kept, so that neither a log nor a dump of this object shows one, and digests of equal
length are compared in constant time, always all of them. It knows what gRPC tells of a call but no service, and not
when the file is read again: a key that is gone by then is known to no call that arrives.

With a keys file, every call but a health check brings `authorization: Bearer KEY`, and the key says who calls. Without
one, where clients must present certificates, the certificate does. Where neither does there is one anonymous tenant,
whose name is empty. Calls of the admin listener need a tenant that is an operator's.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc

from pagewire.scheduler_svc.frontend.errors import PermissionDenied, Unauthenticated
from pagewire.scheduler_svc.frontend.rpc.certificate_name import MAX_NAME_CHARACTERS, certificate_name
from pagewire.scheduler_svc.launch import IdentityKind
from pagewire.scheduler_svc.startup_errors import StartupError
from pagewire.wire.codec import WireError, decode_text

MIN_KEY_CHARACTERS = 16
_HEALTH_PREFIXES = ("/grpc.health.v1.Health/", "/vllm.grpc.engine.VllmEngine/HealthCheck")
_BEARER = "bearer "
"""In any case, as HTTP has it."""

Metadata = Iterable[tuple[str, str | bytes]]
Context = grpc.aio.ServicerContext[Any, Any]
Keys = list[tuple[bytes, str]]
"""A key's SHA-256, and its tenant."""


class KeysFileError(StartupError):
    """The keys file cannot be used; the message gives the line, and never a key."""


class Authenticator:
    """Turns what gRPC tells of a call into its tenant."""

    def __init__(self, admin_tenants: Iterable[str], identity: IdentityKind | None) -> None:
        """`identity` is what of a certificate counts where there are no keys, none where clients need none."""
        self._admin_tenants = frozenset(admin_tenants)
        self._identity = identity
        self._keys: Keys | None = None

    def use_keys(self, keys: Keys) -> None:
        """These, and no others, from now on."""
        self._keys = keys

    @property
    def tenants(self) -> frozenset[str] | None:
        """All that may call; none where nobody knows before they do."""
        return None if self._keys is None else frozenset(tenant for _, tenant in self._keys)

    @property
    def has_keys(self) -> bool:
        """Whether a key says who calls."""
        return self._keys is not None

    @property
    def has_certificates(self) -> bool:
        """Whether a certificate says who calls."""
        return self._keys is None and self._identity is not None

    def tenant(self, context: Context) -> str:
        """The caller's tenant, empty where there is but one. Raises Unauthenticated."""
        if self._keys is not None:
            return self.tenant_of_key(context.invocation_metadata())
        return "" if self._identity is None else certificate_name(context.auth_context(), self._identity)

    def tenant_of_key(self, metadata: Metadata | None) -> str:
        """Raises Unauthenticated."""
        values = [value for name, value in metadata or () if name == "authorization"]
        if len(values) != 1 or not isinstance(values[0], str) or not values[0].lower().startswith(_BEARER):
            raise Unauthenticated("this server needs one metadata entry 'authorization' with 'Bearer' and an API key")
        presented = hashlib.sha256(values[0][len(_BEARER) :].encode()).digest()
        found: str | None = None
        for digest, tenant in self._keys or ():
            if hmac.compare_digest(digest, presented):
                found = tenant
        if found is None:
            raise Unauthenticated("the API key is not known")
        return found

    def check_admin(self, tenant: str) -> None:
        """Raises PermissionDenied unless the tenant may use the admin listener."""
        if tenant not in self._admin_tenants:
            raise PermissionDenied(f"tenant {tenant!r} may not use the admin listener: it is no admin tenant")


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
        if len(tenant) > MAX_NAME_CHARACTERS:
            raise KeysFileError(
                f"{path}, line {number}: the tenant's name has {len(tenant)} characters; the limit is "
                f"{MAX_NAME_CHARACTERS}"
            )
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
    """Ends calls of whom it does not let in, before their handler sees them. Health is open.

    It raises what the authenticator raises: the boundary before it answers. Keys are looked at before anything else is
    known of a call, certificates in the call itself, where gRPC tells of them: there reflection, which is no service of
    ours and tells the contract alone, is open to whoever has a certificate."""

    def __init__(self, authenticator: Authenticator, *, for_admins: bool) -> None:
        self._authenticator = authenticator
        self._for_admins = for_admins

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Called by grpc for each call."""
        if handler_call_details.method.startswith(_HEALTH_PREFIXES):
            return await continuation(handler_call_details)
        if self._authenticator.has_keys:
            self._let_in(self._authenticator.tenant_of_key(handler_call_details.invocation_metadata))
        handler = await continuation(handler_call_details)
        if handler is None or not self._authenticator.has_certificates:
            return handler
        if handler.unary_unary is not None:
            guarded = self._guard(handler.unary_unary)
            return grpc.unary_unary_rpc_method_handler(
                guarded, handler.request_deserializer, handler.response_serializer
            )
        if handler.unary_stream is not None:
            guarded = self._guard(handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(
                guarded, handler.request_deserializer, handler.response_serializer
            )
        return handler

    def _let_in(self, tenant: str) -> None:
        if self._for_admins:
            self._authenticator.check_admin(tenant)

    def _guard(self, handle: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        async def guarded(request: Any, context: Any) -> Any:
            self._let_in(self._authenticator.tenant(context))
            handling = handle(request, context)
            del request  # it would stay for as long as the call does
            return await handling

        return guarded
