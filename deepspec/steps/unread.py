"""What steps gave, left on the device until it is fetched: so no step waits for the device, and no device for the host.

Rows are written as if each had been fetched at once. What must not wait is decided on the device: a step whose loss or
gradients are not finite moves no weight, and once more of them came in a row than are allowed none does any more, so
that a run ends with the weights of its last good step however late the host hears of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """What the host knows of a step that it has sent to the device."""

    step: int
    """Steps taken before it."""
    learning_rate: float
    sample_ids: list[str]
    """Of this rank's share."""


@dataclass(slots=True)
class Unread:
    """Steps whose numbers lie on the device."""

    _steps: list[Taken] = field(default_factory=list)
    _rows: list[Tensor] = field(default_factory=list)
    _shapes: list[dict[str, torch.Size]] = field(default_factory=list)
    """Of each step: what is measured at one is not at every other."""

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._steps)

    def add(self, step: Taken, values: Mapping[str, Tensor]) -> None:
        """Keep the numbers of a step, in double precision."""
        self._shapes.append({name: value.shape for name, value in values.items()})
        self._rows.append(torch.cat([value.detach().double().reshape(-1) for value in values.values()]))
        self._steps.append(step)

    def fetch(self) -> Iterator[tuple[Taken, dict[str, Tensor]]]:
        """Yield the steps in order with their numbers in host memory, fetched all at once; none is kept."""
        steps, self._steps = self._steps, []
        rows, self._rows = self._rows, []
        shapes, self._shapes = self._shapes, []
        if not rows:
            return
        fetched = torch.split(torch.cat(rows).cpu(), [len(row) for row in rows])
        for step, row, named in zip(steps, fetched, shapes, strict=True):
            pieces = torch.split(row, [shape.numel() for shape in named.values()])
            yield step, {name: piece.view(named[name]) for name, piece in zip(named, pieces, strict=True)}


class Sieve:
    """Lets no step through whose loss or gradients are not finite, nor any after too many in a row.

    Args:
        limit: steps in a row that may be kept out.
        in_a_row: steps that were, so far.
        device: where losses lie.
    """

    def __init__(self, limit: int, in_a_row: int, device: torch.device) -> None:
        """Go on from a count."""
        self._limit = limit
        self._streak = torch.tensor(in_a_row, device=device)

    def keeps_out(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Return 1 where a step may move no weight, else 0: a scalar on the device.

        Args:
            loss: of the global batch, the same on every rank.
            norm: of its gradients.
        """
        bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
        ended = self._streak > self._limit
        self._streak = torch.where(bad | ended, self._streak + 1, 0)
        return (self._streak > 0).float()
