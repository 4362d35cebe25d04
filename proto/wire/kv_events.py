"""KV events: what becomes of cached blocks, in the format that vLLM publishes and its routers read.

A batch is an array, [time, events, rank]; an event is a map whose `type` is its name, with vLLM's fields in vLLM's
order (vllm/distributed/kv_events.py; since its pull request 42892 events are maps). A block's hash is the low 64 bits
of ours, as vLLM sends those of its own: readers take it for a name and no more, and hash `token_ids` and `extra_keys`
themselves.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from pagewire.wire.codec import ShortText

MEDIUM = "GPU"
"""vLLM's name of the memory that the model runs in, whatever the device: the nearest tier."""
_GROUP = 0
_FULL_ATTENTION = "full_attention"

BlockHash = Annotated[int, Meta(ge=0)]
"""Below 2^64, which is what msgpack can hold."""
Hashes = Annotated[list[BlockHash], Meta(max_length=2**20)]
TokenIds = Annotated[list[Annotated[int, Meta(ge=0, lt=2**31)]], Meta(max_length=2**24)]
ExtraKeys = Annotated[list[ShortText], Meta(max_length=16)]


class BlockStored(msgspec.Struct, tag=True, omit_defaults=True, gc=False, kw_only=True):
    """Blocks that can be found from now on, each the child of the one before."""

    block_hashes: Hashes
    parent_block_hash: BlockHash | None
    """Of the first one's parent; none where it begins a prompt."""
    token_ids: TokenIds
    """`block_size` for each block."""
    block_size: Annotated[int, Meta(ge=1, lt=2**31)]
    lora_id: int | None
    """None: there are no adapters."""
    medium: ShortText | None
    lora_name: ShortText | None
    extra_keys: Annotated[list[ExtraKeys | None], Meta(max_length=2**20)] | None = None
    """For each block what its hash has in it beside tokens: in the first of a prompt the request's cache salt."""
    group_idx: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    kv_cache_spec_kind: ShortText | None = None


class BlockRemoved(msgspec.Struct, tag=True, omit_defaults=True, gc=False, kw_only=True):
    """Blocks that cannot be found any more."""

    block_hashes: Hashes
    medium: ShortText | None
    group_idx: Annotated[int, Meta(ge=0, lt=2**31)] | None = None


class AllBlocksCleared(msgspec.Struct, tag=True, omit_defaults=True, gc=False):
    """There is no cached block any more."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


class KvEventBatch(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """What one step did."""

    ts: float
    """Seconds since 1970."""
    events: Annotated[list[KvEvent], Meta(max_length=2**20)]
    data_parallel_rank: Annotated[int, Meta(ge=0, lt=1024)] | None = None


def stored(
    block_hashes: list[int], parent_block_hash: int | None, token_ids: list[int], block_size: int, salt: str | None
) -> BlockStored:
    """Blocks of a model without adapters or groups. `salt` is the request's."""
    keys: list[list[str] | None] = [None] * len(block_hashes)
    if salt is not None and parent_block_hash is None:
        keys[0] = [salt]
    return BlockStored(
        block_hashes=block_hashes,
        parent_block_hash=parent_block_hash,
        token_ids=token_ids,
        block_size=block_size,
        lora_id=None,
        medium=MEDIUM,
        lora_name=None,
        extra_keys=keys,
        group_idx=_GROUP,
        kv_cache_spec_kind=_FULL_ATTENTION,
    )


def removed(block_hashes: list[int]) -> BlockRemoved:
    """Blocks that are gone."""
    return BlockRemoved(block_hashes=block_hashes, medium=MEDIUM, group_idx=_GROUP)


def short_hash(block_hash: bytes) -> int:
    """A block's hash as events name it."""
    return int.from_bytes(block_hash[-8:], "big")
