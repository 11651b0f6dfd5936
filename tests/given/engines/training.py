"""A draft that is trained on states which engines give meanwhile."""

from pathlib import Path
from typing import Any

from deepspec.artifacts import Artifact, ArtifactRef, open_artifact
from deepspec.cache.run import run as capture
from deepspec.placement import Endpoint
from deepspec.publish import Out
from deepspec.store import Store
from deepspec.train.run import run
from deepspec.train.spec import TrainSpec
from tests.given.engines.bench import Bench
from tests.given.engines.states import VERSION_SERVED
from tests.given.published.caches import out_for, placement_for, spec_for
from tests.given.published.site import SMALL

SPEC = SMALL.but(source="engine", engine_version=VERSION_SERVED)


def tokens_of(bench: Bench, **options: Any) -> Artifact:
    """Publish a cache of tokens only."""
    spec = spec_for(bench.target, codec="none", **options)
    out = out_for(bench.store, bench.folder, bench.answers, "tokens")
    counts = capture(spec, {"answers": bench.answers}, out, placement_for(bench.target, bench.folder), bench.heard)
    return open_artifact(bench.store, out.publish(spec, 1, counts), bench.folder)


def train(
    store: Store, scratch: Path, cache: Artifact, target: Path, spec: TrainSpec, report: Any, *engines: Endpoint,
    name: str = "draft", **placed: Any,
) -> ArtifactRef:  # fmt: skip
    """Train a draft and publish it; equal names share what a killed run left."""
    out = Out(store, "draft", name, {"target_cache": cache.ref}, scratch)
    placement = placement_for(target, scratch, micro_batch=2, endpoints=engines, **placed)
    counts = run(spec, {"target_cache": cache}, out, placement, report)
    return out.publish(spec, 1, counts)


def checksums(ref: ArtifactRef, store: Store, scratch: Path) -> dict[str, str]:
    return {name: entry.checksum for name, entry in open_artifact(store, ref, scratch).manifest.files.items()}
