"""How many requests one endpoint gets at a time: more while that brings more, fewer when it is too much.

Throughput of an engine grows with concurrency until its slots or its arithmetic are full; beyond, requests only
queue. So the limit doubles while the measured throughput climbs with it, returns to the last useful limit when it does
not, and looks again later, at times for a lower one. A refusal (429) or a missed deadline halves it.

Throughput is measured as the tokens that a request brings per second, times the requests under way: of answers that
come in waves a count per second would be mostly chance.
"""

import math

START = 8
GROWTH = 2
LARGEST = 512
USEFUL_GAIN = 1.1
"""Growth must raise the throughput by this factor to be kept; where it does not, the limit stays at so much more than
the last useful one, for the throughput that smaller growth could still have brought."""
WINDOW_ANSWERS = 8
"""Answers over which throughput is measured, at least; with a higher limit, one for each request under way."""
WINDOW_SECONDS = 0.2
"""Shortest time over which it is measured."""
HOLD_WINDOWS = 8
"""Windows between two looks for a better limit."""
LOOKS_PER_SHRINK = 4
"""Of so many looks one tries fewer: it costs half the throughput of a window where all were needed."""


class Concurrency:
    """The limit of one endpoint. Times are seconds of any one clock."""

    def __init__(self, now: float, start: int = START) -> None:
        """Begin low."""
        self.limit = start
        self._useful = start
        self._best = 0.0
        self._hold = 0
        self._looks = 0
        self._shrunk_at = -math.inf
        self._unsettled = 0
        self._since = now
        self._answers = 0
        self._tokens = 0
        self._busy = 0.0
        self._full = False

    def answered(self, now: float, asked: float, tokens: int, full: bool) -> None:
        """Note an answer.

        Args:
            now: when it came.
            asked: when it was asked for; what was asked before the window opened says nothing about this limit.
            tokens: tokens generated for it.
            full: whether the endpoint had as many requests as it may; a window that was never full says nothing.
        """
        if self._unsettled > 0:
            self._unsettled -= 1
            self._since = now
        if asked < self._since:
            return
        self._answers += 1
        self._tokens += max(1, tokens)
        self._busy += now - asked
        self._full = self._full or full
        if self._answers < max(WINDOW_ANSWERS, self.limit) or now - self._since < WINDOW_SECONDS:
            return
        if self._full:
            self._adapt(self._tokens / max(self._busy, 1e-9) * self.limit)
        self._open_window(now)

    def overloaded(self, now: float, asked: float) -> None:
        """Halve the limit, once for all requests that were under way together.

        Args:
            now: when the endpoint refused or the deadline passed.
            asked: when that request was sent.
        """
        if asked <= self._shrunk_at:
            return
        self._shrunk_at = now
        self.limit = max(1, self.limit // 2)
        self._useful, self._best, self._hold = self.limit, 0.0, HOLD_WINDOWS
        self._open_window(now)

    def restart(self, now: float) -> None:
        """Begin with one request: the endpoint has come back."""
        self.limit = self._useful = 1
        self._best, self._hold = 0.0, 0
        self._open_window(now)

    def _adapt(self, rate: float) -> None:
        if self._hold > 0:
            self._hold -= 1
            self._best = rate
            if self._hold == 0:
                self._look()
            return
        fewer = self.limit < self._useful
        if rate * (USEFUL_GAIN if fewer else 1 / USEFUL_GAIN) <= self._best:
            self.limit, self._hold = min(LARGEST, math.ceil(self._useful * USEFUL_GAIN)), HOLD_WINDOWS
            return
        self._best, self._useful = rate, self.limit
        if fewer:
            self._hold = HOLD_WINDOWS
        else:
            self._grow()

    def _look(self) -> None:
        """Try more; at times fewer, since chance, or a faster engine, may have led too high."""
        self._looks += 1
        if self._looks % LOOKS_PER_SHRINK == 0:
            self.limit = max(1, self._useful // GROWTH)
        else:
            self._grow()

    def _grow(self) -> None:
        self.limit = min(LARGEST, self.limit * GROWTH)

    def _open_window(self, now: float) -> None:
        self._unsettled = self.limit  # answers until the queue is what the limit makes of it
        self._since = now
        self._answers = 0
        self._tokens = 0
        self._busy = 0.0
        self._full = False
