"""KV events in the facade's messages: batches of the engine become KvEventBatches.

A block's extra keys are told where its prompt begins alone; the facade's messages have the cache salt beside every
block, so this remembers the salted ones of the cache.
"""

from typing import Any

from smg_grpc_proto.generated import common_pb2

from pagewire.wire.kv_events import MEDIUM, AllBlocksCleared, BlockRemoved, BlockStored, KvEventBatch


class KvEventMessages:
    """Of one call."""

    def __init__(self) -> None:
        self._num_events = 0
        self._salts: dict[int, str] = {}

    def message(self, number: int, batch: KvEventBatch) -> Any:
        """A KvEventBatch of the facade."""
        made = common_pb2.KvEventBatch(sequence_number=number, timestamp=batch.ts, dp_rank=batch.data_parallel_rank)
        for event in batch.events:
            self._num_events += 1
            into = made.events.add(event_id=self._num_events)
            match event:
                case BlockStored():
                    self._store(event, into.stored)
                case BlockRemoved():
                    self._remove(event, into.removed)
                case AllBlocksCleared():
                    self._salts.clear()
                    into.cleared.SetInParent()
        return made

    def _store(self, event: BlockStored, into: Any) -> None:
        parent, keys, size = event.parent_block_hash, event.extra_keys or [], event.block_size
        salt = None if parent is None else self._salts.get(parent)
        if parent is None and keys and keys[0]:
            salt = keys[0][0]
        if salt is not None:
            self._salts.update(dict.fromkeys(event.block_hashes, salt))
            into.cache_salt = salt
        if parent is not None:
            into.parent_block_hash = signed(parent)
        into.tier, into.medium = common_pb2.KV_CACHE_TIER_DEVICE, MEDIUM
        into.locality = common_pb2.KV_CACHE_LOCALITY_LOCAL
        into.group_idx, into.kv_cache_spec_kind = event.group_idx or 0, event.kv_cache_spec_kind or ""
        for index, block_hash in enumerate(event.block_hashes):
            tokens = event.token_ids[index * size : (index + 1) * size]
            block = into.blocks.add(block_hash=signed(block_hash), token_ids=tokens, block_size=size)
            for key in (keys[index] if index < len(keys) else None) or ():
                block.extra_keys.add(text=key)

    def _remove(self, event: BlockRemoved, into: Any) -> None:
        for block_hash in event.block_hashes:
            self._salts.pop(block_hash, None)
            into.block_hashes.append(signed(block_hash))
        into.tier, into.medium = common_pb2.KV_CACHE_TIER_DEVICE, MEDIUM
        into.locality = common_pb2.KV_CACHE_LOCALITY_LOCAL
        into.group_idx = event.group_idx or 0


def signed(block_hash: int) -> int:
    """The same 64 bits as an int64."""
    return block_hash - 2**64 if block_hash >= 2**63 else block_hash
