"""The one name of a client's certificate that stands for a tenant.

gRPC tells names as C strings: one that holds a NUL comes cut off there, and of several common names it tells the first.
So a name counts only where it is, as a whole, the one value of its kind in its place in the certificate (RFC 5280): the
subject for a common name, the extension of alternative names for the others. What looks like a name elsewhere, in an
extension of somebody's own, is none. Whether the certificate is to be trusted was gRPC's matter, and is not looked at
here.
"""

import ssl
from collections.abc import Iterable, Iterator, Mapping

from pagewire.scheduler_svc.frontend.errors import Unauthenticated
from pagewire.scheduler_svc.launch import IdentityKind
from pagewire.wire.codec import WireError, decode_text

MAX_NAME_CHARACTERS = 255
"""Of a tenant, by certificate or by key."""
_PROPERTIES: dict[IdentityKind, str] = {"common_name": "x509_common_name", "uri": "peer_uri", "dns": "peer_dns"}
"""What gRPC calls them."""
_ALTERNATIVE_TAGS: dict[IdentityKind, int] = {"uri": 0x86, "dns": 0x82}
"""In DER, of a GeneralName."""
_COMMON_NAME, _ALTERNATIVE_NAMES = b"\x55\x04\x03", b"\x55\x1d\x11"
"""Object identifiers: 2.5.4.3 and 2.5.29.17."""
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_STRINGS = (0x0C, 0x13, 0x16)
"""A common name is a UTF8String, a PrintableString or an IA5String."""
_LONG_TAG, _NO_LENGTH = 0x1F, 0x80
"""The bits of a tag of several bytes, which none here has, and the length of content that ends by itself, which DER
has not; what is added to the latter is the number of a length's bytes."""
_SUBJECT = 4
"""Its place in a certificate's content, behind serial number, algorithm, issuer and validity."""

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
    try:
        certificate = ssl.PEM_cert_to_DER_cert(decode_text(b"".join(context.get("x509_pem_cert", ()))))
        values = list(_common_names(certificate) if kind == "common_name" else _alternative_names(certificate, kind))
    except (WireError, ValueError) as error:
        raise Unauthenticated(f"the client's certificate cannot be read: {error}") from error
    if len(values) != 1:
        raise Unauthenticated(f"the client's certificate has {len(values)} values of {kind}, and needs one")
    if values[0] != names[0]:
        raise Unauthenticated(f"the certificate's {kind} is not the whole of what the certificate holds")
    return name


def _common_names(certificate: bytes) -> Iterator[bytes]:
    """Those of the subject. One in an encoding of another kind than text's counts, and is empty. Raises ValueError."""
    _, subject = _content(certificate)[_SUBJECT]
    for _, attributes in _elements(subject):
        for _, attribute in _elements(attributes):
            (_, identifier), (tag, value) = _elements(attribute)
            if identifier == _COMMON_NAME:
                yield value if tag in _STRINGS else b""


def _alternative_names(certificate: bytes, kind: IdentityKind) -> Iterator[bytes]:
    """Raises ValueError."""
    wrapped = [content for tag, content in _content(certificate)[_SUBJECT + 1 :] if tag == _EXTENSIONS]
    for _, extensions in (element for each in wrapped for element in _elements(each)):
        for _, extension in _elements(extensions):
            (_, identifier), *_, (_, value) = _elements(extension)
            if identifier == _ALTERNATIVE_NAMES:
                ((_, general_names),) = _elements(value)
                yield from (name for tag, name in _elements(general_names) if tag == _ALTERNATIVE_TAGS[kind])


def _content(certificate: bytes) -> list[tuple[int, bytes]]:
    """The elements of what is signed, without the version, which may be left out."""
    ((_, signed),) = _elements(certificate)
    (_, content), *_ = _elements(signed)
    fields = [field for field in _elements(content) if field[0] != _VERSION]
    if len(fields) <= _SUBJECT:
        raise ValueError(f"it has {len(fields)} fields, and no subject")
    return fields


def _elements(content: bytes) -> list[tuple[int, bytes]]:
    """Tags and contents of the DER elements that follow each other here. Raises ValueError."""
    found, at = [], 0
    while at < len(content):
        tag, length, start = content[at], int.from_bytes(content[at + 1 : at + 2]), at + 2
        has_end = length != _NO_LENGTH
        if length > _NO_LENGTH:
            digits = length - _NO_LENGTH
            length, start = int.from_bytes(content[start : start + digits]), start + digits
        at = start + length
        if tag & _LONG_TAG == _LONG_TAG or not has_end or at > len(content):
            raise ValueError("its DER encoding is broken")
        found.append((tag, content[start:at]))
    return found
