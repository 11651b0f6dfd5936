"""Answers, caches and reports for the tests of the cache."""

import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from deepspec.artifacts import Artifact, ArtifactRef, open_artifact
from deepspec.cache.run import run
from deepspec.cache.spec import CacheSpec
from deepspec.lines.rows import write_rows
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.specs import Spec
from deepspec.store import Store
from deepspec.target import identify
from deepspec.target_cache.cache import TargetCache
from tests.given.heard import Heard
from tests.given.targets.tiny import answered


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return answered rows of many lengths; every fifth is held out."""
    rng = random.Random(seed)
    return [
        answered(
            f"s{n:03d}",
            "".join(rng.choices("abc 123", k=rng.randint(3, 40))),
            "".join(rng.choices("xyz 456", k=rng.randint(3, 60))),
            split="validation" if n % 5 == 4 else "train",
        )
        for n in range(count)
    ]


def publish_answers(
    store: Store,
    scratch: Path,
    files: Sequence[Sequence[dict[str, Any]]],
    address: str = "a",
    spec: Spec = Spec(),  # noqa: B008 - frozen
) -> Artifact:
    """Publish rows as the files of an answers artifact, made by a spec that nobody asks in most tests."""
    out = Out(store, "answers", address, {}, scratch)
    for number, part in enumerate(files):
        write_rows(out.file(f"part-{number:05d}.jsonl.zst"), part)
    ref = out.publish(spec, 1, {"input": sum(map(len, files))})
    return open_artifact(store, ref, scratch)


def spec_for(target: Path, **options: Any) -> CacheSpec:
    """Return a spec for a tiny target: short passes, so that there are several."""
    return CacheSpec(target=identify(target), **{"batch_tokens": 256, "layers": (-1, 1, 3), **options})


def placement_for(target: Path, scratch: Path, **options: Any) -> Placement:
    return Placement(scratch=scratch, threads=1, locations={identify(target).digest: str(target)}, **options)


def out_for(store: Store, scratch: Path, answers: Artifact, address: str = "c") -> Out:
    return Out(store, "target_cache", address, {"answers": answers.ref}, scratch)


def build(spec: CacheSpec, target: Path, answers: Artifact, store: Store, scratch: Path) -> ArtifactRef:
    """Run the stage and publish its artifact."""
    out = out_for(store, scratch, answers)
    counts = run(spec, {"answers": answers}, out, placement_for(target, scratch), Heard())
    return out.publish(spec, 1, counts)


def opened(ref: ArtifactRef, store: Store, scratch: Path, **options: Any) -> TargetCache:
    return TargetCache(open_artifact(store, ref, scratch), scratch, **options)


class StopError(Exception):
    """Ends a run in the middle."""


class Stopping(Heard):
    """Ends a capture after a few samples, between two parts."""

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        if note and done > 8:
            raise StopError


def held(folder: Path) -> int:
    """The bytes in a folder that another thread fills and empties: of one moment, so taken again if files changed."""
    while True:
        before = set(folder.iterdir())
        with suppress(FileNotFoundError):
            size = sum(path.stat().st_size for path in before)
            if set(folder.iterdir()) == before:
                return size
