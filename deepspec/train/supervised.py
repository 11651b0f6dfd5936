"""Training on nothing is refused before the first step."""

from deepspec.errors import SourceError
from deepspec.target_cache.cache import TargetCache


def check_supervised(cache: TargetCache, *splits: str) -> None:
    """Check that splits which have samples also have tokens that the target generated.

    Args:
        cache: to be trained on.
        splits: `train`, and `validation` where it is looked at.

    Raises:
        SourceError: all loss masks of a split are empty: every loss would be 0, and a draft of noise published.
    """
    for split in splits:
        numbers = cache.numbers(split)
        if len(numbers) and not int(cache.index.supervised[numbers].sum()):
            raise SourceError(
                f"the cache's {split} split supervises nothing: none of its {len(numbers)} samples has a token that "
                "the target generated; make or import the cache again"
            )
