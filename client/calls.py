"""Concurrent calls of the synchronous client: several prompts in threads, and a way to end what they wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import grpc

from pagewire.client.errors import Cancelled, PagewireError
from pagewire.client.prompts import Prompt

A = TypeVar("A")
T = TypeVar("T")


class Cancellable(Protocol):
    """A call, as gRPC has it: its stub types give `cancel` no type."""

    def cancel(self) -> bool: ...


class Calls:
    """The calls under way for several prompts, so that an interrupt ends them all. Used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: set[Cancellable] = set()
        self._cancelled = threading.Event()

    def result(self, call: grpc.CallFuture[A]) -> A:
        """The call's answer. An exception on the way cancels the call."""
        cancellable: Cancellable = call
        with self._lock:
            self._under_way.add(cancellable)
        try:
            if self._cancelled.is_set():
                cancellable.cancel()
            return call.result()
        except BaseException:
            cancellable.cancel()
            raise
        finally:
            with self._lock:
                self._under_way.discard(cancellable)

    def wait(self, delay_s: float) -> None:
        """Sleep. Raises Cancelled as soon as `cancel` is called."""
        if self._cancelled.wait(delay_s):
            raise Cancelled("the call was cancelled")

    def cancel(self) -> None:
        """End all of them, and those yet to come."""
        self._cancelled.set()
        with self._lock:
            calls = list(self._under_way)
        for call in calls:
            call.cancel()


def each_of(
    one: Callable[[Prompt, Calls], T], prompts: Sequence[Prompt], max_concurrency: int
) -> list[T | PagewireError]:
    """Each prompt's outcome, in order. An interrupt cancels them all."""
    calls = Calls()

    def outcome(prompt: Prompt) -> T | PagewireError:
        try:
            return one(prompt, calls)
        except PagewireError as error:
            return error

    with ThreadPoolExecutor(min(len(prompts), max_concurrency)) as pool:
        pending = [pool.submit(outcome, prompt) for prompt in prompts]
        try:
            return [each.result() for each in pending]
        except BaseException:
            calls.cancel()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
