"""KV events from the block manager to a follower's socket."""

import random
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.kv_follower import LIMIT_S, Subscription
from support.scheduler_world import World

from pagewire.scheduler_svc.engine import kv_event_publisher
from pagewire.scheduler_svc.engine.cache_log import CacheLog
from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.kv_event_publisher import KvEventPublisher
from pagewire.scheduler_svc.launch import KvEventsLaunch
from pagewire.scheduler_svc.startup_errors import StartupError
from pagewire.wire.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent, removed, stored

TOPIC = "kv@pod@model"
CONFIG = SchedulerConfig(
    max_num_seqs=4,
    max_num_batched_tokens=64,
    max_prefill_tokens_per_step=32,
    max_model_len=64,
    max_queued=8,
    max_queued_tokens=1 << 20,
    vocab_size=101,
    eos_token_ids=(0,),
    num_blocks=24,
    block_size=4,
    enable_prefix_caching=True,
)


@pytest.fixture
def launch() -> Iterator[KvEventsLaunch]:
    with tempfile.TemporaryDirectory(prefix="pw") as folder:
        yield KvEventsLaunch(addresses=(f"ipc://{folder}/p",), replay_addresses=(f"ipc://{folder}/r",), topic=TOPIC)


@pytest.fixture
def subscription(launch: KvEventsLaunch) -> Iterator[Subscription]:
    following = Subscription(launch.addresses[0], launch.replay_addresses[0], TOPIC)
    yield following
    following.close()


def batch(number: int) -> list[KvEvent]:
    return [stored([number], None, [number, number], 2, None)]


def until(condition: Callable[[], bool]) -> None:
    """Wait for the publisher's thread."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"


def publish_until_heard(publisher: KvEventPublisher, subscription: Subscription) -> int:
    """A subscriber that has just come misses what is sent before it is known: the number of batches until then."""
    for number in range(1000):
        publisher.publish(batch(number))
        if subscription.has_more(0.05):
            return number + 1
    raise AssertionError("it was never heard")


def test_what_becomes_of_blocks_is_noted_in_order() -> None:
    log = CacheLog()
    hashes = [bytes(24) + number.to_bytes(8, "big") for number in (1, 2**64 - 1, 3)]
    tokens = array("i", range(12))
    log.stored(hashes, 0, 2, tokens, 4, "salt")
    log.stored(hashes, 2, 3, tokens, 4, "salt")
    log.removed(hashes[2])
    log.removed(hashes[1])
    events = log.take()
    assert events == [
        stored([1, 2**64 - 1], None, list(range(8)), 4, "salt"),
        stored([3], 2**64 - 1, [8, 9, 10, 11], 4, "salt"),
        removed([3, 2**64 - 1]),
    ]
    assert isinstance(events[0], BlockStored)
    assert isinstance(events[1], BlockStored)
    assert (events[0].extra_keys, events[1].extra_keys) == ([["salt"], None], [None])
    log.removed(hashes[0])
    log.cleared()
    assert log.take() == [AllBlocksCleared()]
    assert log.take() == []


def test_a_manager_that_is_followed_tells_of_flushes_and_lost_workers() -> None:
    log = CacheLog()
    world = World(CONFIG, 2, log)
    assert log.take() == [AllBlocksCleared()]
    world.submit(list(range(1, 13)), 8, ignore_eos=True, salt=b"mine")
    world.drain()
    told = log.take()
    assert {type(event) for event in told} == {BlockStored}
    assert isinstance(told[0], BlockStored)
    assert told[0].extra_keys == [["mine"], None, None]
    assert world.scheduler.flush_cache() == 4
    assert log.take() == [AllBlocksCleared()]
    world.submit(list(range(1, 13)), 20, ignore_eos=True)
    world.submit(list(range(30, 39)), 1, ignore_eos=True)
    world.plan()
    world.deliver()
    log.take()
    assert world.scheduler.flush_cache() == 2  # the other's are held
    (event,) = log.take()
    assert isinstance(event, BlockRemoved)
    assert len(event.block_hashes) == 2
    world.lose_worker()
    assert log.take()[-1] == AllBlocksCleared()


def test_random_traffic_over_the_sockets(launch: KvEventsLaunch, subscription: Subscription) -> None:
    """Prompts that share, evictions, preemptions, flushes, lost workers; the follower comes late."""
    drawn = random.Random(5)
    log = CacheLog()
    with KvEventPublisher(launch) as publisher:
        world = World(CONFIG, 2, log)
        published = 0
        for step in range(600):
            if drawn.random() < 0.4:
                start = drawn.choice([1, 1, 40])
                prompt = [start + i for i in range(drawn.randint(1, 40))]
                salt = drawn.choice([b"", b"", b"other"])
                world.submit(prompt, drawn.randint(1, 20), ignore_eos=True, salt=salt)
            if drawn.random() < 0.02:
                world.scheduler.flush_cache()
            if drawn.random() < 0.01:
                world.lose_worker()
            world.plan()
            world.deliver()
            if events := log.take():
                publisher.publish(events)
                published += 1
            if step == 300:
                until(lambda wanted=published: len(subscription.replay(0)) == wanted)
                subscription.catch_up()
        until(lambda wanted=published: len(subscription.replay(0)) == wanted)
        subscription.catch_up()
        assert published > 200
        known = world.scheduler.blocks._cache._block_of
        assert set(subscription.follower.blocks) == {int.from_bytes(each[-8:], "big") for each in known}
        assert set(subscription.follower.tags) == {"BlockStored", "BlockRemoved", "AllBlocksCleared"}
        assert {block.keys for block in subscription.follower.blocks.values()} <= {(), ("other",)}


def test_live_batches_and_a_replay_from_a_number(launch: KvEventsLaunch, subscription: Subscription) -> None:
    with KvEventPublisher(launch) as publisher:
        first = publish_until_heard(publisher, subscription)
        for number in range(first, first + 50):
            publisher.publish(batch(number))
        subscription.read()
        begun = subscription.follower.next_number
        assert begun is not None
        subscription.read(first + 50 - begun)
        assert not subscription.has_more(0)
        assert [number for number, _ in subscription.replay(first + 20)] == list(range(first + 20, first + 50))
        assert subscription.replay(first + 50) == []
        assert [number for number, _ in subscription.replay(0)] == list(range(first + 50))


def test_what_is_kept_is_bounded(
    launch: KvEventsLaunch, subscription: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KvEventPublisher(launch, max_kept=10) as publisher:
        for number in range(100):
            publisher.publish(batch(number))
        until(lambda: [number for number, _ in subscription.replay(0)] == list(range(90, 100)))
        monkeypatch.setattr(kv_event_publisher, "_MAX_KEPT_BYTES", 1000)
        publisher.publish([stored([100], None, [1] * 700, 700, None)])
        until(lambda: [number for number, _ in subscription.replay(0)] == [100])
        publisher.publish([stored([101], None, [1] * 2000, 2000, None)])
        until(lambda: subscription.replay(0) == [])  # it alone is too much, and is not kept


def test_a_subscriber_that_does_not_read_holds_nobody_up(
    launch: KvEventsLaunch, subscription: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_event_publisher, "_SUBSCRIBER_HIGH_WATER_MARK", 8)
    other = Subscription(launch.addresses[0], launch.replay_addresses[0], TOPIC)
    other.live.set_hwm(8)
    try:
        with KvEventPublisher(launch) as publisher:
            heard = publish_until_heard(publisher, other)
            before = time.monotonic()
            for number in range(heard, heard + 5000):
                publisher.publish([stored([number], None, [7] * 512, 512, None)])
            assert time.monotonic() - before < 5
            until(lambda: len(other.replay(0)) == heard + 5000)
            first, content = other.receive()
            other.follower.take(first, content)
            while other.has_more(0.2):
                number, content = other.receive()
                if number != other.follower.next_number:
                    break
                other.follower.take(number, content)
            other.catch_up()  # what it lost is seen by the numbers
            assert other.follower.next_number == heard + 5000
    finally:
        other.close()


def test_batches_that_cannot_be_sent_in_time_are_dropped_and_followers_told(
    launch: KvEventsLaunch, subscription: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KvEventPublisher(launch, max_unsent=5) as publisher:
        with monkeypatch.context() as sleeping:
            sleeping.setattr(publisher, "_wake", lambda: None)
            for number in range(6):
                publisher.publish(batch(number))
        ((number, content),) = subscription.replay(0)
        assert (number, b"AllBlocksCleared" in content) == (0, True)
        publisher.publish(batch(7))
        until(lambda: len(subscription.replay(0)) == 2)


def test_a_bug_of_the_thread_is_the_engines(launch: KvEventsLaunch) -> None:
    def broken(_events: list[KvEvent]) -> None:
        raise KeyError("a bug")

    with KvEventPublisher(launch) as publisher:
        publisher._send = broken  # type: ignore[method-assign]
        publisher.publish(batch(0))
        until(lambda: publisher._failure is not None)
        with pytest.raises(RuntimeError, match="met a bug"):
            publisher.publish(batch(1))


def test_requests_that_are_none_are_ignored(launch: KvEventsLaunch, subscription: Subscription) -> None:
    import zmq

    with KvEventPublisher(launch) as publisher:
        publisher.publish(batch(0))
        asking = subscription._context.socket(zmq.DEALER)
        asking.connect(launch.replay_addresses[0])
        for request in ([b""], [b"", b"short"], [b"", bytes(8), b"more"], [b"", bytes(9)]):
            asking.send_multipart(request)
        assert [number for number, _ in subscription.replay(0)] == [0]
        assert not asking.poll(0)
        asking.close(0)


def test_addresses_that_cannot_be_listened_on_are_named(tmp_path: Path, launch: KvEventsLaunch) -> None:
    missing = KvEventsLaunch(addresses=(f"ipc://{tmp_path}/not/there",), replay_addresses=(), topic=TOPIC)
    with pytest.raises(StartupError, match="not/there"):
        KvEventPublisher(missing)
    # A socket's file that a killed engine left is no obstacle.
    for _ in range(2):
        (Path(launch.addresses[0].removeprefix("ipc://"))).touch()
        with KvEventPublisher(launch):
            pass
