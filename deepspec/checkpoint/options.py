"""Which options of a recipe and an objective an algorithm has: one that it has not is refused, not passed over."""

from collections.abc import Callable, Mapping
from typing import Any

from deepspec.checkpoint.checks import CONVOLVED, REFINED
from deepspec.errors import SpecError
from deepspec.formats.recipe import TRAITS, AlgorithmName, DraftRecipe, Objective, Traits
from deepspec.specs import Spec

Has = Callable[[Traits], bool]

Table = Mapping[str, tuple[Has, str]]

RECIPE: Table = {
    "num_layers": (lambda traits: traits.masked, "has one"),
    "block_size": (lambda traits: traits.masked, "proposes token by token, train.objective.ttt_length of them"),
    "draft_vocab_size": (lambda traits: not traits.convolved and not traits.shipped, "knows the whole vocabulary only"),
    **dict.fromkeys(CONVOLVED, (lambda traits: traits.convolved, "has none")),
    **dict.fromkeys(REFINED, (lambda traits: traits.refined, "has none")),
    "markov_rank": (lambda traits: traits.heads, "has no Markov head"),
    "markov_head": (lambda traits: traits.heads, "has none"),
    "confidence_head": (lambda traits: traits.heads, "has none"),
    "confidence_with_markov": (lambda traits: traits.heads, "has no confidence head"),
    "layout": (lambda traits: traits.blocks, "has no blocks"),
    "train_embedding": (lambda traits: traits.parallel, "keeps its target's"),
    "norms": (lambda traits: not traits.masked and not traits.shipped, "has none of these"),
    "shape": (lambda traits: not traits.shipped, "has the shape of the target's heads"),
}
"""Field of a recipe -> which drafts have it, and what is so of the others."""
ANYWAY: Mapping[str, Any] = {"num_layers": 1, "markov_rank": 0}
"""Field -> what drafts that have it not may be told all the same: it is so of them."""

OBJECTIVE: Table = {
    "num_anchors": (lambda traits: traits.masked, "is trained at every position"),
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
"""Field of an objective -> the same."""


def of_algorithm(algorithm: AlgorithmName, told: Mapping[str, Any], table: Table) -> dict[str, Any]:
    """Return what an algorithm has of a part of a plan that was not made for it alone, as the sizes are not."""
    return {name: value for name, value in told.items() if name not in table or table[name][0](TRAITS[algorithm])}


def check_recipe(recipe: DraftRecipe) -> None:
    """Refuse options of a draft that its algorithm has not, so that nobody takes them for chosen.

    Raises:
        SpecError: one that it has not is set otherwise than by default.
    """
    _refuse(recipe.algorithm, recipe, RECIPE)


def check_objective(algorithm: AlgorithmName, objective: Objective) -> None:
    """Refuse options of an objective that an algorithm has not.

    Raises:
        SpecError: one that it has not is set otherwise than by default.
    """
    _refuse(algorithm, objective, OBJECTIVE)


def _refuse(algorithm: AlgorithmName, spec: Spec, table: Table) -> None:
    for name, (has, instead) in table.items():
        value, usual = getattr(spec, name), type(spec).model_fields[name].default
        if not has(TRAITS[algorithm]) and value not in (usual, ANYWAY.get(name, usual)):
            raise SpecError(f"{name} {value}: {_kind(algorithm)} {instead}; leave it out")


def _kind(algorithm: AlgorithmName) -> str:
    return f"{'an' if algorithm[0] in 'emx' else 'a'} {algorithm} draft"  # as they are spoken
