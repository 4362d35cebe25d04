"""Queue bounds: how much waits, in all and of each tenant, and how much more may.

Owns these counts and the rule by which one more is refused. It knows neither order nor priorities, nor who it is that
waits. The counts are whole numbers, so that what leaves takes away exactly what it brought.
"""

from typing import NamedTuple


class Amount(NamedTuple):
    """How much waits."""

    sequences: int = 0
    tokens: int = 0

    def plus(self, other: "Amount") -> "Amount":
        """Both together."""
        return Amount(self.sequences + other.sequences, self.tokens + other.tokens)

    def minus(self, other: "Amount") -> "Amount":
        """What is left without the other."""
        return Amount(self.sequences - other.sequences, self.tokens - other.tokens)

    def at_most(self, tokens: int) -> "Amount":
        """As much of it as has so many tokens."""
        if self.tokens <= tokens:
            return self
        return Amount(-(-self.sequences * tokens // self.tokens), tokens)


def change_amount(amounts: dict[str | None, Amount], name: str | None, change: Amount) -> None:
    """Add to one of several amounts; what is nothing is left out."""
    amount = amounts.get(name, Amount()).plus(change)
    if amount.sequences:
        amounts[name] = amount
    else:
        del amounts[name]


class QueueBounds:
    """What waits, by tenant, those who have something there."""

    def __init__(self) -> None:
        self.total = Amount()
        self.by_tenant: dict[str | None, Amount] = {}

    def count(self, tenant: str, change: Amount) -> None:
        """So much comes, or leaves where it is negative."""
        self.total = self.total.plus(change)
        change_amount(self.by_tenant, tenant, change)

    def refusal(
        self, tenant: str, tokens: int, max_sequences: int, max_tokens: int, *, is_begun: bool = False
    ) -> str | None:
        """Why there is no room for one more sequence of so many tokens, if there is none. Whoever has nothing here may
        bring any number of tokens, and so may the other outputs of a request whose first was taken (`is_begun`): a long
        prompt would never be let in otherwise. A tenant with a name may have half of each."""
        waits, own = self.total, self.by_tenant.get(tenant)
        if waits.sequences >= max_sequences:
            return f"{waits.sequences} sequences wait already; the limit is {max_sequences} (max_queued)"
        if own is not None and not is_begun and waits.tokens + tokens > max_tokens:
            return (
                f"{waits.tokens} prompt tokens wait already; with the {tokens} of this one they are over the limit of "
                f"{max_tokens} (max_queued_tokens)"
            )
        if not tenant or own is None:
            return None
        if own.sequences >= max_sequences // 2:
            return (
                f"{own.sequences} sequences of tenant {tenant} wait already; a tenant's limit is "
                f"{max_sequences // 2}, half of max_queued"
            )
        if not is_begun and own.tokens + tokens > max_tokens // 2:
            return (
                f"{own.tokens} prompt tokens of tenant {tenant} wait already; with the {tokens} of this one "
                f"they are over a tenant's limit of {max_tokens // 2}, half of max_queued_tokens"
            )
        return None
