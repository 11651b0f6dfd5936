"""Where the time of decoding goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds by name.

    Args:
        device: where the work is done.
        waits: whether the device is waited for, so that each part pays for its own kernels: to measure, not to decode.
    """

    def __init__(self, device: torch.device, *, waits: bool = False) -> None:
        """Start at nothing."""
        self._device = device
        self._waits = waits and device.type == "cuda"
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add what happens inside to a name."""
        start = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def _now(self) -> float:
        if self._waits:
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
