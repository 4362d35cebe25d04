"""Rows of the table: what is known of one fault, and whether it holds."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from faults.load import Answer, Asked, Read, longest_of, p99_of
from faults.strikes import LONGEST_PAUSE_S

Expected = dict[Asked, Answer]


@dataclass
class Row:
    """What is known of one fault in one type of numbers."""

    name: str
    dtype: str
    bound_s: float
    moments: int = 0
    equal: int = 0
    total: int = 0
    errors: int = 0
    pauses_s: list[float] = field(default_factory=list)
    """The longest of each stream."""
    told: str = ""
    failed: bool = False

    def add(self, read: Read, expected: Expected, told: list[str]) -> None:
        self.moments += 1
        self.total += len(expected)
        self.equal += sum(read.answers.get(asked) == answer for asked, answer in expected.items())
        self.errors += len(read.errors)
        self.pauses_s += read.pauses_s
        self.failed = self.failed or any(each.startswith("FAILED") for each in told)  # before it is cut short
        self.told = "; ".join(dict.fromkeys([*([self.told] if self.told else []), *told]))[:200]
        for asked, error in list(read.errors.items())[:2]:
            print(f"    {asked.kind} {asked.number}: {error}", flush=True)
        unlike = [f"{a.kind} {a.number}" for a, e in expected.items() if a in read.answers and read.answers[a] != e]
        if unlike:
            print(f"    not as recorded: {', '.join(unlike[:8])}", flush=True)

    @property
    def longest_s(self) -> float:
        return longest_of(self.pauses_s)

    @property
    def p99_s(self) -> float:
        return p99_of(self.pauses_s)

    @property
    def holds(self) -> bool:
        met = self.equal == self.total and not self.errors and self.p99_s <= self.bound_s
        return met and self.moments > 0 and not self.failed

    def cells(self) -> list[str]:
        bound = "none" if math.isinf(self.bound_s) else f"{self.bound_s:g}"
        pauses = f"{self.longest_s:.1f} | {self.p99_s:.1f} | {bound}"
        verdict = "holds" if self.holds else "**does not hold**"
        equal = f"{self.equal} of {self.total}"
        return [self.name, self.dtype, str(self.moments), equal, str(self.errors), pauses, self.told, verdict]


HEAD = ["fault", "numbers", "moments", "streams equal", "errors", "longest pause s", "p99 s", "bound s", "seen", ""]


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


class Table:
    """Rows, each printed when it is done."""

    def __init__(self, only: Sequence[str]) -> None:
        """`only`: how the names of the rows that are wanted begin; none: all."""
        self._only = only
        self.rows: list[Row] = []
        print(line(HEAD), flush=True)
        print(line(["---"] * len(HEAD)), flush=True)

    def wants(self, *names: str) -> bool:
        """Whether one of these rows is wanted."""
        return not self._only or any(name.startswith(part) for part in self._only for name in names)

    @contextlib.contextmanager
    def row(self, name: str, dtype: str, bound_s: float = LONGEST_PAUSE_S) -> Iterator[Row]:
        """One that is printed when it is done, also where it breaks."""
        row = Row(name, dtype, bound_s)
        try:
            yield row
        except Exception as error:
            row.failed, row.told = True, f"FAILED: {type(error).__name__}: {error}"[:200]
        self.rows.append(row)
        print(line(row.cells()), flush=True)

    def part(self, names: Sequence[str], run: Callable[[], None]) -> None:
        """Some rows, where one of them is wanted. What breaks outside of one, a start or a recording, costs this part
        alone, and is a row too."""
        if not self.wants(*names):
            return
        try:
            run()
        except Exception as error:
            with self.row(f"the part of {names[0]}", ""):
                raise error
