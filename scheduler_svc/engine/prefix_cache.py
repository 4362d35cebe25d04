"""The prefix cache: which block holds the KV of which prefix.

Owns the map from a block's hash to the block. It does not know who holds a block, nor when one is evicted.

A block's hash chains over everything before it, so equal hashes mean equal prefixes, salt included:

    root    = SHA-256("pagewire prefix 1\\0" ‖ salt)
    hash[i] = SHA-256(hash[i-1] ‖ token ids of block i as little-endian int32),   hash[-1] = root

SHA-256 because ids come from callers: a hash they could collide would hand one tenant another's KV
(CVE-2025-25183 was such a hash). It costs about a microsecond a block.
"""

import hashlib
from collections.abc import Iterator, Set

_DOMAIN = b"pagewire prefix 1\0"


def root_hash(salt: bytes) -> bytes:
    """Start of a chain."""
    return hashlib.sha256(_DOMAIN + salt).digest()


def chain_hash(parent: bytes, token_ids: bytes) -> bytes:
    """Hash of a block, from its parent's and its token ids (little-endian int32)."""
    return hashlib.sha256(parent + token_ids).digest()


class PrefixCache:
    """Block hash ↔ block, one to one."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._block_of)

    def __contains__(self, block: int) -> bool:
        return block in self._hash_of

    @property
    def blocks(self) -> Set[int]:
        """All that are known; a view."""
        return self._hash_of.keys()

    def lookup(self, block_hash: bytes) -> int | None:
        """The block with this hash."""
        return self._block_of.get(block_hash)

    def register(self, block_hash: bytes, block: int) -> bool:
        """Remember a block. False where an equal one is known already: that one stays, and this remains unknown."""
        if block_hash in self._block_of:
            return False
        self._block_of[block_hash] = block
        self._hash_of[block] = block_hash
        return True

    def forget(self, block: int) -> bytes | None:
        """Forget a block; returns its hash, none if it was not known."""
        block_hash = self._hash_of.pop(block, None)
        if block_hash is not None:
            del self._block_of[block_hash]
        return block_hash

    def violations(self) -> Iterator[str]:
        """What does not hold."""
        hashes = list(map(self._hash_of.get, self._block_of.values()))
        if len(self._hash_of) != len(hashes) or hashes != list(self._block_of):
            yield f"{len(hashes)} hashes are known of {len(self._hash_of)} cached blocks, not one for each"
