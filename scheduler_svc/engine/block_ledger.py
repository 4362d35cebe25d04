"""The block ledger: for how long each tenant's sequences have held how many KV blocks.

Owns the blocks that each tenant holds now, and the blocks × seconds since the engine began. A block that several
sequences share counts for each of them: that is what each would need alone. It reads no clock: time passes when it is
told so, when a step is planned and when its result comes, and what happens in between happens at the time before.

Invariant: who gives blocks back had taken them, so what a tenant holds is never below zero.
"""

from pagewire.wire.measures import tenant_within


class BlockLedger:
    """Of one engine, whatever becomes of its workers."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._held: dict[str, int] = {}
        self._since_s: dict[str, float] = {}
        """Until when a tenant's blocks are charged."""
        self._block_s: dict[str, float] = {}

    def pass_time(self, now_s: float) -> None:
        """It is this time now; seconds of a monotonic clock."""
        self._now_s = now_s

    def take(self, tenant: str, num_blocks: int) -> None:
        """A sequence of this tenant gets so many blocks."""
        self._change(tenant, num_blocks)

    def give_back(self, tenant: str, num_blocks: int) -> None:
        """A sequence of this tenant holds so many blocks no longer."""
        self._change(tenant, -num_blocks)

    def block_seconds(self) -> dict[str, float]:
        """By tenant, until now. Those beyond `MAX_TENANTS` count together."""
        for name in self._held:
            self._settle(name)
        return dict(self._block_s)

    def held(self, tenant: str) -> int:
        """Blocks that a tenant's sequences hold now, all together."""
        return self._held.get(tenant_within(self._held, tenant), 0)

    def _change(self, tenant: str, num_blocks: int) -> None:
        # Names are never forgotten, so a tenant that counts with others once always does.
        name = tenant_within(self._held, tenant)
        if name not in self._held:
            self._held[name], self._since_s[name], self._block_s[name] = 0, self._now_s, 0.0
        self._settle(name)
        self._held[name] += num_blocks
        assert self._held[name] >= 0, f"{name!r} gave back more blocks than it had taken"

    def _settle(self, name: str) -> None:
        """Charge what is held for the time since it was last charged. A clock that stood still charges nothing."""
        passed_s = self._now_s - self._since_s[name]
        if passed_s > 0:
            self._block_s[name] += self._held[name] * passed_s
            self._since_s[name] = self._now_s
