"""The interface of a draft algorithm in training: what it supervises, and its loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from deepspec.formats.draft_shape import DraftConfig
from deepspec.formats.recipe import Objective
from deepspec.formats.records import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class LossResult:
    """What one micro-batch adds to a step."""

    loss: Tensor
    """Scalar, already divided by the global denominators: call `.backward()` on it and sum gradients over ranks."""
    sums: dict[str, Tensor]
    """Detached sums, numerators and denominators alike: add them up over micro-batches and ranks."""


class Algorithm(Protocol):
    """One draft algorithm; stateless."""

    def supervise(self, config: DraftConfig, objective: Objective, batch: Batch, keys: Sequence[int]) -> Any:
        """Return what is supervised in a batch; its `.denominators` (name -> tensor) sum over micro-batches and ranks.

        Args:
            config: the draft.
            objective: what is trained for.
            batch: samples; the states are not looked at.
            keys: one integer per sample, a function of (seed, epoch, sample id): seeds the choice of anchors.
        """

    def loss(
        self, model: Any, batch: Batch, supervision: Any, denominators: Mapping[str, Tensor], *, measure: bool = True
    ) -> LossResult:
        """Return the loss of a micro-batch, and sums for metrics.

        Args:
            model: the draft.
            batch: samples on the model's device, states in the model's dtype.
            supervision: of the same batch.
            denominators: `supervision.denominators`, summed over the *global* batch.
            measure: whether acceptance is wanted where the loss does not need it (dflash: it costs a tenth of a step).
        """

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return ratios from summed `LossResult.sums`: loss terms, acceptance rates, tau."""
