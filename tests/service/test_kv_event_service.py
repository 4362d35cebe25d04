"""KV events of a whole service: what a follower knows, over flushes and the deaths of worker and engine."""

import tempfile
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from smg_grpc_proto import vllm_engine_pb2_grpc
from smg_grpc_proto.generated import common_pb2
from support.kv_follower import Subscription
from support.service import LIMIT_S, Service, ids_of, serve, stream_request

from pagewire.client import Client
from pagewire.v1 import admin_pb2

pytestmark = pytest.mark.slow

TOPIC = "kv@here@tiny"


@pytest.fixture
def addresses() -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory(prefix="pw") as folder:
        yield f"ipc://{folder}/events", f"ipc://{folder}/replay"


def served(addresses: tuple[str, str]) -> dict[str, object]:
    events, replay = addresses
    return {"kv_events": events, "kv_events_replay": replay, "kv_events_topic": TOPIC, "block_size": 4}


def say(service: Service, ids: list[int], **fields: object) -> list[int]:
    """A prompt, and 9 tokens behind it."""
    asked = stream_request(ids, stopping={"max_tokens": 9, "ignore_eos": True}, **fields)
    return ids_of(list(service.inference.StreamGenerate(asked, timeout=LIMIT_S)))


def settled(service: Service, prompt_tokens: int) -> admin_pb2.Load:
    """The load once so many tokens of prompts have come in all, and nothing runs any more."""
    return service.wait_for_load(lambda load: load.prompt_tokens == prompt_tokens and load.used_blocks == 0)


def test_a_follower_knows_the_cache(addresses: tuple[str, str]) -> None:
    with serve(
        **served(addresses), kv_cache_bytes=262144, max_model_len=256, max_num_seqs=2, max_num_batched_tokens=64
    ) as service:
        following = Subscription(*addresses, TOPIC)
        try:
            follower = following.follower
            following.catch_up()
            assert follower.tags == ["AllBlocksCleared"]
            prompt = list(range(1, 22))
            answer = say(service, prompt, cache_salt="mine")
            settled(service, 21)
            following.catch_up()
            # The last token is sampled and never computed.
            whole = prompt + answer[:-1]
            expected = {tuple(whole[:end]) for end in range(4, len(whole) + 1, 4)}
            assert set(follower.prefixes().values()) == {(("mine",), prefix) for prefix in expected}
            say(service, prompt)  # another salt shares nothing
            load = settled(service, 42)
            following.catch_up()
            assert {keys for keys, _ in follower.prefixes().values()} == {("mine",), ()}
            assert load.cached_blocks == len(follower.blocks) == 14
            for start in range(10):
                say(service, [start + 30] * 40)
            load = settled(service, 442)
            following.catch_up()
            assert load.cached_blocks == len(follower.blocks)
            assert "BlockRemoved" in follower.tags
            flushed = service.admin.FlushCache(admin_pb2.FlushCacheRequest(), timeout=LIMIT_S).flushed_blocks
            assert flushed == len(follower.blocks)
            following.catch_up()
            assert not follower.blocks
        finally:
            following.close()


def test_workers_and_engines_that_die(addresses: tuple[str, str]) -> None:
    with serve(**served(addresses)) as service:
        following = Subscription(*addresses, TOPIC)
        try:
            follower = following.follower
            say(service, list(range(1, 22)))
            following.catch_up()
            assert follower.blocks
            assert follower.next_number is not None
            number, clears = follower.next_number, follower.num_clears
            service.children()["worker"].kill()
            service.wait_for_load(lambda load: load.state == admin_pb2.SERVICE_STATE_RECOVERING)
            service.wait_for_load(lambda load: load.state == admin_pb2.SERVICE_STATE_READY)
            following.catch_up()
            assert not follower.blocks
            assert follower.num_clears > clears
            assert follower.next_number > number  # they go on
            say(service, list(range(1, 22)))
            following.catch_up()
            assert follower.blocks
            before = service.children()["engine"]
            before.kill()
            before.wait(LIMIT_S)
            with Client(service.address) as client:  # which asks again while the new engine starts
                client.generate(list(range(60, 80)), max_tokens=9, ignore_eos=True, timeout_s=LIMIT_S)
            again = following.replay(0)
            assert again[0][0] == 0  # a new engine begins anew
            anew = Subscription(*addresses, TOPIC)
            try:
                anew.catch_up()
                assert anew.follower.tags[0] == "AllBlocksCleared"
                known = {prefix[:4] for _, prefix in anew.follower.prefixes().values()}
                assert known == {tuple(range(60, 64))}
            finally:
                anew.close()
        finally:
            following.close()


def test_nothing_is_published_unless_it_is_asked_for(addresses: tuple[str, str]) -> None:
    with serve() as service:
        engine = service.children()["engine"]
        say(service, list(range(1, 40)))
        assert not [each for each in engine.net_connections() if each.status == "LISTEN"]
        num_threads = engine.num_threads()
        with serve(**served(addresses)) as other:
            publishing = other.children()["engine"]
            assert publishing.num_threads() > num_threads


def test_the_facade_streams_the_same_events(addresses: tuple[str, str]) -> None:
    prompt = list(range(1, 22))
    with serve(**served(addresses), vllm_grpc=True) as service:
        following = Subscription(*addresses, TOPIC)
        subscribe = vllm_engine_pb2_grpc.VllmEngineStub(service.channel).SubscribeKvEvents
        try:
            say(service, prompt, cache_salt="mine")
            settled(service, 21)
            following.catch_up()
            told = following.follower
            call = subscribe(common_pb2.SubscribeKvEventsRequest(load_records_before_first_batch=True), timeout=LIMIT_S)
            known: dict[int, tuple[int, ...]] = {}
            numbers = []
            for batch in call:
                numbers.append(batch.sequence_number)
                take(known, batch)
                if batch.sequence_number == (told.next_number or 0) - 1:
                    break
            assert numbers == list(range(told.next_number or 0))
            assert known == {as_int64(name): block.token_ids for name, block in told.blocks.items()}
            stored = [event.stored for event in batch.events if event.HasField("stored")]
            assert {each.cache_salt for each in stored} <= {"mine"}
            # Live: a flush, and a prompt behind it.
            service.admin.FlushCache(admin_pb2.FlushCacheRequest(), timeout=LIMIT_S)
            batch = next(call)
            assert batch.events[0].HasField("cleared")
            last = batch.sequence_number
            say(service, prompt)
            assert next(call).events[0].stored.blocks[0].token_ids == prompt[:4]
            call.cancel()
            # On from a number, and from one that is not there.
            again = subscribe(common_pb2.SubscribeKvEventsRequest(start_sequence_number=last), timeout=LIMIT_S)
            assert [next(again).sequence_number for _ in range(2)] == [last, last + 1]
            none = subscribe(common_pb2.SubscribeKvEventsRequest(start_sequence_number=10_000), timeout=LIMIT_S)
            with pytest.raises(grpc.RpcError) as refused:
                next(none)
            assert refused.value.code() is grpc.StatusCode.OUT_OF_RANGE
            # A new engine: what was followed is void.
            service.children()["engine"].kill()
            with pytest.raises(grpc.RpcError) as lost:
                list(again)
            assert lost.value.code() in (grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNAVAILABLE)
        finally:
            following.close()


def take(known: dict[int, tuple[int, ...]], batch: Any) -> None:
    """A cache as the facade's messages tell it."""
    for event in batch.events:
        match event.WhichOneof("data"):
            case "stored":
                known |= {block.block_hash: tuple(block.token_ids) for block in event.stored.blocks}
            case "removed":
                for name in event.removed.block_hashes:
                    del known[name]
            case "cleared":
                known.clear()


def as_int64(name: int) -> int:
    return name - 2**64 if name >= 2**63 else name
