"""How much of each proposal to verify when many requests share the target: DSpark's prefix scheduler.

Verifying more tokens wins more of them but makes a pass of the target slower. Tokens are admitted in descending chance
of survival while the expected throughput (R + Σ a)·SPS(R + admitted) rises, and no further: since survival falls along
a proposal, what is admitted is a prefix of each, and stopping at the first fall keeps the choice free of what comes
after it, hence lossless. DSpark, arXiv 2607.05147.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepspec.rounds.measure import Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRate:
    """Profiled passes of the target per second by tokens in a pass; linear in between, proportional to 1/B beyond."""

    tokens: tuple[int, ...]
    """Ascending."""
    seconds: tuple[float, ...]
    """Of one pass."""

    def __call__(self, tokens: float) -> float:
        """Return passes per second with so many tokens."""
        if tokens > self.tokens[-1]:
            return self.tokens[-1] / (self.seconds[-1] * tokens)
        return float(1 / np.interp(tokens, self.tokens, self.seconds))


def admit(survival: Floats, rate: Callable[[float], float]) -> NDArray[np.int64]:
    """Return how many drafted tokens of each request to verify.

    Args:
        survival: `(R, K)` chance that all tokens through each one are accepted; falls along each row.
        rate: passes per second by tokens in a pass, the R current tokens counted.

    Returns:
        `(R,)`.
    """
    requests, slots = survival.shape
    order = np.argsort(-survival, axis=None, kind="stable")
    lengths = np.zeros(requests, dtype=np.int64)
    expected = float(requests)
    best = expected * rate(requests)
    for admitted, place in enumerate(order, 1):
        expected += float(survival.flat[place])
        reached = expected * rate(requests + admitted)
        if reached < best:
            break
        best = reached
        lengths[place // slots] += 1
    return lengths


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """Throughput of recorded rounds at one load, in tokens per second."""

    fixed: float
    """Every proposal verified in full."""
    scheduled: float


def replay(
    survival: Floats, accepted: NDArray[np.int64], rate: Callable[[float], float], requests: int, seed: int = 0
) -> Replay:
    """Return the throughput of a number of requests, by replay of recorded rounds.

    Args:
        survival: `(N, K)` of N recorded rounds.
        accepted: `(N,)` drafted tokens that were accepted when all were verified.
        rate: rounds per second by tokens in a pass of the target.
        requests: R; passes of R rounds are drawn from the recorded ones.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    whole = requests * (1 + survival.shape[1])
    tokens, seconds = np.zeros(2), np.zeros(2)
    for _ in range(max(20, 400 // requests)):
        drawn = generator.integers(len(survival), size=requests)
        lengths = admit(survival[drawn], rate)
        tokens += (accepted[drawn] + 1).sum(), (np.minimum(accepted[drawn], lengths) + 1).sum()
        seconds += 1 / rate(whole), 1 / rate(requests + int(lengths.sum()))
    return Replay(fixed=float(tokens[0] / seconds[0]), scheduled=float(tokens[1] / seconds[1]))
