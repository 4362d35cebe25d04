"""Block tables: gives sequences the blocks they need, shared where a prefix is cached.

Owns every sequence's block table and the pairing of pool and prefix cache. It does not know slots, steps or why a
sequence wants memory.

Invariants (`violations`): a block's references are the tables it stands in; a free block stands in none; a block
in the prefix cache is full, its tokens are final, and its KV is computed by a plan already made, so that whoever finds
it may read it in that same step (a step writes all KV of a layer before any of its attention) or later.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator

from pagewire.scheduler_svc.engine.block_pool import BlockPool
from pagewire.scheduler_svc.engine.cache_log import CacheLog
from pagewire.scheduler_svc.engine.prefix_cache import PrefixCache, chain_hash, root_hash
from pagewire.scheduler_svc.engine.sequence import Sequence
from pagewire.wire.requests import CACHED_ALONE, MOST_HOLDERS


class BlockManager:
    """The only writer of block tables."""

    def __init__(
        self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool, log: CacheLog | None = None
    ) -> None:
        """`log` is told what becomes of cached blocks, where somebody follows it."""
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}; it must be at least 1")
        self.block_size = block_size
        self._caching = enable_prefix_caching
        self._pool = BlockPool(num_blocks)
        self._cache = PrefixCache()
        self._num_idle_cached = 0
        self._log = log
        if log is not None:
            log.cleared()

    @property
    def num_blocks(self) -> int:
        """All blocks."""
        return self._pool.num_blocks

    @property
    def num_used(self) -> int:
        """Blocks that some sequence holds."""
        return self._pool.num_blocks - self._pool.num_free

    @property
    def num_free(self) -> int:
        """Blocks that can be taken, those that hold a cached prefix included."""
        return self._pool.num_free

    @property
    def num_cached(self) -> int:
        """Free blocks that hold a cached prefix."""
        return self._num_idle_cached

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold the KV of this many tokens."""
        return -(-num_tokens // self.block_size)

    def try_admit(self, sequence: Sequence, *, reserve: int) -> bool:
        """Give a sequence a table for all its known tokens, starting with the longest cached prefix; with none where
        its prompt is to be scored, which takes computing it.

        False, and nothing changed, when fewer than `reserve` free blocks would be left.
        """
        hits = [] if sequence.awaits_scores else self._match(sequence)
        num_new = self.blocks_for(len(sequence.tokens)) - len(hits)
        num_woken = sum(self._pool.references(block) == 0 for block in hits)
        if self._pool.num_free - num_woken - num_new < reserve:
            return False
        for block in hits:
            self._pool.share(block)
        self._num_idle_cached -= num_woken
        sequence.blocks = hits + [self._take() for _ in range(num_new)]
        sequence.num_cached = len(hits) * self.block_size
        sequence.num_published = len(hits)
        return True

    def try_grow(self, sequence: Sequence) -> int | None:
        """Append one block to a table and return it; None when no block is free."""
        if self._pool.num_free == 0:
            return None
        block = self._take()
        sequence.blocks.append(block)
        return block

    def publish(self, sequence: Sequence, num_computed: int) -> None:
        """Put the full blocks among the first `num_computed` tokens into the prefix cache, for others to share.

        Those tokens must be known, and the computation of their KV planned.
        """
        if not self._caching:
            return
        num_full = num_computed // self.block_size
        if num_full <= sequence.num_published:
            return
        self._extend_hashes(sequence, num_full)
        if self._log is None:
            for index in range(sequence.num_published, num_full):
                self._cache.register(sequence.hashes[index], sequence.blocks[index])
        else:
            self._register_and_tell(sequence, num_full, self._log)
        sequence.num_published = num_full

    def forget_hashes(self, sequence: Sequence) -> None:
        """Blocks will have another size: what was hashed has no meaning any more. It must hold none."""
        sequence.hashes = []

    def release(self, sequence: Sequence, *, keep_cached: bool = True) -> None:
        """Take a sequence's table away. Its tail goes first, so that of a cached prefix the end is evicted first. Where
        what it computed is not to be trusted, its blocks are not kept in the prefix cache."""
        if not keep_cached:
            for block in sequence.blocks:
                self._forget(block)
        for block in reversed(sequence.blocks):
            cached = block in self._cache
            self._pool.release(block, keep=cached)
            if cached and self._pool.references(block) == 0:
                self._num_idle_cached += 1
        sequence.blocks = []
        sequence.num_cached = 0
        sequence.num_published = 0

    def flush(self) -> int:
        """Forget every cached block that no sequence holds; returns how many."""
        cached = [block for block in self._pool.free_blocks() if block in self._cache]
        for block in cached:
            self._forget(block)
            self._pool.demote(block)
        self._num_idle_cached = 0
        if cached and not self._cache and self._log is not None:
            self._log.cleared()
        return len(cached)

    def uses(self, first: int, count: int) -> bytes:
        """What these blocks are used for, as `requests.BlockUses` says it; those that do not exist are left out."""
        cached = self._cache.blocks
        return bytes(
            [
                min(held, MOST_HOLDERS) if held else CACHED_ALONE if block in cached else 0
                for block, held in enumerate(self._pool.holders(first, count), first)
            ]
        )

    def violations(self, sequences: Iterable[Sequence]) -> Iterator[str]:
        """What does not hold, where these sequences have tables."""
        held: Counter[int] = Counter()
        for sequence in sequences:
            if len(set(sequence.blocks)) != len(sequence.blocks):
                yield f"{sequence.key} holds a block twice"
            held.update(sequence.blocks)
        yield from self._pool.violations(held)
        yield from self._cache.violations()
        num_idle = len(self._cache) - len(self._cache.blocks & held.keys())
        if num_idle != self._num_idle_cached:
            yield f"{num_idle} blocks are cached and free, and {self._num_idle_cached} are counted"

    def _match(self, sequence: Sequence) -> list[int]:
        """The blocks of the longest cached prefix, full blocks only."""
        if not self._caching:
            return []
        self._extend_hashes(sequence, len(sequence.tokens) // self.block_size)
        hits: list[int] = []
        for block_hash in sequence.hashes:
            block = self._cache.lookup(block_hash)
            if block is None:
                break
            hits.append(block)
        return hits

    def _extend_hashes(self, sequence: Sequence, num_full: int) -> None:
        hashes = sequence.hashes
        parent = hashes[-1] if hashes else root_hash(sequence.salt)
        for index in range(len(hashes), num_full):
            start = index * self.block_size
            parent = chain_hash(parent, _ids(sequence.tokens, start, start + self.block_size))
            hashes.append(parent)

    def _take(self) -> int:
        block = self._pool.take()
        if self._forget(block):
            self._num_idle_cached -= 1
        return block

    def _forget(self, block: int) -> bool:
        block_hash = self._cache.forget(block)
        if block_hash is None:
            return False
        if self._log is not None:
            self._log.removed(block_hash)
        return True

    def _register_and_tell(self, sequence: Sequence, num_full: int, log: CacheLog) -> None:
        """Of the blocks that are new to the cache, each run is told at once."""
        first = None
        for index in range(sequence.num_published, num_full):
            is_new = self._cache.register(sequence.hashes[index], sequence.blocks[index])
            if is_new and first is None:
                first = index
            elif not is_new and first is not None:
                log.stored(sequence.hashes, first, index, sequence.tokens, self.block_size, sequence.cache_salt)
                first = None
        if first is not None:
            log.stored(sequence.hashes, first, num_full, sequence.tokens, self.block_size, sequence.cache_salt)


def _ids(tokens: "array[int]", start: int, end: int) -> bytes:
    return tokens[start:end].tobytes()
