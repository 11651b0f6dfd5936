"""Work behind the forward pass, in order, in a thread: encoding and writing in one, uploading in another."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self


class Background:
    """Runs calls one after another beside the caller. Use as a context manager.

    Each call builds on those before it: after one that failed, or once the context has ended with an error of its own,
    none is run any more. An error in a call is raised at the next `run`, or when the context ends.

    Args:
        depth: calls that may wait before `run` does; bounds the memory they hold.
    """

    def __init__(self, depth: int) -> None:
        """Start the thread."""
        self._depth = depth
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="background")
        self._waiting: deque[Future[None]] = deque()
        self._given_up = False

    def run(self, call: Callable[..., Any], *args: Any) -> None:
        """Queue a call."""
        while len(self._waiting) >= self._depth:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._call, call, *args))

    def _call(self, call: Callable[..., Any], *args: Any) -> None:
        if self._given_up:
            return
        try:
            call(*args)
        except BaseException:
            self._given_up = True
            raise

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for everything that was queued; raise its first error."""
        self._given_up = self._given_up or error is not None
        try:
            while self._waiting and error is None:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown()
