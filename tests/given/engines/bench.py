"""Answers, and the stage that asks engines for their states."""

from pathlib import Path
from typing import Any

from deepspec.artifacts import ArtifactRef
from deepspec.cache.run import run
from deepspec.cache.spec import CacheSpec
from deepspec.store import Store
from deepspec.target_cache.cache import TargetCache
from tests.given.engines.states import VERSION_SERVED, Served, serving
from tests.given.heard import Heard
from tests.given.published.caches import opened, out_for, placement_for, publish_answers, rows, spec_for


class Bench:
    """A store with answers, and the stage that asks engines."""

    def __init__(self, target: Path, folder: Path) -> None:
        self.target, self.folder = target, folder
        self.staging = folder / "staging"
        self.staging.mkdir()
        self.store = Store(folder / "store")
        self.heard = Heard()
        self.answers = publish_answers(self.store, folder, [rows(10), rows(9, seed=1)])

    def served(self, **faults: Any) -> Served:
        return Served(folder=self.staging, target=self.target, **faults)

    def spec(self, **options: Any) -> CacheSpec:
        told = {"states": "vllm", "engine_version": VERSION_SERVED, "codec": "bf16", **options}
        return spec_for(self.target, **told)

    def run(self, *engines: Served, spec: Any = None, **placed: Any) -> ArtifactRef:
        """Run the stage over engines that serve already, and publish."""
        spec = spec or self.spec()
        out = out_for(self.store, self.folder, self.answers)
        endpoints = tuple(each.endpoint for each in engines)
        placement = placement_for(self.target, self.folder, endpoints=endpoints, **placed)
        counts = run(spec, {"answers": self.answers}, out, placement, self.heard)
        return out.publish(spec, 1, counts)

    def capture(self, spec: Any = None, **faults: Any) -> ArtifactRef:
        """Run the stage over one engine with faults."""
        with serving(self.served(**faults)) as engine:
            return self.run(engine, spec=spec)

    def own(self, **options: Any) -> ArtifactRef:
        """Run the stage with transformers, and publish at another address."""
        spec = spec_for(self.target, codec="bf16", **options)
        out = out_for(self.store, self.folder, self.answers, "d")
        counts = run(spec, {"answers": self.answers}, out, placement_for(self.target, self.folder), self.heard)
        return out.publish(spec, 1, counts)

    def again(self, store: Store) -> ArtifactRef:
        """Publish the same answers in another store."""
        return publish_answers(store, self.folder / "scratch", [rows(10), rows(9, seed=1)]).ref

    def opened(self, ref: ArtifactRef) -> TargetCache:
        return opened(ref, self.store, self.folder)

    def left(self) -> list[str]:
        return sorted(path.name for path in self.staging.iterdir())
