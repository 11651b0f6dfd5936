"""Losses and gradients that are not numbers, or jump."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deepspec.errors import TrainingError

SPIKE = 10.0
"""A gradient norm so many times the running mean is told as a spike."""
MEMORY = 0.95
"""Share of the running mean that each step keeps."""
SETTLED = 20
"""Steps before spikes are told: norms fall fast in the beginning."""


@dataclass(slots=True)
class StepGuard:
    """Decides whether a step may be taken; every rank sees the same sums, so all decide alike."""

    limit: int
    """Steps in a row that may be skipped."""
    skipped: int = 0
    """Steps skipped in the whole run."""
    in_a_row: int = 0
    seen: int = 0
    mean_norm: float = 0.0
    spikes: int = 0

    def allows(self, loss: float, norm: float, step: int, sample_ids: Sequence[str]) -> bool:
        """Return whether loss and gradients are finite.

        Raises:
            TrainingError: too many steps in a row were not.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row > self.limit:
            names = ", ".join(sample_ids[:8])
            raise TrainingError(
                f"step {step}: loss {loss}, gradient norm {norm}; {self.in_a_row} steps in a row were not finite, "
                f"more than skip_limit {self.limit}. Samples of this rank: {names}. Check the cache "
                "(deepspec cache verify), then lower the learning rate or train in fp32"
            )
        return False

    def is_spike(self, norm: float) -> bool:
        """Return whether a finite norm jumps out of the recent ones, and remember it."""
        spike = self.seen >= SETTLED and norm > SPIKE * self.mean_norm
        self.spikes += spike
        if not spike:
            self.mean_norm = norm if self.seen == 0 else MEMORY * self.mean_norm + (1 - MEMORY) * norm
        self.seen += 1
        return spike
