"""MTP heads that a target ships, in training: the steps of Eagle3, trained on the true token. arXiv 2404.19737.

Position i at step s has the embedding of token i + 1 + s, a state, and predicts token i + 2 + s. The first state is the
target's last one before its final norm, the later ones are the heads' own output after theirs. A step sees its sample
and, as in decoding, its own entry of each step before; by the convention of speculators it sees its sample as that step
makes it, and nothing of the others.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from deepspec.algorithms.base import check_tokens
from deepspec.algorithms.eagle3 import (
    Eagle3,
    EagleSupervision,
    decayed,
    order_of_steps,
    supervised_steps,
    work_of_steps,
)
from deepspec.algorithms.rows import divergences, ratio
from deepspec.formats.recipe import Objective
from deepspec.losses.rows import RowLosses
from deepspec.losses.terms import Terms
from deepspec.models.config import DraftConfig
from deepspec.records.batch import Tokens

OWN_TERMS = ("cross_entropy", "total_variation")
"""Terms beside those of Eagle3 that metrics tell of each step."""


class Mtp(Eagle3):
    """MTP heads: the mean of the steps' losses, each over its supervised tokens, weighed by decay^s over their sum."""

    def supervise(
        self, config: DraftConfig, objective: Objective, batch: Tokens, keys: Sequence[int]
    ) -> EagleSupervision:
        """Return what is supervised: the tokens that are predicted; nothing is drawn, so the keys are not read.

        Raises:
            TrainingError: a sample contains a token beyond the vocabulary.
        """
        del keys
        check_tokens(config, batch)
        supervised = supervised_steps(batch, objective.ttt_length)
        order, weights = order_of_steps(supervised), decayed(objective, batch.loss_mask.device)
        return EagleSupervision(
            supervised=supervised,
            step_weights=weights / weights.sum(),
            true_labels=True,
            alone=objective.convention == "speculators",
            terms=_terms(objective),
            order=order,
            work=work_of_steps(batch, order, objective.ttt_length, config),
            denominators={"steps": supervised.sum((0, 2)).float()},
        )

    def told(self, measured: RowLosses) -> dict[str, Tensor]:
        """Return the terms that metrics tell of, by name and row."""
        return {**super().told(measured), **{name: getattr(measured, name) for name in OWN_TERMS}}

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the cross-entropy of each step, and what Eagle3 tells."""
        own = {
            f"{name}@{step}": ratio(total, sums["steps"][step])
            for name in OWN_TERMS
            for step, total in enumerate(sums.get(name, ()))
        }
        return own | super().metrics(sums)


def _terms(objective: Objective) -> Terms:
    """Return the factors of the loss: cross-entropy with the true token where nothing else is said."""
    return Terms(
        cross_entropy=1.0 if objective.cross_entropy is None else objective.cross_entropy,
        total_variation=objective.total_variation or 0.0,
        soft_cross_entropy=objective.soft_cross_entropy,
        **divergences(objective),
    )
