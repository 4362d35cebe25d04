"""Turns in the wait queue: whatever comes and goes, in whatever order, priority, tenants and arrival keep theirs."""

import gc
import os
from array import array
from collections import Counter

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pagewire.scheduler_svc.engine.queue_bounds import Amount
from pagewire.scheduler_svc.engine.sequence import Sequence, SequenceKey
from pagewire.scheduler_svc.engine.wait_queue import EarlySubmissions, WaitQueue
from pagewire.wire.columns import pack
from pagewire.wire.requests import RejectKind, Submit
from pagewire.wire.sampling import SamplingParams

RUNS = int(os.environ.get("PAGEWIRE_TEST_RUNS", "300"))
TENANTS = ("", "a", "b", "c")


def sequence(number: int, tenant: str, num_tokens: int, priority: int = 0) -> Sequence:
    """The one that came as number so and so."""
    return Sequence(
        key=SequenceKey(0, number),
        request_id="r",
        sampling=SamplingParams(0, 0, 1, 1),
        prompt_len=num_tokens,
        max_len=1 << 20,
        stop_token_ids=frozenset(),
        ignore_eos=True,
        priority=priority,
        salt=b"",
        arrived_s=0.0,
        queue_deadline_s=None,
        controls=None,
        logprobs=None,
        cache_salt=None,
        tenant=tenant,
        prompt_logprobs=None,
        tokens=array("i", [1]) * num_tokens,
        arrival=number,
    )


class Turns:
    """A wait queue, and those who have a slot."""

    def __init__(self) -> None:
        self.queue = WaitQueue()
        self.running: list[Sequence] = []
        self.num_arrived = 0

    def arrive(self, tenant: str, num_tokens: int, priority: int = 0) -> Sequence:
        """One more waits."""
        new = sequence(self.num_arrived, tenant, num_tokens, priority)
        self.num_arrived += 1
        self.queue.push(new)
        return new

    def admit(self) -> Sequence:
        """The first gets a slot."""
        first = self.queue.peek()
        assert first is not None
        self.queue.admit(first)
        first.started = True
        self.running.append(first)
        return first

    def end(self, index: int, num_output: int) -> None:
        """One that runs ends, with so many tokens more."""
        ended = self.running.pop(index)
        ended.tokens.extend([1] * num_output)
        self.queue.serve(ended)


class TurnsMachine(RuleBasedStateMachine):
    """Arrivals, admissions, preemptions, ends and aborts in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = Turns()

    @rule(tenant=st.sampled_from(TENANTS), num_tokens=st.integers(1, 50), priority=st.integers(-1, 1))
    def arrive(self, tenant: str, num_tokens: int, priority: int) -> None:
        self.turns.arrive(tenant, num_tokens, priority)

    @precondition(lambda self: len(self.turns.queue))
    @rule()
    def admit(self) -> None:
        self.turns.admit()

    @precondition(lambda self: self.turns.running)
    @rule(data=st.data(), num_output=st.integers(0, 50))
    def end(self, data: st.DataObject, num_output: int) -> None:
        self.turns.end(data.draw(st.integers(0, len(self.turns.running) - 1)), num_output)

    @precondition(lambda self: self.turns.running)
    @rule(data=st.data(), num_output=st.integers(0, 50))
    def preempt(self, data: st.DataObject, num_output: int) -> None:
        victim = self.turns.running.pop(data.draw(st.integers(0, len(self.turns.running) - 1)))
        victim.tokens.extend([1] * num_output)
        self.turns.queue.push(victim)

    @precondition(lambda self: len(self.turns.queue))
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        waiting = list(self.turns.queue)
        self.turns.queue.remove(waiting[data.draw(st.integers(0, len(waiting) - 1))])

    @invariant()
    def the_first_is_right(self) -> None:
        waiting, first = list(self.turns.queue), self.turns.queue.peek()
        if not waiting:
            assert first is None
            return
        assert first is not None
        level = [each for each in waiting if each.priority == max(each.priority for each in waiting)]
        assert first in level
        if have_run := [each for each in level if each.started]:
            assert first is min(have_run, key=lambda each: each.arrival)
        else:
            assert first.arrival == min(each.arrival for each in level if each.tenant == first.tenant)
        if len({each.tenant for each in level}) == 1:
            assert first is min(level, key=lambda each: (not each.started, each.arrival))

    @invariant()
    def amounts_are_what_waits(self) -> None:
        assert not list(self.turns.queue.violations())


TestTurns = pytest.mark.slow(TurnsMachine.TestCase)
TestTurns.settings = settings(
    max_examples=RUNS, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


@settings(max_examples=50, deadline=None)
@given(
    costs=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=60, max_size=60),
    num_tenants=st.integers(2, 4),
    backlog=st.integers(1, 5),
)
def test_tenants_that_always_wait_are_served_alike(
    costs: list[tuple[int, int]], num_tenants: int, backlog: int
) -> None:
    """Whatever their requests cost; one runs at a time."""
    turns, tenants = Turns(), TENANTS[-num_tenants:]
    prompts = iter([prompt for prompt, _ in costs] * 20)
    for tenant in tenants:
        for _ in range(backlog):
            turns.arrive(tenant, next(prompts))
    served: Counter[str] = Counter(dict.fromkeys(tenants, 0))
    dearest = max(prompt for prompt, _ in costs) + max(output for _, output in costs)
    for _, output in costs:
        running = turns.admit()
        turns.arrive(running.tenant, next(prompts))
        turns.end(0, output)
        served[running.tenant] += len(running.tokens)
        assert max(served.values()) - min(served.values()) <= dearest


@pytest.mark.parametrize("num_slots", [1, 4])
def test_one_that_fills_the_queue_does_not_starve_a_modest_one(num_slots: int) -> None:
    turns = Turns()
    for _ in range(500):
        turns.arrive("flood", 30)
    waits = []
    for turn in range(300):
        if turn % 10 == 5:
            modest = turns.arrive("modest", 30)
            since = turn
        if len(turns.running) == num_slots:
            turns.end(0, 50)
        if turns.admit() is (modest if turn >= 5 else None):
            waits.append(turn - since)
    assert len(waits) == 30
    assert max(waits) <= 1, "it waits for no more than one of the other's"


def test_to_have_been_away_earns_nothing() -> None:
    turns = Turns()
    for _ in range(100):
        turns.arrive("busy", 10)
    for _ in range(50):
        turns.admit()
    for _ in range(20):
        turns.arrive("back", 10)
    order = [turns.admit().tenant for _ in range(20)]
    assert order.count("back") == 10


def test_what_goes_before_a_new_one_is_its_tenant_s_own_and_as_much_of_each_other() -> None:
    turns = Turns()
    for _ in range(10):
        turns.arrive("flood", 30)
    turns.arrive("modest", 30)
    turns.arrive("modest", 7, priority=1)
    turns.arrive("flood", 1000, priority=-1)
    assert turns.queue.ahead_of(sequence(99, "modest", 30)) == Amount(1 + 1 + 2, 7 + 30 + 60)
    assert turns.queue.ahead_of(sequence(99, "flood", 30)) == Amount(1 + 10 + 1, 7 + 300 + 30)
    assert turns.queue.ahead_of(sequence(99, "new", 30, priority=1)) == Amount(1, 7)


@settings(max_examples=100, deadline=None)
@given(waiting=st.lists(st.tuples(st.integers(-3, 3), st.sampled_from(TENANTS), st.integers(1, 100)), max_size=30))
def test_what_goes_before_a_new_one_is_about_what_each_other_tenant_gets(
    waiting: list[tuple[int, str, int]],
) -> None:
    """Exact but for tenants of which one has more than the new one's share and another less, within a factor of two."""
    queue = WaitQueue()
    amounts: dict[str, int] = {}
    higher = 0
    for number, (priority, tenant, num_tokens) in enumerate(waiting):
        queue.push(sequence(number, tenant, num_tokens, priority))
        higher += num_tokens if priority > 0 else 0
        if priority == 0:
            amounts[tenant] = amounts.get(tenant, 0) + num_tokens
    share = amounts.get("a", 0) + 20
    others = [tokens for tenant, tokens in amounts.items() if tenant != "a"]
    exact = higher + amounts.get("a", 0) + sum(min(tokens, share) for tokens in others)
    found = queue.ahead_of(sequence(99, "a", 20)).tokens
    assert exact <= found <= higher + amounts.get("a", 0) + 2 * sum(min(tokens, share) for tokens in others)
    if all(tokens <= share for tokens in others) or all(tokens >= share for tokens in others):
        assert found == exact
    for each in list(queue):
        queue.remove(each)
    assert queue.ahead_of(sequence(99, "a", 20)) == Amount()
    assert not list(queue.violations())


def test_nobody_who_has_gone_is_kept() -> None:
    """Of tenants, sequences and deadlines that come and go while somebody waits on."""
    turns = Turns()
    first = turns.arrive("stays", 10)
    for number in range(200):
        one = sequence(1000 + number, f"tenant {number}", 10)
        one.queue_deadline_s, one.request_id = 1e9, "gone"
        turns.queue.push(one)
        turns.queue.remove(one)
    del one
    for _ in range(100):
        turns.queue.admit(turns.queue.peek() or first)
        first.arrival += 1
        turns.queue.push(first)
    kept = [each for each in gc.get_objects() if type(each) is Sequence and each.request_id == "gone"]
    assert len(kept) <= 20
    assert len(turns.queue._levels[0]._away) <= 1
    assert turns.queue.next_deadline_s() is None


def test_one_that_was_paused_keeps_its_place_among_those_of_its_tenant() -> None:
    turns = Turns()
    older, younger = turns.arrive("a", 10), turns.arrive("a", 10)
    turns.queue.remove(older)
    assert turns.queue.peek() is younger
    turns.queue.push(older)
    assert turns.queue.peek() is older


def early(handle: int, wait_s: float | None, tenant: str = "", num_tokens: int = 1) -> Submit:
    prompt, sampling = pack([1] * num_tokens), SamplingParams(0, 0, 1, 1)
    return Submit(handle, f"r{handle}", prompt, b"", sampling, 1, [], False, 0, b"", wait_s, tenant=tenant)


def test_before_the_first_worker_a_tenant_and_all_together_have_bounds_and_what_began_has_none() -> None:
    queue = EarlySubmissions(max_model_len=100, max_waiting=8, max_tokens=100)
    assert queue.submit(0, early(1, None, "red", 45), 0.0) is None
    refused = queue.submit(0, early(2, None, "red", 10), 0.0)
    assert refused is not None
    assert refused.kind is RejectKind.QUEUE_FULL
    assert "45 prompt tokens of tenant red" in refused.message
    begun = msgspec.structs.replace(early(3, None, "red", 90), generated=pack([1]))
    assert queue.submit(0, begun, 0.0) is None, "it was accepted once"
    assert queue.submit(0, early(4, None, "blue", 5), 0.0) is None, "it has nothing here"
    refused = queue.submit(0, early(5, None, "blue", 5), 0.0)
    assert refused is not None
    assert "prompt tokens wait already" in refused.message
    for handle in (1, 3):
        queue.abort(SequenceKey(0, handle))
    assert queue.submit(0, early(5, None, "blue", 45), 0.0) is None


def test_what_waits_for_the_first_worker_waits_no_longer_than_it_wishes() -> None:
    queue = EarlySubmissions(max_model_len=10, max_waiting=10, max_tokens=100)
    for handle, wait_s in enumerate((3.0, 1.0, None, 2.0, float("nan"), -1.0, 1e300)):
        assert queue.submit(0, early(handle, wait_s), 10.0) is None
    assert queue.next_deadline_s() == 11.0
    assert queue.expire(10.5) == []
    queue.abort(SequenceKey(0, 3))
    assert queue.submit(0, early(3, 9.0), 10.5) is None, "the handle is another's now"
    assert [(each.message.handle, each.message.kind) for each in queue.expire(12.5)] == [(1, RejectKind.QUEUE_TIMEOUT)]
    assert queue.next_deadline_s() == 13.0
    assert [(submit.handle, came_s) for _, submit, came_s in queue.take()] == [
        (0, 10.0), (2, 10.0), (4, 10.0), (5, 10.0), (6, 10.0), (3, 10.5),
    ]  # fmt: skip
    assert queue.next_deadline_s() is None
