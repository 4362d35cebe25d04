"""The root of a request's prefix-cache chain.

Requests share cached blocks only when tenant and salt are equal. Both are written with their lengths before they are
hashed, so that no tenant can choose a salt that makes its chain another's.
"""

import hashlib

_DOMAIN = b"pagewire prefix cache salt 1"


def chain_salt(tenant: str, cache_salt: str | None) -> bytes:
    """32 bytes from the authenticated tenant (empty: the anonymous one) and the request's salt, if it has one."""
    digest = hashlib.sha256(_DOMAIN)
    parts = [tenant] if cache_salt is None else [tenant, cache_salt]
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()
