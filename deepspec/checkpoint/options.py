"""Which options of a recipe and an objective an algorithm has: one that it has not is refused, not passed over."""

from collections.abc import Callable, Mapping

from deepspec.checkpoint.checks import CONVOLVED, REFINED
from deepspec.errors import SpecError
from deepspec.formats.recipe import TRAITS, AlgorithmName, DraftRecipe, Objective, Traits
from deepspec.specs import Spec

Has = Callable[[Traits], bool]

RECIPE: Mapping[str, tuple[Has, str]] = {
    **dict.fromkeys(CONVOLVED, (lambda traits: traits.convolved, "has none")),
    **dict.fromkeys(REFINED, (lambda traits: traits.refined, "has none")),
    "markov_head": (lambda traits: traits.heads, "has none"),
    "confidence_head": (lambda traits: traits.heads, "has none"),
    "confidence_with_markov": (lambda traits: traits.heads, "has no confidence head"),
    "layout": (lambda traits: traits.blocks, "has no blocks"),
    "train_embedding": (lambda traits: traits.parallel, "keeps its target's"),
    "norms": (lambda traits: not traits.masked and not traits.shipped, "has none of these"),
    "shape": (lambda traits: not traits.shipped, "has the shape of the target's heads"),
}
"""Field of a recipe -> which drafts have it, and what is so of the others. `block_size` and `markov_rank` are not here:
the sizes of a plan set them for every algorithm."""

OBJECTIVE: Mapping[str, tuple[Has, str]] = {
    "confidence": (lambda traits: traits.heads, "has no confidence head"),
    "selector": (lambda traits: traits.convolved, "has no selector"),
    **dict.fromkeys(
        ("consistency", "consistency_passes", "base_anchor"), (lambda traits: traits.refined, "has no refiner")
    ),
    **dict.fromkeys(("slot_weights", "slot_decay", "dpace_alpha"), (lambda traits: traits.blocks, "has no slots")),
    **dict.fromkeys(("ttt_length", "step_decay"), (lambda traits: not traits.masked, "is trained in one step")),
    **dict.fromkeys(
        ("depth_ratio", "depth_ratio_min"), (lambda traits: traits.parallel, "has no chains of mask tokens")
    ),
    "mask_alignment": (lambda traits: not traits.masked and not traits.shipped, "has one way to be supervised"),
}
"""Field of an objective -> the same. `num_anchors` is not here, for the same reason."""


def check_recipe(recipe: DraftRecipe) -> None:
    """Refuse options of a draft that its algorithm has not, so that nobody takes them for chosen.

    Raises:
        SpecError: one that it has not is set otherwise than by default.
    """
    _refuse(recipe.algorithm, recipe, RECIPE)
    if not TRAITS[recipe.algorithm].masked and recipe.num_layers not in (None, 1):
        raise SpecError(f"num_layers {recipe.num_layers}: {_kind(recipe.algorithm)} has one; leave it out")


def check_objective(algorithm: AlgorithmName, objective: Objective) -> None:
    """Refuse options of an objective that an algorithm has not.

    Raises:
        SpecError: one that it has not is set otherwise than by default.
    """
    _refuse(algorithm, objective, OBJECTIVE)


def _refuse(algorithm: AlgorithmName, spec: Spec, table: Mapping[str, tuple[Has, str]]) -> None:
    for name, (has, instead) in table.items():
        value = getattr(spec, name)
        if not has(TRAITS[algorithm]) and value != type(spec).model_fields[name].default:
            raise SpecError(f"{name} {value}: {_kind(algorithm)} {instead}; leave it out")


def _kind(algorithm: AlgorithmName) -> str:
    return f"{'an' if algorithm[0] in 'emx' else 'a'} {algorithm} draft"  # as they are spoken
