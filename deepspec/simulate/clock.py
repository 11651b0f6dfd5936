"""An event loop whose clock jumps: where nothing is left to do before the next timer, it is that time already."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from deepspec.errors import SimulationError

T = TypeVar("T")


class _Jumps(selectors.SelectSelector):
    """Waits for nothing: moves the clock on instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise SimulationError(f"after {self.now:.1f} simulated seconds nothing can happen any more")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that begins at 0 s and never sleeps. It hears of no socket, signal or other thread."""

    def __init__(self) -> None:
        """Begin at 0."""
        self._jumps = _Jumps()
        super().__init__(self._jumps)

    def time(self) -> float:
        """Return the seconds since the beginning."""
        return self._jumps.now


def run(work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns, awaited in a time of its own.

    Raises:
        SimulationError: it waits for what cannot come.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
