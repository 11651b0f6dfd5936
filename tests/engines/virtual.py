"""An event loop whose time passes at once: it jumps to the next timer whenever nothing is ready to run."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

MOST_JUMPS = 20_000
"""Jumps after which a test is taken for endless."""


class _Jumping(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._jumps = 0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(timeout if timeout is None else 0)
        if not ready and timeout:
            self.now += timeout
            self._jumps += 1
            if self._jumps > MOST_JUMPS:
                raise RuntimeError(f"nothing came of {MOST_JUMPS} jumps, {self.now:.0f} s")
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_virtually(main: Coroutine[Any, Any, Any]) -> Any:
    """Return what a coroutine returns that sleeps without sleeping."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def now() -> float:
    """Return the time of the running loop, in seconds since it began."""
    return asyncio.get_running_loop().time()
