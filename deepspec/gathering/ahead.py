"""Requests that run ahead of a reader, in the order in which it will read, within a limit of bytes.

Whoever makes things gives them in any order; the reader takes each by its number and waits for that one alone. So what
is read, and when, depends on the reader's order and on nothing that the makers do.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import RLock
from typing import Any, Generic, Protocol, TypeVar

_LOOKS = 8
"""One part of so many of the room is for held-out samples, which looks read between steps."""

T = TypeVar("T")
Made_co = TypeVar("Made_co", covariant=True)


class Coming(Protocol[Made_co]):
    """What is being made, as a future is."""

    def result(self) -> Made_co:
        """Return it, waiting for it."""

    def done(self) -> bool:
        """Return whether it is made, or cannot be."""

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        """Call a function once it is."""


def rooms(limit: int) -> dict[str, int]:
    """Return the bytes that each split of a cache may take of a limit."""
    return {"train": limit - limit // _LOOKS, "validation": limit // _LOOKS}


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueLevel:
    """How a queue stands."""

    ready: int
    """Bytes that are made and not read yet."""
    limit: int
    """Bytes that may be asked for, or made, and not be read yet."""
    makers_waited: float
    """Seconds in which nothing was being made since there was no room: who makes waited for who reads."""


class Ahead(Generic[T]):
    """A queue between those who make things and those who read them. Safe to use from several threads.

    Args:
        ask: has the thing of a number made.
        size: bytes of it; 0: it takes no room.
        limit: bytes asked for, or made, and not read yet; what is waited for is asked for in any case.
        clock: seconds.
    """

    def __init__(
        self,
        ask: Callable[[int], Coming[T]],
        size: Callable[[int], int],
        limit: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask for nothing yet."""
        self._ask, self._size, self._limit, self._clock = ask, size, limit, clock
        self._turn = RLock()
        self._expected: deque[int] = deque()
        """Numbers that are read next and not asked for yet."""
        self._coming: dict[int, deque[tuple[int, Coming[T]]]] = defaultdict(deque)
        self._held = self._making = 0
        self._waiting_since: float | None = None
        self._waited = 0.0

    @property
    def level(self) -> QueueLevel:
        """Return how it stands."""
        with self._turn:
            asked = [each for coming in self._coming.values() for each in coming]
            ready = sum(size for size, future in asked if future.done())
            since = 0.0 if self._waiting_since is None else self._clock() - self._waiting_since
            return QueueLevel(ready=ready, limit=self._limit, makers_waited=self._waited + since)

    def expect(self, numbers: Sequence[int]) -> None:
        """Hear what is read next, in this order, after what was named before."""
        with self._turn:
            self._expected.extend(numbers)
            self._fill()

    def take(self, number: int) -> T:
        """Return the thing of a number, waiting for it; asked for now if it was not."""
        with self.claimed(number) as coming:
            return coming.result()

    @contextmanager
    def claimed(self, number: int) -> Iterator[Coming[T]]:
        """Yield what is being made of a number, asked for now if it was not; its room is free after the block."""
        with self._turn:
            if not self._coming[number]:
                with suppress(ValueError):
                    self._expected.remove(number)
                self._start(number, self._size(number))
            size, coming = self._coming[number].popleft()
            if not self._coming[number]:
                del self._coming[number]
        try:
            yield coming
        finally:
            with self._turn:
                self._held -= size
                self._fill()

    def _fill(self) -> None:
        """Ask for what comes next as far as there is room."""
        while self._expected:
            size = self._size(self._expected[0])
            if self._held and self._held + size > self._limit:
                break
            self._start(self._expected.popleft(), size)
        self._look()

    def _start(self, number: int, size: int) -> None:
        self._held += size
        self._making += 1
        future = self._ask(number)
        self._coming[number].append((size, future))
        future.add_done_callback(self._made)

    def _made(self, _coming: Coming[T]) -> None:
        with self._turn:
            self._making -= 1
            self._look()

    def _look(self) -> None:
        """Note when there is nothing to make though something is expected, and when that ends."""
        waits = bool(self._expected) and not self._making
        if waits and self._waiting_since is None:
            self._waiting_since = self._clock()
        elif not waits and self._waiting_since is not None:
            self._waited += self._clock() - self._waiting_since
            self._waiting_since = None
