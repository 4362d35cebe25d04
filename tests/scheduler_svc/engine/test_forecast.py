"""The forecast of the queue's delay, against a scheduler that lives through it by a clock of its own."""

import heapq
import random
from collections.abc import Callable
from statistics import median

import numpy as np
import pytest

from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.forecast import MAX_RETRY_S, MIN_RETRY_S, Forecast, Places
from pagewire.scheduler_svc.engine.results import StepRows
from pagewire.scheduler_svc.engine.scheduler import Scheduler
from pagewire.wire.columns import pack
from pagewire.wire.requests import Rejected, RejectKind, Submit
from pagewire.wire.sampling import SamplingParams

STEP_S, TOKEN_S = 0.02, 0.0005
NUM_SLOTS, NUM_PLACES = 8, 16


class Client:
    """One that comes again after each answer, and after each refusal when it is told to."""

    def __init__(self, number: int, prompt_len: tuple[int, int], output_len: tuple[int, int]) -> None:
        self.number = number
        self._prompt_len = prompt_len
        self._output_len = output_len
        self.is_retry = False

    def request(self, handle: int, draw: random.Random) -> Submit:
        """Its next."""
        prompt = [draw.randrange(1, 100) for _ in range(draw.randint(*self._prompt_len))]
        sampling, length = SamplingParams(0, 0, 1, 1), draw.randint(*self._output_len)
        return Submit(handle, "r", pack(prompt), b"", sampling, length, [], True, 0, b"", None)


class Simulation:
    """A scheduler, a worker whose steps take time by their tokens, and clients."""

    def __init__(self, clients: list[Client], think_s: float, retry_s: Callable[[Rejected], float]) -> None:
        self.scheduler = Scheduler(
            SchedulerConfig(
                max_num_seqs=NUM_SLOTS,
                max_num_batched_tokens=256,
                max_prefill_tokens_per_step=128,
                max_model_len=4096,
                max_queued=NUM_PLACES,
                max_queued_tokens=1 << 20,
                vocab_size=101,
                eos_token_ids=(0,),
                num_blocks=4000,
                block_size=16,
                enable_prefix_caching=False,
            )
        )
        self.now_s = 0.0
        self.retries: list[bool] = []
        """Whether each was let in, in order."""
        self.first_tokens: list[tuple[float, float]] = []
        """Forecast and truth, of each that had a forecast, from when it came."""
        self._think_s = think_s
        self._retry_s = retry_s
        self._draw = random.Random(5)
        self._due = [(self._draw.random(), client.number) for client in clients]
        heapq.heapify(self._due)
        self._clients = clients
        self._came: dict[int, tuple[Client, float]] = {}
        self._forecast_of: dict[int, float | None] = {}
        self._handle = 0

    def run(self, seconds: float) -> None:
        """Live for so long."""
        while self.now_s < seconds:
            while self._due and self._due[0][0] <= self.now_s:
                self._submit(self._clients[heapq.heappop(self._due)[1]])
            step = self.scheduler.plan(0, 0, self.now_s)
            if step is None:
                self.now_s = self._due[0][0]
                continue
            for start in step.starts:
                self._forecast_of[start.message.handle] = start.message.forecast_s
            num_tokens = len(step.rows) + sum(size for _, size in np.frombuffer(step.plan.chunks, "<i4").reshape(-1, 2))
            self.now_s += STEP_S + TOKEN_S * int(num_tokens)
            outcome = self.scheduler.apply(step, StepRows(np.ones(len(step.rows), np.int32)))
            for handle in outcome.handles.tolist():
                forecast_s = self._forecast_of.pop(handle, None)
                if forecast_s is not None:
                    self.first_tokens.append((forecast_s, self.now_s - self._came[handle][1]))
            for finish in outcome.finishes:
                client, _ = self._came.pop(finish.message.handle)
                client.is_retry = False
                heapq.heappush(self._due, (self.now_s + self._draw.expovariate(1 / self._think_s), client.number))

    def _submit(self, client: Client) -> None:
        self._handle += 1
        answer = self.scheduler.submit(0, client.request(self._handle, self._draw), self.now_s)
        if client.is_retry:
            self.retries.append(answer is None)
        if answer is None:
            self._came[self._handle] = (client, self.now_s)
            return
        assert isinstance(answer, Rejected)
        assert answer.kind is RejectKind.QUEUE_FULL
        client.is_retry = True
        heapq.heappush(self._due, (self.now_s + self._retry_s(answer), client.number))


def told(rejected: Rejected) -> float:
    assert rejected.retry_after_s is not None
    assert MIN_RETRY_S <= rejected.retry_after_s <= MAX_RETRY_S
    return rejected.retry_after_s


def clients(number: int, prompt_len: tuple[int, int], output_len: tuple[int, int]) -> list[Client]:
    return [Client(index, prompt_len, output_len) for index in range(number)]


WORKLOADS = [((20, 40), (60, 100)), ((200, 600), (5, 15)), ((1, 400), (1, 200))]


@pytest.mark.parametrize("num_too_many", [4, 24, 10 * (NUM_SLOTS + NUM_PLACES)])
@pytest.mark.parametrize(("prompt_len", "output_len"), WORKLOADS)
def test_half_of_those_who_come_again_when_told_are_let_in(
    prompt_len: tuple[int, int], output_len: tuple[int, int], num_too_many: int
) -> None:
    population = NUM_SLOTS + NUM_PLACES + num_too_many
    simulation = Simulation(clients(population, prompt_len, output_len), 0.5, told)
    simulation.run(300 if num_too_many <= NUM_SLOTS + NUM_PLACES else 900)  # they are told to wait for minutes
    late = simulation.retries[len(simulation.retries) // 4 :]
    assert len(late) > 50
    assert sum(late) / len(late) >= 0.5
    if num_too_many > NUM_SLOTS:
        return
    impatient = Simulation(clients(population, prompt_len, output_len), 0.5, lambda _: 0.1)
    impatient.run(100)
    assert sum(impatient.retries) / len(impatient.retries) < 0.3, "the workload tells nothing of the delay"


@pytest.mark.parametrize(("prompt_len", "output_len"), WORKLOADS)
def test_the_time_to_first_token_is_forecast_within_a_third(
    prompt_len: tuple[int, int], output_len: tuple[int, int]
) -> None:
    simulation = Simulation(clients(NUM_SLOTS + NUM_PLACES, prompt_len, output_len), 0.5, told)
    simulation.run(200)
    late = simulation.first_tokens[len(simulation.first_tokens) // 4 :]
    assert len(late) > 100
    errors = [abs(forecast_s - truth_s) / truth_s for forecast_s, truth_s in late]
    assert median(errors) < 1 / 3
    total, truth = (sum(each[index] for each in late) for index in (0, 1))
    assert 0.75 < total / truth < 1.33, "it errs to one side"


def test_nothing_is_said_of_what_nobody_measured() -> None:
    forecast = Forecast()
    forecast.observe(1.0, 100, is_backlogged=False)
    forecast.observe(2.0, 200, is_backlogged=True)
    assert forecast.start_s(1, 1) is None
    assert forecast.retry_s(2.0, "", 1) == 1.0
    forecast.observe(4.0, 220, is_backlogged=False)
    assert forecast.start_s(0, 50) == pytest.approx(5.0)
    forecast.observe(400.0, 500, is_backlogged=True)
    assert forecast.start_s(0, 50) == pytest.approx(5.0), "time in which nobody waited does not count"
    forecast.pause()
    forecast.observe(500.0, 500, is_backlogged=True)
    assert forecast.start_s(0, 50) == pytest.approx(5.0), "nor does time without a worker"
    assert (forecast.retry_s(0.0, "", 0), forecast.retry_s(0.0, "", 10**9)) == (MIN_RETRY_S, MAX_RETRY_S)
    assert forecast.start_s(0, 10**9) is None, "nobody can say what is in years"


def test_each_who_is_told_to_come_again_has_a_place_of_its_own() -> None:
    places = Places()
    assert [places.take(0.0, "a", 1.0) for _ in range(3)] == [2, 4, 6], "half of the room is left to others"
    assert places.take(0.0, "b", 1.0) == 4, "its own first, at its share"
    assert places.take(5.0, "a", 1.0) == 3, "b's has come"
    assert places.take(100.0, "a", 0.001) == MIN_RETRY_S
    assert places.take(100.0, "a", 10**6) == MAX_RETRY_S
    places.clear()
    assert places.take(100.0, "a", 1.0) == 2
