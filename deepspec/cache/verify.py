"""Check a published cache: every byte against its checksum, and some samples against the target itself."""

import random
from dataclasses import dataclass, field

from deepspec.artifacts import Artifact
from deepspec.errors import CorruptArtifactError, DeepSpecError
from deepspec.passes.agree import states_difference, tolerance
from deepspec.passes.live import open_cache
from deepspec.placement import Placement
from deepspec.report import Report
from deepspec.target_cache.cache import TargetCache, stored_parts
from deepspec.target_cache.codec import TOKENS_ONLY
from deepspec.target_cache.fetch import BoundedFolder
from deepspec.target_cache.index import INDEX


@dataclass(slots=True)
class Verification:
    """What was found."""

    samples: int = 0
    """Samples whose bytes were checked."""
    damaged: list[str] = field(default_factory=list)
    """One line for each sample or file that cannot be read."""
    files: set[str] = field(default_factory=set)
    """Files in which the damage is."""
    recomputed: dict[str, float] = field(default_factory=dict)
    """Sample id -> largest error against the target, as a share of the norm."""
    wrong: list[str] = field(default_factory=list)
    """Samples whose error is above the tolerance of their codec."""

    @property
    def sound(self) -> bool:
        """Return whether nothing is damaged or wrong."""
        return not (self.damaged or self.wrong)


def verify_cache(
    artifact: Artifact, placement: Placement, report: Report, recompute: int = 4, seed: int = 0
) -> Verification:
    """Return what a check of all samples finds; damage is listed, not raised.

    Args:
        artifact: the published cache.
        placement: scratch, device, and where the target lies.
        report: who listens.
        recompute: samples to compute again with the target, chosen by the seed; 0 needs no target.
        seed: of the choice.
    """
    found = Verification()
    parts = stored_parts(artifact, BoundedFolder(placement.scratch / "fetched" / "parts", placement.parts_limit))
    try:
        stored = TargetCache(artifact, placement.scratch, parts=parts)
    except CorruptArtifactError as error:
        found.damaged.append(str(error))
        found.files.add(INDEX)
        return found
    intact = _read_all(stored, found, report)
    if recompute and intact and stored.facts.codec != TOKENS_ONLY:
        chosen = random.Random(seed).sample(intact, min(recompute, len(intact)))
        _recompute(stored, open_cache(artifact, placement, "online"), chosen, found)
    return found


def drop_damaged(artifact: Artifact, found: Verification) -> None:
    """Delete the damaged files, so that the stage makes them again, and nothing else.

    Args:
        artifact: the published cache; incomplete from here on.
        found: what its check found.
    """
    for name in sorted(found.files):
        artifact.store.delete(f"{artifact.prefix}/{artifact.entry(name).key}")


def _read_all(stored: TargetCache, found: Verification, report: Report) -> list[int]:
    """Read every sample; return the numbers of those that are intact."""
    intact: list[int] = []
    stored.expect(range(len(stored)))
    for number in range(len(stored)):
        try:
            stored.record(number)
            intact.append(number)
        except DeepSpecError as error:
            found.damaged.append(str(error))
            found.files.add(stored.index.part_of(number))
        found.samples += 1
        report.progress(found.samples, len(stored), "samples")
    return intact


def _recompute(stored: TargetCache, online: TargetCache, numbers: list[int], found: Verification) -> None:
    for number in numbers:
        record = stored.record(number)
        off = states_difference(record, online.record(number), stored.facts)
        found.recomputed[record.sample_id] = off
        if not off <= tolerance(stored.facts):
            found.wrong.append(record.sample_id)
