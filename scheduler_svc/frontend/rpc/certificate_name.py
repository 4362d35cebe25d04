"""The one name of a client's certificate that stands for a tenant.

gRPC tells names as C strings: one that holds a NUL comes cut off there, and of several common names it tells the first.
So a name counts only where the certificate itself holds it as a whole value, and as its subject's one common name.
Whether the certificate is to be trusted was gRPC's matter, and is not looked at here.
"""

import re
import ssl
from collections.abc import Iterable, Mapping

from pagewire.scheduler_svc.frontend.errors import Unauthenticated
from pagewire.scheduler_svc.launch import IdentityKind
from pagewire.wire.codec import WireError, decode_text

MAX_NAME_CHARACTERS = 255
"""Of a tenant, by certificate or by key."""
_PROPERTIES: dict[IdentityKind, str] = {"common_name": "x509_common_name", "uri": "peer_uri", "dns": "peer_dns"}
"""What gRPC calls them."""
_TAGS: dict[IdentityKind, bytes] = {"common_name": b"\x0c\x13\x16", "uri": b"\x86", "dns": b"\x82"}
"""In DER; a common name is a UTF8String, a PrintableString or an IA5String."""
_ATTRIBUTE = re.compile(rb"(?:[^\\,+]|\\.)+", re.DOTALL)
_ESCAPE = re.compile(rb"\\(?:([0-9A-Fa-f]{2})|(.))", re.DOTALL)

AuthContext = Mapping[str, Iterable[bytes]]


def certificate_name(context: AuthContext, kind: IdentityKind) -> str:
    """Of what gRPC tells of a connection. Raises Unauthenticated."""
    names = [name for name in context.get(_PROPERTIES[kind], ()) if name]
    if len(names) != 1:
        raise Unauthenticated(f"the client's certificate has {len(names)} names of kind {kind}, and needs one")
    try:
        name = decode_text(names[0])
    except WireError as error:
        raise Unauthenticated(f"the certificate's {kind}: {error}") from error
    if len(name) > MAX_NAME_CHARACTERS:
        raise Unauthenticated(
            f"the certificate's {kind} has {len(name)} characters; the limit is {MAX_NAME_CHARACTERS}"
        )
    if not _holds_whole(context, names[0], _TAGS[kind]):
        raise Unauthenticated(f"the certificate's {kind} is not the whole of what the certificate holds")
    if kind == "common_name":
        common_names = _common_names(b"".join(context.get("x509_subject", ())))
        if common_names != [names[0]]:
            raise Unauthenticated(
                f"the subject of the client's certificate has {len(common_names)} values of {kind}, and needs one that "
                "is the name itself"
            )
    return name


def _holds_whole(context: AuthContext, name: bytes, tags: bytes) -> bool:
    """Whether the certificate has the name as a value of its own, not as a part of one."""
    try:
        certificate = ssl.PEM_cert_to_DER_cert(decode_text(b"".join(context.get("x509_pem_cert", ()))))
    except (WireError, ValueError):
        return False
    value = _der_length(len(name)) + name
    return any(bytes((tag,)) + value in certificate for tag in tags)


def _der_length(length: int) -> bytes:
    if length < 0x80:
        return bytes((length,))
    digits = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((0x80 | len(digits),)) + digits


def _common_names(subject: bytes) -> list[bytes]:
    """Of a subject as RFC 2253 writes it, without escapes: a comma or a plus ends a value, escaped inside one."""
    return [
        _unescaped(attribute.removeprefix(b"CN="))
        for attribute in _ATTRIBUTE.findall(subject)
        if attribute.startswith(b"CN=")
    ]


def _unescaped(value: bytes) -> bytes:
    return _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)) if found[1] else found[2], value)
