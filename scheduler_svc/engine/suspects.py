"""Suspects: which request it is that ends workers, found by running halves of those that may be it apart.

Owns the groups of suspects, and each sequence's counts of the workers lost under it. It knows neither plans nor queue,
and admits nobody: the admitter asks who may run next, and who gives way.

A worker's end says nothing of its cause: a request that the worker cannot compute, or somebody's SIGKILL. A sequence is
a suspect that ran at

    2 ends in a row without a token of it between them, or else
    6 ends in a row with fewer than 16 tokens of it between each two: it may give some before it ends the next worker

and is none any more once it has got so many since the last end, 1 or 16. Suspects are tried a group at a time, beside
nobody but those who are none any more: a group under which the worker ends is halved. Outputs of one request are never
parted, since one that fails is their request's end. A single request is found once workers have ended under it alone
twice, and three times in all: one SIGKILL from outside may hit anybody.

Among n suspects one culprit takes at most ⌈log2 n⌉ + 3 ends in a row without a token between them, two before there
are suspects and two of the last one alone, and ⌈log2 n⌉ + 5 in all, as some come beside those who are suspects no more;
one that gives tokens first takes ⌈log2 n⌉ + 9. Many at once with no innocent group between them take more, and the
supervisor gives a server up after some (`max_restarts`): at the last end before that all suspects are found at once, so
that the others live. Two ends in a row from outside, under a suspect that is alone, would be its fault.
"""

from collections import deque
from collections.abc import Iterable

from pagewire.scheduler_svc.engine.sequence import Sequence, SequenceStatus
from pagewire.scheduler_svc.engine.slot_table import SlotTable

_FRUITLESS_CRASHES = 2
"""Ends without a token between them that make a suspect."""
_CLOSE_CRASHES = 6
"""Ends with few tokens between them that do."""
_CLOSE_TOKENS = 16
"""As many tokens between two ends are not few: who gets them from each worker comes to its end."""
_LONE_CRASHES = 2
"""Those of them, with no other request beside it, by which a suspect is found."""


class Suspects:
    """Groups of suspects; the first is on trial. Halves of one go behind all others, the older before the younger."""

    def __init__(self) -> None:
        self._num_crashes = 0
        """Ends in a row without anybody's token between them."""
        self._groups: deque[list[Sequence]] = deque()

    def progressed(self) -> None:
        """Somebody got a token."""
        self._num_crashes = 0

    def crashed(self, running: Iterable[Sequence], most_in_row: int) -> list[Sequence]:
        """A worker was lost under these sequences, which wait again with all tokens received. Returns those that end
        workers, where that is known now, or of which it must be assumed, at the `most_in_row`th end in a row; they are
        no suspects any more."""
        self._num_crashes += 1
        ran = set(running)
        for sequence in ran:
            _count_crash(sequence)
        others = ([s for s in group if s not in ran and _may_be_it(s)] for group in self._groups)
        self._groups = deque(group for group in others if group)
        # Who got nothing before who got little: that it was one of these is likelier, and known sooner.
        suspected = [s for s in ran if s.fruitless_crashes >= _FRUITLESS_CRASHES]
        requests = _by_request(suspected or [s for s in ran if s.close_crashes >= _CLOSE_CRASHES])
        stuck = [sequence for request in requests for sequence in request]
        if len(requests) == 1 == len(_by_request(ran)):
            for sequence in stuck:
                sequence.lone_crashes += 1
        if stuck and self._num_crashes >= most_in_row:
            found = [*stuck, *(s for group in self._groups for s in group)]
            self._groups.clear()
            return found
        if len(requests) == 1 and any(s.lone_crashes >= _LONE_CRASHES for s in stuck):
            return stuck
        middle = len(requests) // 2
        # Behind the others: a group of innocents between two ends is progress, by which a server is not given up.
        halves = (requests[:middle], requests[middle:])
        self._groups.extend([s for request in half for s in request] for half in halves if half)
        return []

    def trial(self, slots: SlotTable) -> list[Sequence]:
        """The suspects on trial, who all may still be it; empty where there is nobody to suspect. A group of which all
        are paused gets its turn later: others need not wait until somebody reads."""
        for _ in range(len(self._groups)):
            group = [s for s in self._groups.popleft() if _may_be_it(s, slots)]
            if any(s.status is not SequenceStatus.PAUSED for s in group):
                self._groups.appendleft(group)
                return group
            if group:
                self._groups.append(group)
        return []


def reason_of(found: Sequence) -> str:
    """What its client is told."""
    if found.fruitless_crashes >= _FRUITLESS_CRASHES:
        times, between = found.fruitless_crashes, "without a token of it"
    else:
        times, between = found.close_crashes, f"with fewer than {_CLOSE_TOKENS} tokens of it between each two"
    said = f"the worker was lost {times} times while it computed this request, {between}"
    if found.lone_crashes >= _LONE_CRASHES:
        return f"{said}, the last {found.lone_crashes} times with no other request beside it"
    return f"{said}, beside others of which any may be the cause; the server could lose no more of them to find it"


def _count_crash(sequence: Sequence) -> None:
    known = len(sequence.tokens)
    gained = known - sequence.known_at_crash if sequence.known_at_crash >= 0 else _CLOSE_TOKENS
    if gained >= _tokens_to_clear(sequence):
        sequence.lone_crashes = 0
    if gained > 0:
        sequence.fruitless_crashes = 0
    if gained >= _CLOSE_TOKENS:
        sequence.close_crashes = 0
    sequence.fruitless_crashes += 1
    sequence.close_crashes += 1
    sequence.known_at_crash = known


def _tokens_to_clear(sequence: Sequence) -> int:
    return _CLOSE_TOKENS if sequence.close_crashes >= _CLOSE_CRASHES else 1


def _may_be_it(sequence: Sequence, slots: SlotTable | None = None) -> bool:
    """Whether it is alive and has got fewer tokens since a worker was last lost under it than clear it."""
    if sequence.status is SequenceStatus.FINISHED:
        return False
    known = len(sequence.tokens)
    if slots is not None and sequence.status is SequenceStatus.RUNNING:
        known = slots.received.item(sequence.slot)
    return known - sequence.known_at_crash < _tokens_to_clear(sequence)


def _by_request(sequences: Iterable[Sequence]) -> list[list[Sequence]]:
    """Outputs of one request together, in order of arrival. A client may give several requests one id, but hardly with
    the same prompt."""
    requests: dict[tuple[int, str, str, bytes], list[Sequence]] = {}
    for sequence in sorted(sequences, key=lambda s: s.arrival):
        prompt = sequence.tokens[: sequence.prompt_len].tobytes()
        request = (sequence.key.frontend, sequence.tenant, sequence.request_id, prompt)
        requests.setdefault(request, []).append(sequence)
    return list(requests.values())
