"""Being asked to stop: SIGTERM sets a flag that the loop looks at, so that it can save first."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class StopSignal:
    """Listens to SIGTERM while its block runs (in the main thread; elsewhere Python delivers no signals)."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Self:
        """Start to listen."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signal back to whoever had it."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
