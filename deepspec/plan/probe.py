"""What this machine's processor does right now, found in about a second, and how long a run will take at that.

`presets/hardware/laptop.yaml` has the rates that training, an engine and decoding sustained on one machine. Here the
same two plain things are measured that were measured there, a product of matrices and a read of memory, and its rates
are scaled by what comes out. It is what the processor does where it is left alone; how much longer the same takes now,
for other work that is on it, is told beside.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deepspec.plan.cost.estimate import GUESS
from deepspec.plan.cost.found import Costs
from deepspec.plan.cost.given import Hardware
from deepspec.plan.cost.table import duration, size
from deepspec.plan.words import total
from deepspec.ranges import Range

_EDGE = 512
"""Rows and columns of the matrices that are multiplied."""
_BUSY, _MANY = 1.3, 4.0
"""From how much on a processor that does other work is told of, and how much cannot be told in half a second."""
_READ = 1 << 23
"""Numbers of four bytes that are read: more than a processor keeps to itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What a processor sustains."""

    tflops: float
    """Of a product of matrices in fp32, all cores together."""
    gb_per_second: float
    """Of reading main memory, one core."""
    slowed: float = 1.0
    """How many times longer work takes now, for what else the processor does; 1: it is left alone."""

    def __str__(self) -> str:
        """Return both for people."""
        return f"{1000 * self.tflops:.0f} GFLOP/s, {self.gb_per_second:.0f} GB/s"


REFERENCE = Rates(tflops=0.17, gb_per_second=20.0)
"""Taken for the two cores whose rates `laptop.yaml` has: estimated from rates of one thread, not measured there."""

OVERHEAD_SECONDS = 113.0
"""What no count of tokens tells of a run of all stages, there: starts, the target made ready, export, benchmark.

So a demo from an empty home takes 285 s on two quiet cores of which the probe once said 196 GFLOP/s. It took 283 there,
when the probe said 153, and the run thus 6 minutes: what it finds varies so much (docs/log.md).
"""

GGUF_BYTES = 4.5
"""On the disk for each parameter of a target that comes as a GGUF file, kept beside its weights in fp32."""


def probe(seconds: float = 0.5, clock: Callable[[], float] = time.perf_counter) -> Rates:
    """Return what this machine's processor sustains now.

    Args:
        seconds: for each of the two, at least.
        clock: tells seconds.
    """
    square, numbers = np.ones((_EDGE, _EDGE), np.float32), np.ones(_READ, np.float32)
    product, slowed = _seconds(lambda: square @ square, seconds, clock)
    read, _ = _seconds(numbers.sum, seconds, clock)
    return Rates(
        tflops=2 * _EDGE**3 / product / 1e12, gb_per_second=numbers.nbytes / read / 1e9, slowed=max(1.0, slowed)
    )


def _seconds(action: Callable[[], object], seconds: float, clock: Callable[[], float]) -> tuple[float, float]:
    """Return how long an action takes, by the quickest quarter of its repeats, and how many times that it took."""
    action()  # the first one starts threads and touches memory
    start, took = clock(), list[float]()
    last = start
    while not took or last - start < seconds:
        action()
        took.append((now := clock()) - last)
        last = now
    quick = sorted(took)[len(took) // 4]
    return quick, (last - start) / len(took) / quick


def as_probed(laptop: Hardware, rates: Rates) -> Hardware:
    """Return the laptop's rates as they are on a machine with these."""
    faster = rates.tflops / REFERENCE.tflops
    return laptop.but(
        train_tflops=laptop.train_tflops * faster,
        engine_tflops=laptop.engine_tflops * faster,
        device_gb_per_second=laptop.device_gb_per_second * rates.gb_per_second / REFERENCE.gb_per_second,
    )


def run_hours(cost: Costs, rates: Rates) -> Range:
    """Return the hours of a run of all stages, from an empty store.

    Args:
        cost: on this machine, as probed.
        rates: of this machine.
    """
    rest = OVERHEAD_SECONDS / 3600 * REFERENCE.tflops / rates.tflops
    return total(cost).plus(Range.around(rest, GUESS))


def forecast(cost: Costs, rates: Rates, target_bytes: float, free: int | None) -> str:
    """Return in words how long a run of all stages will take here, and how much disk.

    Args:
        cost: on this machine, as probed.
        rates: of this machine.
        target_bytes: that the target takes on the disk.
        free: bytes in the store; None: no limit is known.
    """
    hours = run_hours(cost, rates)
    disk = cost.store_bytes.mid + target_bytes
    room = "" if free is None else f" of {size(free)} free"
    times = "several times" if rates.slowed >= _MANY else f"{rates.slowed:.1f} times"
    busy = f"; other work has the processor now: it may take {times} as long" if rates.slowed >= _BUSY else ""
    return (
        f"this will take about {duration(hours.mid)} ({duration(hours.low)} to {duration(hours.high)}) and "
        f"{size(disk)}{room}: {rates} were just measured here{busy}"
    )
