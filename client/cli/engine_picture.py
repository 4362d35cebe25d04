"""Pictures of an engine at work, of one size: figures, and a map of its KV blocks. It knows neither how they came nor
where they are shown."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pagewire.v1 import admin_pb2 as pb

_CACHED_ALONE = 255
_STATES = {
    pb.SERVICE_STATE_LOADING: ("loading", "yellow"),
    pb.SERVICE_STATE_READY: ("ready", "green"),
    pb.SERVICE_STATE_RECOVERING: ("recovering", "red"),
    pb.SERVICE_STATE_DRAINING: ("draining", "yellow"),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a block is used for, as the map shows it."""

    name: str
    sign: str
    plain_sign: str
    """Where the output's encoding has no other."""
    style: str


FREE = Kind("free", "·", ".", "dim")
CACHED = Kind("cached", "░", "+", "yellow")
HELD = Kind("held", "▓", "#", "cyan")
SHARED = Kind("shared", "█", "@", "magenta")
_KINDS = (FREE, CACHED, HELD, SHARED)
"""The later shows where a sign stands for several blocks."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One moment of an engine."""

    at_s: float
    load: pb.Load


def picture(
    before: Seen | None, now: Seen, blocks: pb.WatchBlocksResponse | None, width: int, height: int, *, is_unicode: bool
) -> RenderableType:
    """At most so many columns and lines. Rates are those since `before`; unknown without it."""
    load = now.load
    state, style = _STATES.get(load.state, ("unknown", "red"))
    rates = _rates(before, now)
    table = Table.grid(padding=(0, 2))
    resting = f", {load.paused_sequences:,} paused" if load.paused_sequences else ""
    rows = (
        ("state", Text(state, style), "steps", f"{rates['steps']} a second"),
        ("running", f"{load.running_sequences:,} sequences", "a step", rates["step"]),
        ("waiting", f"{load.waiting_sequences:,} sequences{resting}", "worker idle", rates["idle"]),
        ("output", f"{rates['output']} tokens/s", "preempted", f"{load.preemptions:,} in all"),
        ("prompts", f"{rates['prompt']} tokens/s", "from the cache", rates["cached"]),
    )
    for name, value, other, other_value in rows:
        table.add_row(Text(name, "bold"), value, Text(other, "bold"), other_value)
    free = load.total_blocks - load.used_blocks - load.cached_blocks
    counted = f"{load.used_blocks:,} used, {load.cached_blocks:,} cached, {free:,} free of {load.total_blocks:,} blocks"
    lines: list[RenderableType] = [table, Text(), Text(counted, "bold", no_wrap=True, overflow="crop")]
    left = height - len(rows) - 4
    if blocks is not None and blocks.uses and left > 0:
        lines += [_map(blocks.uses, width, left, is_unicode), _legend(blocks, width * left, is_unicode)]
    return Group(*lines)


def _rates(before: Seen | None, now: Seen) -> dict[str, str]:
    unknown = "–"
    said = dict.fromkeys(("steps", "step", "idle", "output", "prompt", "cached"), unknown)
    # A new engine counts from 0.
    if before is None or now.at_s <= before.at_s or now.load.steps < before.load.steps:
        return said
    old, new, passed_s = before.load, now.load, now.at_s - before.at_s
    steps = new.steps - old.steps
    busy_us, idle_us = new.worker_busy_us - old.worker_busy_us, new.worker_idle_us - old.worker_idle_us
    prompt, cached = new.prompt_tokens - old.prompt_tokens, new.cached_prompt_tokens - old.cached_prompt_tokens
    said["steps"] = f"{steps / passed_s:,.1f}"
    said["output"] = f"{(new.output_tokens - old.output_tokens) / passed_s:,.0f}"
    said["prompt"] = f"{prompt / passed_s:,.0f}"
    if steps:
        said["step"] = f"{busy_us / steps / 1000:,.2f} ms"
    if busy_us + idle_us > 0:
        said["idle"] = f"{idle_us / (busy_us + idle_us):.1%}"
    if prompt:
        said["cached"] = f"{cached / prompt:.0%} of prompt tokens"
    return said


def _per_sign(num_blocks: int, num_signs: int) -> int:
    return max(1, -(-num_blocks // num_signs))


def _map(uses: bytes, width: int, height: int, is_unicode: bool) -> Text:
    """Block 0 at the top left. A sign stands for several blocks where there are more than places."""
    each = _per_sign(len(uses), width * height)
    text = Text(no_wrap=True, overflow="crop")
    for place, first in enumerate(range(0, len(uses), each)):
        if place and place % width == 0:
            text.append("\n")
        kind = _KINDS[max(map(_rank, uses[first : first + each]))]
        text.append(kind.sign if is_unicode else kind.plain_sign, kind.style)
    return text


def _rank(use: int) -> int:
    if use == 0:
        return 0
    return 1 if use == _CACHED_ALONE else min(use, 2) + 1


def _legend(blocks: pb.WatchBlocksResponse, num_signs: int, is_unicode: bool) -> Text:
    text = Text(no_wrap=True, overflow="crop")
    for kind in reversed(_KINDS):
        text.append(kind.sign if is_unicode else kind.plain_sign, kind.style).append(f" {kind.name}  ")
    each = _per_sign(len(blocks.uses), num_signs)
    if each > 1:
        text.append(f"{each} blocks a sign  ")
    if len(blocks.uses) < blocks.total_blocks:
        text.append(f"the first {len(blocks.uses):,}")
    return text
