"""Requests that end workers are found and fail alone, whoever runs with them and whatever else ends workers."""

import math
import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.scheduler_world import FRONTEND, World

from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.events import Event
from pagewire.scheduler_svc.engine.sequence import SequenceKey
from pagewire.scheduler_svc.engine.slot_table import SlotTable
from pagewire.wire.columns import unpack_pairs
from pagewire.wire.requests import FinishKind, SeqFinished

RUNS = int(os.environ.get("PAGEWIRE_TEST_RUNS", "400"))
MAX_PLANS = 20_000
IN_ANY_STEP = 0


class PoisonWorld(World):
    """A world in which some sequences end the worker that computes them, from some length on."""

    def __init__(self, config: SchedulerConfig, depth: int) -> None:
        super().__init__(config, depth)
        self.poison: dict[int, int] = {}
        """By handle: the tokens of it that a worker can compute."""
        self.drip: dict[int, int] = {}
        """By handle: how many tokens of it each worker gives before it ends by it."""
        self._given_from: dict[int, int] = {}
        """By handle: the tokens of it that this worker was given."""
        self.close_losses: Counter[int] = Counter()
        """By handle: losses in a row under it with fewer than 16 tokens of it between each two."""
        self._got_at_loss: dict[int, int] = {}
        self.failed: list[Event[SeqFinished]] = []
        self.losses = 0
        self.most_losses_in_row = 0
        """Without a token of anybody between them."""
        self._has_come = True
        """False where the last end came from outside and no token has come since."""
        self._losses_in_row = 0
        self._ends_worker: list[bool] = []
        """For each plan in flight."""

    @property
    def may_kill(self) -> bool:
        """Whether an end from outside is none by which an innocent one would be found: with no token since the last, or
        under one that is suspected and alone."""
        running = [s.key.handle for s in self.scheduler._batch.slots.running()]
        return self._has_come and not (len(running) == 1 and self.close_losses[running[0]] >= 5)

    def lose(self, *, outside: bool) -> None:
        """The worker ends."""
        for sequence in self.scheduler._batch.slots.running():
            handle = sequence.key.handle
            got = len(self.sequences[handle].got)
            self.close_losses[handle] *= got - self._got_at_loss.get(handle, -100) < 16
            self.close_losses[handle] += 1
            self._got_at_loss[handle] = got
        self._given_from.clear()
        self._ends_worker.clear()
        self.losses += 1
        self._losses_in_row += 1
        self.most_losses_in_row = max(self.most_losses_in_row, self._losses_in_row)
        self._has_come = not outside
        self.failed += self.lose_worker()

    def send(self) -> bool:
        """Plan a step, if there is room and work."""
        if not self.plan():
            return False
        step, slots = self._in_flight[-1][0], self.scheduler._batch.slots
        computed = {*step.rows.tolist(), *unpack_pairs(step.plan.chunks)[:, 0].tolist()}
        fatal = [slot for slot in computed if self._is_fatal(slots, slot)]
        self._ends_worker.append(bool(fatal))
        return True

    def _is_fatal(self, slots: SlotTable, slot: int) -> bool:
        handle, planned = slots.sequence(slot).key.handle, slots.planned.item(slot)
        given = self._given_from.setdefault(handle, slots.prefill_to.item(slot))
        drips = planned >= given + self.drip[handle] if handle in self.drip else False
        return drips or planned > self.poison.get(handle, 1 << 30)

    def answer(self) -> bool:
        """The oldest plan's result comes, or the worker ends by it."""
        if not self._ends_worker:
            return False
        if self._ends_worker[0]:
            self.lose(outside=False)
            return True
        del self._ends_worker[0]
        before = sum(len(e.got) for e in self.sequences.values())
        self.deliver()
        if sum(len(e.got) for e in self.sequences.values()) > before:
            self._losses_in_row = 0
            self._has_come = True
        return True

    def run(self, kills: "frozenset[int]" = frozenset()) -> None:
        """Until nobody is left; before the events of these numbers somebody ends the worker."""
        for event in range(MAX_PLANS):
            if event in kills and self.may_kill:
                self.lose(outside=True)
            if not self.scheduler.has_work:
                return
            sent = self.send()
            assert self.answer() or sent, "sequences are alive and nothing moves"
            if event % 8 == 0:
                self.check()
        raise AssertionError(f"no end after {MAX_PLANS} plans")


def make_world(
    max_num_seqs: int, *, depth: int = 2, chunk: int = 64, num_blocks: int = 4000, max_model_len: int = 48
) -> PoisonWorld:
    """A world with room for so many."""
    return PoisonWorld(
        SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + chunk,
            max_prefill_tokens_per_step=chunk,
            max_model_len=max_model_len,
            max_queued=1024,
            max_queued_tokens=1 << 20,
            vocab_size=101,
            eos_token_ids=(0,),
            num_blocks=num_blocks,
            block_size=4,
            enable_prefix_caching=True,
        ),
        depth,
    )


def submit(
    world: PoisonWorld, index: int, *, computable: int | None = None, drip: int | None = None, max_tokens: int = 12
) -> int:
    """A sequence with a prompt of its own; a poison one where only so many of its tokens can be computed, or each
    worker gives only so many."""
    prompt = [1 + index % 90] * (1 + index % 5)
    handle = world.submit(prompt, max_tokens, ignore_eos=True, request_id=f"request {index}")
    if computable is not None:
        world.poison[handle] = computable
    if drip is not None:
        world.drip[handle] = drip
    return handle


@pytest.mark.parametrize("running", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_the_one_is_found_in_so_many_ends_as_halving_takes(running: int, place: float) -> None:
    world = make_world(running, chunk=1024)
    culprit = round(place * (running - 1))
    for index in range(running):
        submit(world, index, computable=IN_ANY_STEP if index == culprit else None)
    world.run()
    assert [event.message.handle for event in world.failed] == [culprit]
    assert world.most_losses_in_row <= math.ceil(math.log2(running)) + 3
    assert world.losses <= math.ceil(math.log2(running)) + 5
    world.check_end()


def test_its_reason_says_what_happened() -> None:
    world = make_world(2)
    submit(world, 0, computable=IN_ANY_STEP)
    submit(world, 1)
    world.run()
    ((_, finish),) = world.failed
    assert finish.kind is FinishKind.FAILED
    assert finish.reason == (
        "the worker was lost 5 times while it computed this request, without a token of it, "
        "the last 2 times with no other request beside it"
    )


def test_nobody_comes_beside_suspects_until_each_has_a_token() -> None:
    world = make_world(8)
    for index in range(4):
        submit(world, index)
    for _ in range(2):
        assert world.send()
        world.lose(outside=True)
    newcomer = submit(world, 4)
    admitted = []
    while newcomer not in admitted:
        before = {s.key.handle for s in world.scheduler._batch.slots.running()}
        world.send()
        after = {s.key.handle for s in world.scheduler._batch.slots.running()}
        if after - before:
            admitted += sorted(after - before)
            assert all(world.sequences[handle].got for handle in before), "beside one that has no token"
        world.answer()
    assert admitted == [0, 1, 2, 3, newcomer]
    world.run()
    assert not world.failed
    world.check_end()


@pytest.mark.parametrize("running", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("drip", [1, 2, 15])
def test_one_that_gives_tokens_before_it_ends_the_worker_is_found(running: int, drip: int) -> None:
    """And nobody else, though all others get as few tokens between the ends."""
    world = make_world(running, chunk=1024, max_model_len=600)
    culprit = running // 2
    for index in range(running):
        submit(world, index, drip=drip if index == culprit else None, max_tokens=500 if index == culprit else 40)
    world.run()
    assert [event.message.handle for event in world.failed] == [culprit]
    assert world.losses <= math.ceil(math.log2(running)) + 9
    ((_, finish),) = world.failed
    assert finish.reason.endswith(
        "while it computed this request, with fewer than 16 tokens of it between each two, "
        "the last 2 times with no other request beside it"
    )
    world.check_end()


@pytest.mark.parametrize("num_tokens", [16, 40])
def test_ends_from_outside_with_tokens_between_fail_nobody(num_tokens: int) -> None:
    world = make_world(1, max_model_len=1000)
    submit(world, 0, max_tokens=900)
    expectation, at_loss = world.sequences[0], 0
    while world.scheduler.has_work:
        world.send()
        if len(expectation.got) - at_loss >= num_tokens and world.losses < 20:
            at_loss = len(expectation.got)
            world.lose(outside=True)
        else:
            world.answer()
    assert world.losses == 20
    assert not world.failed
    world.check_end()


def test_five_ends_from_outside_that_follow_each_other_at_once_fail_nobody() -> None:
    world = make_world(1)
    submit(world, 0, max_tokens=40)
    while world.scheduler.has_work:
        world.send()
        if len(world.sequences[0].got) > world.losses and world.losses < 5:
            world.lose(outside=True)
        else:
            world.answer()
    assert world.losses == 5
    assert not world.failed
    world.check_end()


@pytest.mark.parametrize("drips", [False, True])
def test_outputs_of_one_request_are_one_suspect(drips: bool) -> None:
    """Each would end the worker, so that parted they would leave no end in a row that is without one of them."""
    world = make_world(32, chunk=1024, max_model_len=200)
    outputs = []
    for index in range(32):
        if 8 <= index < 24:
            handle = world.submit([99, 98], 100, ignore_eos=True, request_id="of 16 outputs", tenant="one with many")
            outputs.append(handle)
            (world.drip if drips else world.poison)[handle] = 1 if drips else IN_ANY_STEP
        else:
            world.submit([1 + index], 40, ignore_eos=True, request_id=f"{index}", tenant="one with many")
    world.run()
    assert {event.message.handle for event in world.failed} == set(outputs)
    assert world.losses <= math.ceil(math.log2(17)) + (9 if drips else 5)
    world.check_end()


@pytest.mark.parametrize("wants", ["a slot", "blocks"])
def test_others_give_way_to_a_suspect_that_finds_no_room(wants: str) -> None:
    """Nobody new is admitted before it has run, so it must not wait until those who run come to their ends."""
    world = make_world(2 if wants == "a slot" else 8, num_blocks=200 if wants == "a slot" else 48, max_model_len=180)
    suspect = world.submit([7] * 100, 40, ignore_eos=True, request_id="suspect")
    for _ in range(2):
        assert world.send()
        world.lose(outside=True)
    world.pause(suspect)
    others = [world.submit([11 + i] * 50, 100, ignore_eos=True, request_id=f"{i}") for i in range(2)]
    while not all(world.sequences[handle].got for handle in others):
        world.send()
        world.answer()
    world.resume(suspect)
    plans = 0
    while not world.sequences[suspect].got:
        plans += world.send()
        world.answer()
    assert plans < 10
    world.run()
    assert not world.failed
    world.check_end()


def test_a_suspect_that_its_client_gives_up_holds_nobody_up() -> None:
    world = make_world(4)
    for index in range(2):
        submit(world, index)
    for _ in range(3):
        world.send()
        world.lose(outside=True)
    for handle in range(2):
        assert world.scheduler.abort(SequenceKey(FRONTEND, handle))
        world.sequences[handle].cancelled = True
    submit(world, 2)
    world.run()
    world.check_end()


@pytest.mark.slow
@settings(max_examples=RUNS, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    max_num_seqs=st.integers(1, 12),
    depth=st.integers(1, 2),
    chunk=st.sampled_from([1, 3, 64]),
    num_blocks=st.sampled_from([12, 24, 200]),
    num_innocent=st.integers(0, 20),
    poison=st.dictionaries(st.integers(0, 20), st.integers(0, 12), max_size=2),
    drip=st.none() | st.integers(1, 4),
    kills=st.frozensets(st.integers(0, 120), max_size=40),
)
def test_exactly_those_that_end_workers_fail(
    max_num_seqs: int,
    depth: int,
    chunk: int,
    num_blocks: int,
    num_innocent: int,
    poison: dict[int, int],
    drip: int | None,
    kills: frozenset[int],
) -> None:
    world = make_world(max_num_seqs, depth=depth, chunk=chunk, num_blocks=num_blocks)
    for index in range(num_innocent + 1):
        if index in poison:
            submit(world, 31 + index, computable=poison[index], max_tokens=20)
        if index < num_innocent:
            submit(world, index)
    if drip is not None:
        submit(world, 89, drip=drip, max_tokens=42)
    world.run(kills)
    assert {event.message.handle for event in world.failed} == {*world.poison, *world.drip}
    failed = {handle for handle, e in world.sequences.items() if e.ended is FinishKind.FAILED}
    assert failed == {*world.poison, *world.drip}
    world.check_end()


@pytest.mark.parametrize("num_poison", [3, 8, 16])
def test_many_at_once_fail_before_the_server_is_given_up(num_poison: int) -> None:
    world = make_world(64)
    handles = [submit(world, index, computable=IN_ANY_STEP if index < num_poison else None) for index in range(64)]
    world.run()
    assert {event.message.handle for event in world.failed} == set(handles[:num_poison])
    assert world.most_losses_in_row <= world.config.max_crashes_in_row
