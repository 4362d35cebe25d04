"""A level of the wait queue: sequences of one priority, in turns by tenant.

Owns the order among them and what each tenant has been served, as long as anybody waits on the level. It does not know
other levels.

Those that have run come first, by arrival: a preemption, or the loss of a worker, is no fault of theirs. Of the others
the next is of the tenant that was served the fewest tokens, the first of it that came. Served are a prompt's tokens
when it is admitted, and those of the output when it ends: nobody knows before how many they will be. A tenant that
comes anew begins where the last turn stood: to have been away earns nothing, nor does it cost. So whoever is away and
has been served no more than that needs no place in memory.
"""

from pagewire.scheduler_svc.engine.queue_bounds import Amount, change_amount
from pagewire.scheduler_svc.engine.queue_order import Ranked
from pagewire.scheduler_svc.engine.sequence import Sequence


class Level:
    """Sequences of equal priority."""

    def __init__(self) -> None:
        self.waits: dict[str | None, Amount] = {}
        """By tenant; under None, those that have run."""
        self._alike: dict[int, tuple[int, Amount]] = {}
        """Tenants that have about as much waiting, within a factor of two: how many, and what waits of all of them."""
        self._have_run: Ranked[Sequence] = Ranked()
        self._new: dict[str, Ranked[Sequence]] = {}
        """By arrival."""
        self._turns: Ranked[str] = Ranked()
        """The tenants in `_new`, by the tokens they have been served."""
        self._away: Ranked[str] = Ranked()
        """Others, who have been served more than `_last_turn`."""
        self._last_turn = 0.0
        """What the tenant whose turn was last had been served then; no tenant that waits has been served less."""

    def push(self, sequence: Sequence) -> None:
        """Let a sequence wait."""
        self._count(sequence, 1)
        if sequence.started:
            self._have_run.put(sequence, sequence.arrival)
            return
        tenant = sequence.tenant
        if tenant not in self._new:
            self._new[tenant] = Ranked()
            self._turns.put(tenant, self._served(tenant))
            self._away.discard(tenant)
        self._new[tenant].put(sequence, sequence.arrival)

    def remove(self, sequence: Sequence) -> None:
        """Take out one that waits."""
        self._count(sequence, -1)
        if sequence.started:
            self._have_run.discard(sequence)
            return
        tenant = sequence.tenant
        self._new[tenant].discard(sequence)
        if not self._new[tenant]:
            del self._new[tenant]
            served = self._served(tenant)
            self._turns.discard(tenant)
            self._remember(tenant, served)

    def first(self) -> Sequence | None:
        """Whose turn it is."""
        if (ran := self._have_run.first()) is not None:
            return ran[1]
        turn = self._turns.first()
        new = None if turn is None else self._new[turn[1]].first()
        return None if new is None else new[1]

    def take_turn(self, tenant: str) -> None:
        """A new sequence of this tenant is admitted."""
        self._last_turn = max(self._last_turn, self._served(tenant))
        while (away := self._away.first()) is not None and away[0] <= self._last_turn:
            self._away.discard(away[1])

    def serve(self, tenant: str, num_tokens: int) -> None:
        """So many tokens more have been computed for it."""
        served = self._served(tenant) + num_tokens
        if tenant in self._turns:
            self._turns.put(tenant, served)
        else:
            self._remember(tenant, served)

    def _served(self, tenant: str) -> float:
        for tenants in (self._turns, self._away):
            if (served := tenants.rank_of(tenant)) is not None:
                return served
        return self._last_turn

    def _remember(self, tenant: str, served: float) -> None:
        if served > self._last_turn:
            self._away.put(tenant, served)

    def ahead_of(self, sequence: Sequence) -> Amount:
        """What would go before a new sequence that came now: while its tenant's turns bring it to it, the others get as
        much as its tenant does. Those that have about as much waiting are taken together."""
        own = self.waits.get(sequence.tenant, Amount())
        ahead = own.plus(self.waits.get(None, Amount()))
        share = own.tokens + len(sequence.tokens)
        for size, (num_tenants, amount) in self._alike.items():
            if own.sequences and size == own.tokens.bit_length():
                num_tenants, amount = num_tenants - 1, amount.minus(own)
            ahead = ahead.plus(amount.at_most(num_tenants * share))
        return ahead

    def _count(self, sequence: Sequence, sign: int) -> None:
        change = Amount(sign, sign * len(sequence.tokens))
        if sequence.started:
            change_amount(self.waits, None, change)
            return
        self._group(self.waits.get(sequence.tenant), -1)
        change_amount(self.waits, sequence.tenant, change)
        self._group(self.waits.get(sequence.tenant), 1)

    def _group(self, amount: Amount | None, sign: int) -> None:
        """Among those who have about as much waiting, count one that has so much, or count it no more."""
        if amount is None:
            return
        size = amount.tokens.bit_length()
        num_tenants, together = self._alike.get(size, (0, Amount()))
        together = together.plus(amount) if sign > 0 else together.minus(amount)
        if num_tenants + sign:
            self._alike[size] = (num_tenants + sign, together)
        else:
            del self._alike[size]
