"""The order in which an epoch reads a cache: parts shuffled, then samples shuffled within a window of parts.

A pure function of (seed, epoch, window) and the index, made of a fixed hash rather than of a library's generator: the
same on every machine, for every number of readers, and wherever a run was interrupted.
"""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]

_MASK = (1 << 64) - 1


def epoch_order(samples: Numbers, parts: Numbers, *, seed: int, epoch: int, window: int) -> Numbers:
    """Return the samples in the order of one epoch.

    Args:
        samples: numbers of the samples to read, ascending.
        parts: for each, the number of its part.
        seed: of the run.
        epoch: which pass.
        window: parts whose samples are mixed; memory and local copies needed grow with it.
    """
    key = _mixed_int(_mixed_int(seed & _MASK) ^ (epoch & _MASK))
    names, which = np.unique(parts, return_inverse=True)
    rank = np.empty(len(names), dtype=np.int64)
    rank[np.argsort(_mixed(names.astype(np.uint64) ^ np.uint64(key)), kind="stable")] = np.arange(len(names))
    sample_key = _mixed(samples.astype(np.uint64) ^ np.uint64(_mixed_int(key)))
    return samples[np.lexsort((sample_key, rank[which] // window))]


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return splitmix64 of each value (Steele, Lea, Flood 2014)."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _mixed_int(value: int) -> int:
    return int(_mixed(np.array([value], dtype=np.uint64))[0])
