"""A level of the wait queue: sequences of one priority, in turns by tenant.

Owns the order among them and what each tenant has been served, as long as anybody waits on the level. It does not know
other levels, nor who still waits: it is asked for the first of whom a predicate says that they do.

Those that have run come first, by arrival: a preemption, or the loss of a worker, is no fault of theirs. Of the others
the next is of the tenant that was served the fewest tokens, the first of it that came. Served are a prompt's tokens
when it is admitted, and those of the output when it ends: nobody knows before how many they will be. A tenant that
comes anew begins where the last turn stood: to have been away earns nothing, nor does it cost.
"""

import heapq
from collections.abc import Callable
from typing import NamedTuple

from pagewire.scheduler_svc.engine.sequence import Sequence


class Amount(NamedTuple):
    """How much waits."""

    sequences: int = 0
    tokens: int = 0

    def plus(self, other: "Amount") -> "Amount":
        """Both together."""
        return Amount(self.sequences + other.sequences, self.tokens + other.tokens)

    def at_most(self, tokens: int) -> "Amount":
        """As much of it as has so many tokens."""
        if self.tokens <= tokens:
            return self
        return Amount(-(-self.sequences * tokens // self.tokens), tokens)


class Level:
    """Sequences of equal priority. Entries of those that wait no longer stay in the heaps until they surface."""

    def __init__(self) -> None:
        self.waits: dict[str | None, Amount] = {}
        """By tenant; under None, those that have run."""
        self._have_run: list[tuple[int, int, Sequence]] = []
        self._new: dict[str, list[tuple[int, int, Sequence]]] = {}
        self._turns: list[tuple[int, int, str]] = []
        """An entry for each tenant in `_new`: the tokens it had been served when the entry was made, at most."""
        self._served: dict[str, int] = {}
        self._last_turn = 0
        """What the tenant whose turn was last had been served then; no tenant that waits has been served less."""
        self._num_entries = 0  # breaks ties, for the earlier entry

    def push(self, sequence: Sequence) -> None:
        """Let a sequence wait."""
        entry = (sequence.arrival, self._next(), sequence)
        if sequence.started:
            heapq.heappush(self._have_run, entry)
            return
        tenant = sequence.tenant
        if tenant not in self._new:
            self._new[tenant] = []
            self._served[tenant] = max(self._served.get(tenant, 0), self._last_turn)
            heapq.heappush(self._turns, (self._served[tenant], self._next(), tenant))
        heapq.heappush(self._new[tenant], entry)

    def first(self, still_waits: Callable[[Sequence], bool]) -> Sequence | None:
        """Whose turn it is."""
        while self._have_run:
            sequence = self._have_run[0][2]
            if still_waits(sequence):
                return sequence
            heapq.heappop(self._have_run)
        while self._turns:
            served, _, tenant = self._turns[0]
            entries = self._new[tenant]
            while entries and (entries[0][2].started or not still_waits(entries[0][2])):
                heapq.heappop(entries)
            if not entries:
                del self._new[tenant]
                heapq.heappop(self._turns)
            elif served < self._served[tenant]:
                heapq.heapreplace(self._turns, (self._served[tenant], self._next(), tenant))
            else:
                return entries[0][2]
        return None

    def take_turn(self, tenant: str) -> None:
        """A new sequence of this tenant is admitted."""
        self._last_turn = max(self._last_turn, self._served[tenant])

    def serve(self, tenant: str, num_tokens: int) -> None:
        """So many tokens more have been computed for it. One that has had nothing new here owes nothing."""
        if tenant in self._served:
            self._served[tenant] += num_tokens

    def count(self, sequence: Sequence, change: Amount) -> None:
        """A sequence comes or leaves."""
        change_amount(self.waits, None if sequence.started else sequence.tenant, change)

    def all(self) -> Amount:
        """Everything that waits here."""
        return _sum(list(self.waits.values()))

    def ahead_of(self, sequence: Sequence) -> Amount:
        """What would go before a new sequence that came now: while its tenant's turns bring it to it, the others get as
        much as its tenant does."""
        own = self.waits.get(sequence.tenant, Amount())
        others = [
            amount if tenant is None else amount.at_most(own.tokens + len(sequence.tokens))
            for tenant, amount in self.waits.items()
            if tenant != sequence.tenant
        ]
        return _sum([own, *others])

    def _next(self) -> int:
        self._num_entries += 1
        return self._num_entries


def change_amount(amounts: dict[str | None, Amount], name: str | None, change: Amount) -> None:
    """Add to one of several amounts; what is nothing is left out."""
    amount = amounts.get(name, Amount()).plus(change)
    if amount.sequences:
        amounts[name] = amount
    else:
        del amounts[name]


def _sum(amounts: list[Amount]) -> Amount:
    return Amount(sum(amount.sequences for amount in amounts), sum(amount.tokens for amount in amounts))
