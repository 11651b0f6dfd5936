"""The gate before the first step: what the cache stores must be what the target says now.

A cache of other states, of other layers, or shifted by a position has the right shapes and trains without an error;
the draft is then accepted a tenth as often. So a few samples are computed again before anything is learnt from them.
"""

from collections.abc import Sequence

from deepspec.artifacts import Artifact
from deepspec.errors import ParityError
from deepspec.passes.agree import difference, tolerance
from deepspec.passes.live import open_cache
from deepspec.placement import Placement
from deepspec.target_cache.cache import TargetCache
from deepspec.target_cache.codec import TOKENS_ONLY


def check_states(artifact: Artifact, stored: TargetCache, numbers: Sequence[int], placement: Placement) -> float | None:
    """Compare stored samples with what the target computes now, and return the largest relative difference.

    Args:
        artifact: the published cache.
        stored: the same, open.
        numbers: of the samples that are compared.
        placement: knows the target.

    Returns:
        None where nothing is stored that could be compared.

    Raises:
        ParityError: they differ by more than rounding explains; names the sample.
        TargetError: the target is not there, or is another one than the cache's.
    """
    facts = stored.facts
    if facts.codec == TOKENS_ONLY or not numbers:
        return None
    online = open_cache(artifact, placement, "online")
    worst = 0.0
    for number in numbers:
        kept = stored.record(number)
        off = difference(kept, online.record(number), facts)
        if not off <= tolerance(facts):
            raise ParityError(
                f"{artifact.prefix}: the stored states of sample {kept.sample_id} differ from the target's own by "
                f"{off:.2g} of their norm, allowed {tolerance(facts):g} ({facts.codec}): the cache is stale, "
                "shifted or of other layers. Nothing was trained; see deepspec cache verify, and build the cache anew"
            )
        worst = max(worst, off)
    return worst
