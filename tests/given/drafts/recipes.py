"""Recipes and objectives of any algorithm, by sizes that a test wants of all of them."""

from typing import Any

from deepspec.checkpoint.options import OBJECTIVE, RECIPE, of_algorithm


def sized(algorithm: Any, **sizes: Any) -> dict[str, Any]:
    """Return a recipe of the sizes that an algorithm has."""
    return {"algorithm": algorithm, **of_algorithm(algorithm, sizes, RECIPE)}


def aimed(algorithm: Any, **options: Any) -> dict[str, Any]:
    """Return an objective of the options that an algorithm has."""
    return of_algorithm(algorithm, options, OBJECTIVE)
