"""A published tiny cache, and the stage that trains on it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deepspec.artifacts import Artifact, ArtifactRef, open_artifact
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.store import Store
from deepspec.train.run import run
from deepspec.train.spec import TrainSpec
from tests.given.heard import Heard
from tests.given.published.caches import build, placement_for, publish_answers, rows, spec_for
from tests.given.targets.tiny import write_target

SMALL = TrainSpec(
    draft={"num_layers": 1, "markov_rank": 8, "block_size": 3},
    objective={"num_anchors": 8},
    steps=8,
    global_batch=4,
    learning_rate=5e-3,
    precision="fp32",
    validate_every=4,
    checkpoint_every=3,
    parity_samples=0,
)


@dataclass(frozen=True)
class Site:
    """A published tiny cache, and where training it runs."""

    root: Path
    store: Store
    cache: Artifact
    placement: Placement

    def out(self, name: str, scratch: Path | None = None) -> Out:
        """Return where an attempt writes; equal names share checkpoints, as equal addresses do."""
        return Out(self.store, "draft", name, {"target_cache": self.cache.ref}, scratch or self.placement.scratch)

    def train(
        self, spec: TrainSpec, name: str, report: Any = None, **placement: Any
    ) -> tuple[ArtifactRef, dict[str, Any]]:
        """Run the stage in this process and publish its draft."""
        out = self.out(name)
        place = self.placement.model_copy(update=placement)
        counts = run(spec, {"target_cache": self.cache}, out, place, report or Heard())
        return out.publish(spec, 1, counts), counts

    def open(self, ref: ArtifactRef) -> Artifact:
        return open_artifact(self.store, ref, self.placement.scratch)

    def checksums(self, ref: ArtifactRef) -> dict[str, str]:
        return {name: entry.checksum for name, entry in self.open(ref).manifest.files.items()}


def make_site(root: Path, **changes: Any) -> Site:
    """Return a site with a random target of 6 layers, 25 answered conversations (each so changed), and their cache."""
    store, scratch = Store(root / "store"), root / "scratch"
    target = write_target(root / "target")
    answers = publish_answers(store, scratch, [[{**row, **changes} for row in rows(25)]])
    ref = build(spec_for(target), target, answers, store, scratch)
    cache = open_artifact(store, ref, scratch)
    return Site(root=root, store=store, cache=cache, placement=placement_for(target, scratch, micro_batch=2))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site that all tests share."""
    return make_site(tmp_path_factory.mktemp("train"))
