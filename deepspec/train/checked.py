"""What is refused before the first step: training on nothing, and on states that are not the target's.

A cache of other states, of other layers, or shifted by a position has the right shapes and trains without an error;
the draft is then accepted a tenth as often. So a few samples are computed again before anything is learnt from them.
"""

from collections.abc import Sequence

from deepspec.artifacts import Artifact
from deepspec.errors import ParityError, SourceError
from deepspec.passes.agree import states_difference, tolerance
from deepspec.passes.live import open_cache
from deepspec.placement import Placement
from deepspec.report import Report
from deepspec.target_cache.cache import TargetCache
from deepspec.target_cache.codec import TOKENS_ONLY
from deepspec.target_cache.split import CacheSplit
from deepspec.train.spec import TrainSpec

GATE_POOL = 64
"""Samples of which the shortest are computed again by the target."""


def check_cache(spec: TrainSpec, artifact: Artifact, cache: TargetCache, placement: Placement, report: Report) -> None:
    """Let the target say a few stored samples again; the shortest of the first epoch's beginning cost least.

    Raises:
        SpecError: the objective asks for states that the cache does not have.
        ParityError: they differ.
    """
    if spec.source != "cache":
        return
    cache.facts.check_supervises(artifact.prefix, behind_the_end=spec.objective.looks_behind_the_end)
    if not spec.parity_samples:
        return
    begin = CacheSplit(cache, "train", spec.seed, spec.window).order(0)[:GATE_POOL]
    shortest = sorted(begin, key=lambda number: int(cache.index.lengths[number]))[: spec.parity_samples]
    off = check_states(artifact, cache, shortest, placement)
    if off is not None:
        report.log(f"the cache agrees with its target: {len(shortest)} samples computed again, off by {off:.1g}")


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
        off = states_difference(kept, online.record(number), facts)
        if not off <= tolerance(facts):
            raise ParityError(
                f"{artifact.prefix}: the stored states of sample {kept.sample_id} differ from the target's own by "
                f"{off:.2g} of their norm, allowed {tolerance(facts):g} ({facts.codec}): the cache is stale, "
                "shifted or of other layers. Nothing was trained; see deepspec cache verify, and build the cache anew"
            )
        worst = max(worst, off)
    return worst


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
