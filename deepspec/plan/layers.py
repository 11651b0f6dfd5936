"""Which layers of a target a plan's draft reads."""

from deepspec.formats.recipe import TRAITS
from deepspec.plan.plan import Plan
from deepspec.target.layers import check_layers, default_layers, normed

COUNT = 5
"""Layers that are captured of a target of which nothing is known yet."""


def layers_of(plan: Plan, num_layers: int) -> tuple[int, ...]:
    """Return the layers that are captured of a target of so many: those chosen, or those that the algorithm reads.

    Raises:
        TargetError: the target has no such layers.
    """
    shipped = TRAITS[plan.train.draft.algorithm].shipped
    chosen = plan.cache.layers or ((normed(num_layers),) if shipped else default_layers(num_layers))
    check_layers(chosen, num_layers, last=shipped)
    return chosen


def count_of(plan: Plan) -> int:
    """Return how many layers are captured of a target of which nothing is known yet."""
    return len(plan.cache.layers or range(1 if TRAITS[plan.train.draft.algorithm].shipped else COUNT))
