"""A follower of KV events, written from vLLM's documented format alone: it knows a cache by what is told of it.

It decodes without any type of ours, and is stricter than a router has to be: numbers go on by one, a removed block was
there, one that is stored was not.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
import zmq

LIMIT_S = 20.0
END = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Block:
    """One cached block, as it was told."""

    parent: int | None
    token_ids: tuple[int, ...]
    keys: tuple[str, ...]


class Follower:
    """What is cached, after the batches so far."""

    def __init__(self) -> None:
        self.blocks: dict[int, Block] = {}
        self.next_number: int | None = None
        self.num_clears = 0
        self.tags: list[str] = []

    def take(self, number: int, batch: bytes) -> None:
        """The next batch, or one that a replay brought already."""
        if self.next_number is not None:
            assert number == self.next_number, f"batch {number} came where {self.next_number} was to come"
        self.next_number = number + 1
        time_s, events, rank = msgspec.msgpack.decode(batch)
        assert time_s > 1e9
        assert rank == 0
        assert events
        for event in events:
            self.tags.append(event["type"])
            match event["type"]:
                case "BlockStored":
                    self._store(event)
                case "BlockRemoved":
                    assert set(event) == {"type", "block_hashes", "medium", "group_idx"}
                    assert event["block_hashes"]
                    for block_hash in event["block_hashes"]:
                        del self.blocks[block_hash]
                case "AllBlocksCleared":
                    assert set(event) == {"type"}
                    self.blocks.clear()
                    self.num_clears += 1
                case other:
                    raise AssertionError(f"{other} is no event")

    def _store(self, event: dict[str, Any]) -> None:
        assert list(event) == [
            "type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name",
            "extra_keys", "group_idx", "kv_cache_spec_kind",
        ]  # fmt: skip
        assert (event["lora_id"], event["lora_name"], event["medium"]) == (None, None, "GPU")
        hashes, tokens, size = event["block_hashes"], event["token_ids"], event["block_size"]
        assert hashes
        assert len(tokens) == len(hashes) * size
        assert len(event["extra_keys"]) == len(hashes)
        parent = event["parent_block_hash"]
        for index, block_hash in enumerate(hashes):
            assert 0 <= block_hash < 1 << 64
            assert block_hash not in self.blocks
            keys = event["extra_keys"][index]
            assert keys is None or parent is None
            self.blocks[block_hash] = Block(parent, tuple(tokens[index * size : (index + 1) * size]), tuple(keys or ()))
            parent = block_hash

    def prefixes(self) -> dict[int, tuple[tuple[str, ...], tuple[int, ...]]]:
        """For each block all that is before and in it, and the keys of its beginning. A block whose parent is gone
        tells nothing of what it is worth, and is left out."""
        found: dict[int, tuple[tuple[str, ...], tuple[int, ...]]] = {}

        def prefix(block_hash: int) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
            if block_hash not in found and (block := self.blocks.get(block_hash)) is not None:
                before = (block.keys, ()) if block.parent is None else prefix(block.parent)
                if before is not None:
                    found[block_hash] = (before[0], before[1] + block.token_ids)
            return found.get(block_hash)

        for block_hash in self.blocks:
            prefix(block_hash)
        return found


class Subscription:
    """A follower at its two sockets."""

    def __init__(self, address: str, replay_address: str, topic: str) -> None:
        self._context = zmq.Context()
        self._topic = topic.encode()
        self.live = self._context.socket(zmq.SUB)
        self.live.subscribe(self._topic)
        self.live.connect(address)
        self._replay_address = replay_address
        self.follower = Follower()

    def read(self, number_of_batches: int = 1) -> None:
        """Follow so many live batches; those that a replay brought already are passed over."""
        read = 0
        while read < number_of_batches:
            number, batch = self.receive()
            if self.follower.next_number is not None and number < self.follower.next_number:
                continue
            self.follower.take(number, batch)
            read += 1

    def receive(self) -> tuple[int, bytes]:
        """One live batch."""
        assert self.live.poll(int(LIMIT_S * 1000)), "nothing came"
        topic, number, batch = self.live.recv_multipart()
        assert topic == self._topic
        assert len(number) == 8
        return int.from_bytes(number, "big"), batch

    def has_more(self, within_s: float) -> bool:
        """Whether another live batch comes."""
        return bool(self.live.poll(int(within_s * 1000)))

    def replay(self, first: int) -> list[tuple[int, bytes]]:
        """Everything that is kept from that number on."""
        asking = self._context.socket(zmq.DEALER)
        asking.connect(self._replay_address)
        try:
            asking.send_multipart([b"", first.to_bytes(8, "big")])
            got = []
            while True:
                assert asking.poll(int(LIMIT_S * 1000)), "the replay did not end"
                empty, number, batch = asking.recv_multipart()
                assert empty == b""
                if int.from_bytes(number, "big") == END:
                    assert batch == b""
                    return got
                got.append((int.from_bytes(number, "big"), batch))
        finally:
            asking.close(0)

    def catch_up(self) -> None:
        """Take from a replay what has not come yet."""
        for number, batch in self.replay(self.follower.next_number or 0):
            self.follower.take(number, batch)

    def close(self) -> None:
        """Go away."""
        self._context.destroy(linger=0)
