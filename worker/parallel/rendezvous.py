"""The rendezvous of ranks: they find each other, agree that they run the same model, and notice that one is gone.

The meeting place is a store of torch.distributed's, which holds short texts:

    file   ranks of one host: a file in the server's runtime directory, which no other user can enter
    tcp    ranks of several hosts: rank 0 listens on the address that all were told. Whoever reaches it can disturb the
           ranks, as with every torch.distributed: it belongs on a network of one's own. It carries nothing secret.

    group                 {"incarnation", "terms"}, by rank 0: which start of the group this is, and what must be equal
    <k>/arrived/<rank>    how often a rank has come to start k; the second time it is one that was started anew
    <k>/loaded/<rank>     a rank has loaded its part, and waits
    <k>/alive/<rank>      a number that rises every second
    <k>/over              why start k has ended

Ranks live and end together: a process group cannot take a rank back. So a rank that hears nothing of another one ends,
and whoever started it starts it again, for the next start of the group.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import msgspec
import torch
from torch.distributed import (  # type: ignore[attr-defined]  # exported, but for the type stubs
    DistError,
    FileStore,
    PrefixStore,
    Store,
    TCPStore,
)

from pagewire.wire.codec import JsonCodec, WireError
from pagewire.wire.launch import UNKNOWN_INCARNATION, RankGroup, WorkerLaunch, agreed_terms

OPERATION_TIMEOUT_S = 10.0
"""How long the store may take to answer."""
SILENCE_LIMIT_S = 15.0
"""A rank that has not been heard for this long counts as gone."""
_BEAT_S = 1.0
_POLL_S = 0.1

Progress = Callable[[str, float], None]
"""Called with a stage's name and how much of it is done, often while waiting; what it raises ends the wait."""


class RendezvousError(Exception):
    """The ranks cannot come together, for a reason that an operator can mend."""


class GroupNotice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What rank 0 tells the others."""

    incarnation: int
    terms: dict[str, str]


_NOTICE: JsonCodec[GroupNotice] = JsonCodec(GroupNotice, 1024 * 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """A rank's place in one start of the group."""

    incarnation: int
    store: Store
    """Of this start alone."""
    host: str
    """This machine's address as the other ranks reach it."""
    group: RankGroup
    rank: int
    world_size: int

    def wait_for_all(self, kernels: str, progress: Progress) -> None:
        """Say that this rank's part is loaded, and wait for the others.

        `kernels` names what this rank draws tokens with, which must be the same everywhere: two kinds may round a draw
        apart. Raises RendezvousError where it is not, and, naming who is missing, after the group's time.
        """
        self.store.set(f"loaded/{self.rank}", kernels)
        deadline_s = time.monotonic() + self.group.join_timeout_s
        while missing := [rank for rank in range(self.world_size) if not self.store.check([f"loaded/{rank}"])]:
            names = ", ".join(map(str, missing))
            noun = "rank" if len(missing) == 1 else "ranks"
            if time.monotonic() > deadline_s:
                raise RendezvousError(
                    f"{noun} {names} did not come to {self.group.store} within {self.group.join_timeout_s:g} s"
                )
            progress(f"waiting for {noun} {names}", 1 - len(missing) / self.world_size)
            time.sleep(_POLL_S)
        for rank in range(self.world_size):
            other = self.store.get(f"loaded/{rank}").decode(errors="replace")
            if other != kernels:
                raise RendezvousError(
                    f"rank {rank} computes with {other[:100]}, rank {self.rank} with {kernels}; ranks must be alike: "
                    "cpu_kernels = torch is the same on every CPU"
                )


def meet(launch: WorkerLaunch, group: RankGroup, progress: Progress) -> Meeting:
    """Come together with rank 0, before anything is loaded. Rank 0 opens the meeting place; the others wait for it, on
    another host for as long as it takes. Raises RendezvousError where they are not to run the same."""
    if launch.rank == 0:
        return _open(launch, group)
    deadline_s = time.monotonic() + group.join_timeout_s
    while True:
        try:
            meeting = _join(launch, group)
        except (DistError, OSError):
            meeting = None  # nobody is there yet, or has just gone
        if meeting is not None:
            return meeting
        if launch.incarnation != UNKNOWN_INCARNATION and time.monotonic() > deadline_s:
            raise RendezvousError(f"rank 0 did not come to {group.store} within {group.join_timeout_s:g} s")
        progress("waiting for rank 0", 0.0)
        time.sleep(_POLL_S)


def watch(meeting: Meeting, on_lost: Callable[[str], None]) -> None:
    """From now on tell the other ranks that this one is alive, and call `on_lost`, on a thread of its own and once,
    where one of them falls silent. For ranks of several hosts: those of one host have a supervisor in common."""
    store = meeting.store.clone()  # type: ignore[attr-defined]
    threading.Thread(target=lambda: on_lost(_watch(meeting, store)), name="ranks", daemon=True).start()


def _watch(meeting: Meeting, store: Store) -> str:
    """Returns why the group has ended."""
    others = [rank for rank in range(meeting.world_size) if rank != meeting.rank]
    heard: dict[int, tuple[bytes, float]] = {}
    count = 0
    while True:
        count += 1
        try:
            store.set(f"alive/{meeting.rank}", str(count))
            if store.check(["over"]):
                return store.get("over").decode(errors="replace")
            now_s = time.monotonic()
            for rank in others:
                if not store.check([f"alive/{rank}"]):
                    continue  # it has not come yet
                beat = store.get(f"alive/{rank}")
                if rank not in heard or heard[rank][0] != beat:
                    heard[rank] = beat, now_s
                elif now_s - heard[rank][1] > SILENCE_LIMIT_S:
                    return f"rank {rank} has not been heard for {SILENCE_LIMIT_S:g} s"
        except DistError:
            return "rank 0 is gone"
        time.sleep(_BEAT_S)


def _open(launch: WorkerLaunch, group: RankGroup) -> Meeting:
    notice = GroupNotice(launch.incarnation, _terms(launch))
    try:
        store, host = _open_store(launch, group, is_first=True)
    except (OSError, DistError) as error:
        raise RendezvousError(f"rank 0 cannot open {group.store}: {error}") from error
    store.set("group", _NOTICE.encode_line(notice).decode())
    return _meeting(launch, group, store, host, launch.incarnation)


def _join(launch: WorkerLaunch, group: RankGroup) -> Meeting | None:
    """None where this start of the group is not the one to join."""
    store, host = _open_store(launch, group, is_first=False)
    if not store.check(["group"]):
        return None
    try:
        notice = _NOTICE.decode(store.get("group"))
    except WireError as error:
        raise RendezvousError(f"what rank 0 says at {group.store} is no notice of a group: {error}") from error
    own_terms = _terms(launch)
    for name in sorted(own_terms.keys() | notice.terms.keys()):
        own, wanted = own_terms.get(name, "nothing"), notice.terms.get(name, "nothing")
        if own != wanted:
            raise RendezvousError(f"rank {launch.rank} differs from rank 0 in {name}: {own} here, {wanted} there")
    if launch.incarnation not in (UNKNOWN_INCARNATION, notice.incarnation):
        return None
    meeting = _meeting(launch, group, store, host, notice.incarnation)
    if meeting.store.add(f"arrived/{launch.rank}", 1) > 1:
        meeting.store.set("over", f"rank {launch.rank} was started again")
        return None
    return meeting


def _terms(launch: WorkerLaunch) -> dict[str, str]:
    # Process groups of different versions need not understand each other.
    return agreed_terms(launch) | {"torch": str(torch.__version__)}


def _meeting(launch: WorkerLaunch, group: RankGroup, store: Store, host: str, incarnation: int) -> Meeting:
    return Meeting(
        incarnation=incarnation,
        store=PrefixStore(f"{incarnation}", store),
        host=host,
        group=group,
        rank=launch.rank,
        world_size=launch.world_size,
    )


def _open_store(launch: WorkerLaunch, group: RankGroup, *, is_first: bool) -> tuple[Store, str]:
    """The store, and this machine's address towards the others. Raises OSError, DistError."""
    timeout = timedelta(seconds=OPERATION_TIMEOUT_S)
    if group.store.startswith("file://"):
        path = group.store.removeprefix("file://")
        if not is_first and not os.path.exists(path):
            raise FileNotFoundError(path)
        store: Store = FileStore(path, launch.world_size)
        store.set_timeout(timeout)
        return store, "127.0.0.1"
    host, _, port = group.store.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    if is_first:
        with socket.create_server((host, int(port)), family=_family(host, int(port))) as listener:
            own_host = listener.getsockname()[0]
            store = TCPStore(
                own_host,
                int(port),
                is_master=True,
                timeout=timeout,
                wait_for_workers=False,
                master_listen_fd=listener.detach(),
            )
        return store, own_host
    # Tried without torch first, whose failed attempts fill the log.
    with socket.create_connection((host, int(port)), OPERATION_TIMEOUT_S) as probe:
        own_host = probe.getsockname()[0]
    return TCPStore(host, int(port), is_master=False, timeout=timeout, wait_for_workers=False), own_host


def _family(host: str, port: int) -> socket.AddressFamily:
    return socket.AddressFamily(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0])
