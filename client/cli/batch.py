"""Batches: several prompts under way at once, with what became of each as it comes."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pagewire.client.cli.connection import Connected
from pagewire.client.cli.measure import Measured, measure
from pagewire.client.errors import Overloaded, PagewireError
from pagewire.client.prompts import Parameters, Prompt
from pagewire.client.types import Delta

_LEAST_WAIT_S = 0.1

Outcome = Measured | PagewireError
Watched = Callable[[Iterable[tuple[int, Outcome]]], Iterator[tuple[int, Outcome]]]


def outcomes(
    connected: Connected, prompts: Mapping[int, Prompt], chosen: Parameters, timeout_s: float | None, concurrency: int
) -> Generator[tuple[int, Outcome]]:
    """What became of each prompt, with its index, as soon as it is there. At most `concurrency` are under way. Those
    for whom there is no room are asked again when the server says that there is, within `timeout_s` where it is set."""
    has_ended = threading.Event()

    def outcome(prompt: Prompt) -> Outcome:
        began = time.monotonic()
        while True:
            started = time.monotonic()
            left_s = None if timeout_s is None else timeout_s - (started - began)
            try:
                with connected.client.stream(prompt, timeout_s=left_s, **chosen) as stream:
                    return measure(stream, started, _ignore)
            except Overloaded as error:
                told_s = error.retry_after_s
                if told_s is None or (timeout_s is not None and time.monotonic() - began + told_s >= timeout_s):
                    return error
                if has_ended.wait(max(told_s, _LEAST_WAIT_S)):
                    return error
            except PagewireError as error:
                return error

    left = iter(prompts.items())
    under_way: dict[Future[Outcome], int] = {}
    with ThreadPoolExecutor(min(concurrency, len(prompts)) or 1) as pool:
        try:
            while True:
                for index, prompt in islice(left, concurrency - len(under_way)):
                    under_way[pool.submit(outcome, prompt)] = index
                if not under_way:
                    return
                for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                    yield under_way.pop(done), done.result()
        except BaseException:
            has_ended.set()
            pool.shutdown(wait=False, cancel_futures=True)
            connected.client.close()  # ends what the threads wait for
            raise


def in_order(found: Iterable[tuple[int, Outcome]]) -> Iterator[tuple[int, Outcome]]:
    """The same by index from 0, each as soon as it and those before it are there."""
    early: dict[int, Outcome] = {}
    due = 0
    for index, outcome in found:
        early[index] = outcome
        while due in early:
            yield due, early.pop(due)
            due += 1


@contextmanager
def progress(total: int, done: int, *, is_shown: bool = True) -> Iterator[Watched]:
    """A bar on stderr, where a person watches it, of the outcomes that pass through what this yields. `done` of
    `total` were there before."""
    if not is_shown or not sys.stderr.isatty():
        yield iter
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        task = bar.add_task("", total=total, completed=done, said="")

        def watched(found: Iterable[tuple[int, Outcome]]) -> Iterator[tuple[int, Outcome]]:
            began, tokens, failed = time.monotonic(), 0, 0
            for index, outcome in found:
                if isinstance(outcome, Measured):
                    tokens += outcome.result.usage.completion_tokens
                else:
                    failed += 1
                said = f"{tokens / (time.monotonic() - began):,.0f} tokens/s"
                bar.update(task, advance=1, said=f"{said}, {failed} failed" if failed else said)
                yield index, outcome

        yield watched


def _ignore(_delta: Delta) -> None:
    pass
