"""Which rows are kept and in which split they go: functions of the seed and the sample's id, never of the order."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from deepspec.messages.conversations import Split
from deepspec.prepare.spec import PrepareSpec, Source, Splits
from deepspec.prepare.text import Hashes

KEPT = ""
"""The reason of rows that are not dropped."""

Reasons = npt.NDArray[np.str_]


def rank_of(sample_id: str, seed: int) -> int:
    """Return the place of a sample among all possible ones, in [0, 2^64): rows of low rank are chosen first."""
    return xxhash.xxh3_64_intdigest(f"rank:{seed}:{sample_id}".encode())


def split_of(sample_id: str, seed: int, splits: Splits) -> Split:
    """Return the split of a sample; adding other samples never moves it."""
    place = xxhash.xxh3_64_intdigest(f"split:{seed}:{sample_id}".encode()) / 2**64
    if place < splits.test:
        return "test"
    if place < splits.test + splits.calibration:
        return "calibration"
    return "validation" if place < splits.test + splits.calibration + splits.validation else "train"


def choose(ranks: Hashes, origins: npt.NDArray[np.uint16], near: npt.NDArray[np.bool_], spec: PrepareSpec) -> Reasons:
    """Return why each row is dropped: `near_duplicate`, `limit`, `weight`, `max_samples`, or `KEPT`.

    Args:
        ranks: `(rows,)`, from `rank_of`.
        origins: `(rows,)`, index of each row's source.
        near: `(rows,)`, True for near-duplicates.
        spec: limits and weights.
    """
    reasons = np.where(near, "near_duplicate", KEPT).astype("<U16")
    for index, source in enumerate(spec.sources):
        if source.limit is not None:
            _keep_lowest(reasons, ranks, origins == index, source.limit, "limit")
    for index, quota in enumerate(_quotas(reasons, origins, spec)):
        _keep_lowest(reasons, ranks, origins == index, quota, "weight")
    if spec.max_samples is not None:
        _keep_lowest(reasons, ranks, np.ones(len(ranks), dtype=np.bool_), spec.max_samples, "max_samples")
    return reasons


def _keep_lowest(reasons: Reasons, ranks: Hashes, among: npt.NDArray[np.bool_], count: int, reason: str) -> None:
    """Drop all but the `count` lowest ranks among the rows that are still kept."""
    rows = np.flatnonzero(among & (reasons == KEPT))
    if len(rows) > count:
        reasons[rows[np.argsort(ranks[rows], kind="stable")[count:]]] = reason


def _quotas(reasons: Reasons, origins: npt.NDArray[np.uint16], spec: PrepareSpec) -> list[int]:
    """Return how many rows each weighted source gives: the most that keeps the proportions and the limit."""
    weights = _weights(spec.sources)
    if not weights:
        return []
    counts = np.bincount(origins[reasons == KEPT], minlength=len(weights))
    total = min(count / weight for count, weight in zip(counts, weights, strict=True))
    if spec.max_samples is not None:
        total = min(total, spec.max_samples)
    return [int(total * weight + 1e-9) for weight in weights]


def _weights(sources: Sequence[Source]) -> list[float]:
    weights = [source.weight for source in sources if source.weight is not None]
    return [weight / sum(weights) for weight in weights]
