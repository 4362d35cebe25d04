"""How ranks meet, whom they refuse, and what they do when one of them is gone. Ranks are threads here."""

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import torch
from support.worker_process import sim_launch

from pagewire.wire.launch import UNKNOWN_INCARNATION, RankGroup, WorkerLaunch, agreed_terms, terms_digest
from pagewire.worker.loop import RankLost
from pagewire.worker.parallel import rendezvous
from pagewire.worker.parallel.collectives import gloo_collectives, least
from pagewire.worker.parallel.rendezvous import Meeting, RendezvousError, meet, watch

LIMIT_S = 30.0


def launch_of(store: str, rank: int, world_size: int = 2, **changes: object) -> tuple[WorkerLaunch, RankGroup]:
    group = RankGroup(store=store, num_local_ranks=world_size, local_rank=rank, join_timeout_s=LIMIT_S)
    launch = sim_launch("ipc:///unused", device="cpu", rank=rank, world_size=world_size, group=group, **changes)
    return launch, group


def silent(stage: str, fraction: float) -> None:
    """No progress."""


class Impatient(Exception):
    """Somebody waits."""


def waits(stage: str, fraction: float) -> None:
    raise Impatient(stage)


@pytest.fixture(params=["file", "tcp"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/ranks.store" if request.param == "file" else tcp_store()


def tcp_store() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def test_ranks_meet_load_and_tell_each_other(store: str) -> None:
    def run(rank: int) -> tuple[list[float], list[list[float]], int]:
        meeting = meet(*launch_of(store, rank, 3), silent)
        assert meeting.incarnation == 1
        meeting.wait_for_all("torch", silent)
        collectives = gloo_collectives(meeting.store, rank, 3, meeting.host)
        x = torch.tensor([1.0, 10.0]) * (rank + 1)
        parts = collectives.all_gather(x)
        collectives.all_reduce(x)
        return x.tolist(), parts.tolist(), least(collectives, 7 - rank, torch.device("cpu"))

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(run, range(3), timeout=LIMIT_S))
    assert answers == [([6.0, 60.0], [[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]], 5)] * 3


def test_a_rank_that_does_not_come_is_named(store: str) -> None:
    launch, group = launch_of(store, 0, 3)
    group = msgspec.structs.replace(group, join_timeout_s=0.3)
    meeting = meet(launch, group, silent)
    seen: list[str] = []
    with pytest.raises(RendezvousError, match=r"ranks 1, 2 did not come to .* within 0.3 s"):
        meeting.wait_for_all("torch", lambda stage, fraction: seen.append(stage))
    assert set(seen) == {"waiting for ranks 1, 2"}


def test_rank_0_that_does_not_come_is_named(store: str) -> None:
    launch, group = launch_of(store, 1)
    group = msgspec.structs.replace(group, join_timeout_s=0.3)
    with pytest.raises(RendezvousError, match=r"rank 0 did not come to .* within 0.3 s"):
        meet(launch, group, silent)


def test_a_rank_from_elsewhere_waits_and_takes_the_group_s_incarnation() -> None:
    store = tcp_store()
    elsewhere = launch_of(store, 1, incarnation=UNKNOWN_INCARNATION)
    with pytest.raises(Impatient, match="waiting for rank 0"):
        meet(*elsewhere, waits)
    first = meet(*launch_of(store, 0, incarnation=8), silent)
    assert meet(*elsewhere, silent).incarnation == first.incarnation == 8


def other_model(launch: WorkerLaunch) -> WorkerLaunch:
    decoder = msgspec.structs.replace(launch.model.decoder, num_layers=3)
    return msgspec.structs.replace(launch, model=msgspec.structs.replace(launch.model, decoder=decoder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda launch: msgspec.structs.replace(launch, max_num_seqs=9), "in max_num_seqs: 9 here, 8 there"),
        (lambda launch: msgspec.structs.replace(launch, dtype="float32"), 'in dtype: "float32" here, "bfloat16" there'),
        (other_model, "in model.num_layers: 3 here, 2 there"),
    ],
)
def test_ranks_that_differ_are_no_group(
    store: str, change: Callable[[WorkerLaunch], WorkerLaunch], message: str
) -> None:
    first = meet(*launch_of(store, 0), silent)
    launch, group = launch_of(store, 1)
    with pytest.raises(RendezvousError, match="rank 1 differs from rank 0 ") as error:
        meet(change(launch), group, silent)
    assert message in str(error.value)
    assert terms_digest(change(launch)) != terms_digest(launch)
    assert meet(launch, group, silent).incarnation == first.incarnation, "the one that fits has its place"


def test_what_is_a_rank_s_own_is_not_compared() -> None:
    launch, _ = launch_of("file:///a", 0)
    model = msgspec.structs.replace(launch.model, weights_files=("/elsewhere/model.safetensors",))
    other = msgspec.structs.replace(
        launch, rank=1, incarnation=7, num_threads=9, kv_cache_bytes=1, group=None, model=model
    )
    assert agreed_terms(launch) == agreed_terms(other)


def test_ranks_that_draw_with_other_kernels_are_no_group(store: str) -> None:
    first, second = meet(*launch_of(store, 0), silent), meet(*launch_of(store, 1), silent)
    with ThreadPoolExecutor(2) as pool:
        waiting = [
            pool.submit(first.wait_for_all, "native (avx2)", silent),
            pool.submit(second.wait_for_all, "torch", silent),
        ]
        errors = [future.exception(LIMIT_S) for future in waiting]
    assert [type(error) for error in errors] == [RendezvousError] * 2
    assert "rank 1 computes with torch, rank 0 with native (avx2)" in str(errors[0])


def test_what_is_no_notice_is_refused() -> None:
    store = tcp_store()
    meeting = meet(*launch_of(store, 0), silent)
    meeting.store.underlying_store.set("group", '{"incarnation": 1, "terms": {}, "code": "x"}')
    with pytest.raises(RendezvousError, match="is no notice of a group"):
        meet(*launch_of(store, 1), silent)


class Losses:
    """What watches say."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self._came = threading.Event()

    def add(self, reason: str) -> None:
        self.reasons.append(reason)
        self._came.set()

    def wait(self) -> list[str]:
        assert self._came.wait(LIMIT_S)
        return self.reasons


def watched_pair(store: str) -> tuple[Meeting, Meeting, Losses]:
    """Two ranks, of which the first watches."""
    first, second = meet(*launch_of(store, 0), silent), meet(*launch_of(store, 1), silent)
    losses = Losses()
    watch(first, losses.add)
    return first, second, losses


def test_a_rank_that_was_started_again_ends_the_group() -> None:
    store = tcp_store()
    _first, _second, losses = watched_pair(store)
    with pytest.raises(Impatient, match="waiting for rank 0"):
        meet(*launch_of(store, 1, incarnation=UNKNOWN_INCARNATION), waits)
    assert losses.wait() == ["rank 1 was started again"]


def test_a_rank_that_falls_silent_ends_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "SILENCE_LIMIT_S", 0.5)
    _first, second, losses = watched_pair(tcp_store())
    second.store.set("alive/1", "1")
    assert losses.wait() == ["rank 1 has not been heard for 0.5 s"]


def test_the_end_of_rank_0_ends_the_others() -> None:
    store = tcp_store()
    first, second = meet(*launch_of(store, 0), silent), meet(*launch_of(store, 1), silent)
    losses = Losses()
    watch(second, losses.add)
    del first  # and with it the store
    assert losses.wait() == ["rank 0 is gone"]


def test_a_lost_rank_is_an_error_of_its_own(store: str) -> None:
    meetings = [meet(*launch_of(store, rank), silent) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(
            lambda meeting: gloo_collectives(meeting.store, meeting.rank, 2, meeting.host), meetings, timeout=LIMIT_S
        )
    del second
    with pytest.raises(RankLost, match="another rank is gone or takes too long: "):
        first.all_reduce(torch.ones(1))
