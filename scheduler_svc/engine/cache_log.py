"""The cache log: what becomes of cached blocks, noted by the block manager and taken by the loop.

It owns the events that nobody has taken yet. It knows the events' structs and neither clock nor socket. Invariant:
whoever follows the events from the beginning knows the prefix cache's hashes, at every `take`.
"""

from array import array

from pagewire.wire.kv_events import AllBlocksCleared, BlockRemoved, KvEvent, removed, short_hash, stored


class CacheLog:
    """Events since the last `take`."""

    def __init__(self) -> None:
        self._events: list[KvEvent] = []

    def stored(
        self, hashes: list[bytes], first: int, end: int, tokens: "array[int]", block_size: int, salt: str | None
    ) -> None:
        """Blocks `first` to `end` - 1 of a sequence with these hashes and tokens can be found."""
        self._events.append(
            stored(
                [short_hash(block_hash) for block_hash in hashes[first:end]],
                short_hash(hashes[first - 1]) if first else None,
                tokens[first * block_size : end * block_size].tolist(),
                block_size,
                salt,
            )
        )

    def removed(self, block_hash: bytes) -> None:
        """A block cannot be found any more."""
        last = self._events[-1] if self._events else None
        if isinstance(last, BlockRemoved):
            last.block_hashes.append(short_hash(block_hash))
        else:
            self._events.append(removed([short_hash(block_hash)]))

    def cleared(self) -> None:
        """No block can be found any more: what was to be told is void."""
        self._events = [AllBlocksCleared()]

    def take(self) -> list[KvEvent]:
        """The events, in their order."""
        events, self._events = self._events, []
        return events
