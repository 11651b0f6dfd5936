"""The stages: which artifact each makes, from what, with which code; and the one way to run any of them.

Rooms load torch, so a stage's `run` is imported when it runs, never when this table is read.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, TypeVar

from deepspec.artifacts import Artifact, ArtifactRef, open_artifact, read_manifest, reference
from deepspec.benchmark.spec import BenchmarkSpec
from deepspec.brought.spec import AdoptSpec, ImportSpec
from deepspec.cache.spec import CacheSpec
from deepspec.disk import full_disk_named, is_full
from deepspec.errors import StoreError, UnknownNameError
from deepspec.evaluate.spec import EvaluateSpec
from deepspec.export.spec import ExportSpec
from deepspec.placement import Placement
from deepspec.prepare.spec import PrepareSpec
from deepspec.publish import Out, is_fresh, nearest
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.release.spec import ReleaseSpec
from deepspec.report import Report
from deepspec.specs import Spec, address_of
from deepspec.store import Store
from deepspec.train.spec import TrainSpec

StageCode = Callable[[Any, Mapping[str, Artifact], Out, Placement, Report], dict[str, Any]]
"""`run(spec, inputs, out, placement, report)` writes files through `out` and returns the counts."""

_Given = TypeVar("_Given")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One row of the table."""

    name: str
    kind: str
    """Kind of the artifact that it publishes."""
    spec: type[Spec]
    inputs: tuple[str, ...] = ()
    """Kinds of the artifacts that it reads; also their names in `run`."""
    optional: tuple[str, ...] = ()
    """Names of further ones, which it reads where they are given."""
    version: int = 1
    """Raised whenever the output changes for the same spec and inputs."""

    needs: Literal["target", "pair", "states"] | None = None
    """What an engine must serve while it runs, where its spec asks one: the target, the target with the draft, or the
    target with its hidden states."""
    code: str = ""
    """Module with its code; empty: `deepspec.NAME.run`."""
    sharded: bool = False
    """Whether its room offers `shards` and `run_shard`, so that many can share the work."""
    claims: bool = False
    """Whether runs on several machines divide its shards among them: none has to wait for another."""

    def used(self, given: Mapping[str, _Given]) -> dict[str, _Given]:
        """Return those of some inputs, by name, that it reads; the ones that it cannot do without must be there."""
        return {name: given[name] for name in (*self.inputs, *(each for each in self.optional if each in given))}

    def room(self) -> Any:
        """Import and return the module with the stage's code."""
        return import_module(self.code or f"deepspec.{self.name}.run")

    def run(self) -> StageCode:
        """Import and return the stage's code."""
        run: StageCode = self.room().run
        return run


_ROWS = (
    Stage(name="prepare", kind="prompts", spec=PrepareSpec, version=2),
    Stage(name="regenerate", kind="answers", spec=RegenerateSpec, inputs=("prompts",), needs="target", version=2),
    Stage(
        name="cache", kind="target_cache", spec=CacheSpec, inputs=("answers",), needs="states", sharded=True,
        claims=True, version=3,
    ),
    Stage(
        name="train", kind="draft", spec=TrainSpec, inputs=("target_cache",), optional=("greedy_cache",), version=3
    ),
    Stage(name="export", kind="exports", spec=ExportSpec, inputs=("draft",), version=6),
    Stage(name="evaluate", kind="scores", spec=EvaluateSpec, inputs=("draft",), version=4, sharded=True),
    Stage(
        name="benchmark", kind="speed", spec=BenchmarkSpec, inputs=("draft", "exports", "scores"), needs="pair",
        version=7,
    ),
    Stage(name="release", kind="release", spec=ReleaseSpec, inputs=("draft", "exports", "scores", "speed"), version=6),
)  # fmt: skip

STAGES: Mapping[str, Stage] = {stage.name: stage for stage in _ROWS}
"""Stage name -> row, in the order in which a draft is built."""

BROUGHT: Mapping[str, Stage] = {
    "import": Stage(name="import", kind="target_cache", spec=ImportSpec, version=2, code="deepspec.brought.cache"),
    "adopt": Stage(name="adopt", kind="draft", spec=AdoptSpec, version=2, code="deepspec.brought.draft"),
}
"""Name -> row of what stands in for a stage, made of what a user brings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """One artifact that a run makes."""

    stage: str
    """Name of the stage that makes it."""
    inputs: Mapping[str, str]
    """Name of an input -> name of the product that it is."""


PRODUCTS: Mapping[str, Product] = {
    "prepare": Product(stage="prepare", inputs={}),
    "regenerate": Product(stage="regenerate", inputs={"prompts": "prepare"}),
    "regenerate-greedy": Product(stage="regenerate", inputs={"prompts": "prepare"}),
    "cache": Product(stage="cache", inputs={"answers": "regenerate"}),
    "cache-greedy": Product(stage="cache", inputs={"answers": "regenerate-greedy"}),
    "train": Product(stage="train", inputs={"target_cache": "cache", "greedy_cache": "cache-greedy"}),
    "export": Product(stage="export", inputs={"draft": "train"}),
    "evaluate": Product(stage="evaluate", inputs={"draft": "train"}),
    "benchmark": Product(stage="benchmark", inputs={"draft": "train", "exports": "export", "scores": "evaluate"}),
    "release": Product(
        stage="release", inputs={"draft": "train", "exports": "export", "scores": "evaluate", "speed": "benchmark"}
    ),
}
"""Name -> what a run makes, in order: one by each stage; where answers are sampled, also greedy ones to held-out
prompts (`train.greedy_samples`), and the target's states over them."""

GREEDY = ("regenerate-greedy", "cache-greedy")
"""Products that not every run makes."""


def stage_named(name: str) -> Stage:
    """Return the row of a stage.

    Raises:
        UnknownNameError: there is no such stage.
    """
    if name not in STAGES:
        raise UnknownNameError("stage", name, STAGES)
    return STAGES[name]


def address(stage: Stage, spec: Spec, inputs: Mapping[str, str]) -> str:
    """Return the address of a stage's result, known before the run.

    Args:
        stage: the row.
        spec: what changes the result.
        inputs: name -> address of each input.
    """
    return address_of(stage.kind, stage.version, spec, stage.used(inputs))


def find_fresh(stage: Stage, spec: Spec, inputs: Mapping[str, ArtifactRef], store: Store) -> ArtifactRef | None:
    """Return the published result of a stage, or None where it is missing, incomplete or stale."""
    used = stage.used(inputs)
    where = address(stage, spec, {name: ref.address for name, ref in used.items()})
    if not is_fresh(store, stage.kind, where, used):
        return None
    manifest = read_manifest(store, stage.kind, where)
    return None if manifest is None else reference(store, manifest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One stage's work: what is made, from what, where, and who hears of it."""

    stage: Stage
    spec: Spec
    inputs: Mapping[str, ArtifactRef]
    """Name -> reference of each input; its content decides whether a published result is stale."""
    store: Store
    """Where artifacts lie."""
    placement: Placement
    """Where and how wide to run."""
    report: Report

    def out(self) -> Out:
        """Return an attempt to make it."""
        used = self.stage.used(self.inputs)
        where = address(self.stage, self.spec, {name: ref.address for name, ref in used.items()})
        return Out(self.store, self.stage.kind, where, used, self.placement.scratch)

    def opened(self) -> dict[str, Artifact]:
        """Return the inputs, opened for reading."""
        used = self.stage.used(self.inputs).items()
        return {name: open_artifact(self.store, ref, self.placement.scratch) for name, ref in used}


def materialize(work: Work) -> ArtifactRef:
    """Return the stage's artifact: the published one where it is fresh, else made now and published."""
    found = find_fresh(work.stage, work.spec, work.inputs, work.store)
    if found is not None:
        return found
    out = work.out()
    if read_manifest(work.store, out.kind, out.address) is not None:
        work.report.log(f"{out.prefix} is stale or incomplete; it is made again")
    elif near := nearest(work.store, out.kind, work.stage.version, work.spec, work.stage.used(work.inputs)):
        work.report.log(f"made anew: {near}")
    counts = _run(work, out)
    with _full_disk_named(out):
        return out.publish(work.spec, work.stage.version, counts)


def join(work: Work) -> None:
    """Take part in a stage as a rank that does not publish."""
    _run(work, work.out())


class Shards:
    """The shards of a stage, for workers that share them out."""

    def __init__(self, work: Work) -> None:
        """Open the inputs."""
        self._work, self._room = work, work.stage.room()
        self._out, self._opened = work.out(), work.opened()

    def count(self) -> int:
        """Return how many there are."""
        work = self._work
        return int(self._room.shards(work.spec, self._opened, self._out, work.placement, work.report))

    def make(self, shard: int) -> None:
        """Make what is missing of one and commit it."""
        work = self._work
        with _full_disk_named(self._out):
            self._room.run_shard(shard, work.spec, self._opened, self._out, work.placement, work.report)


def _run(work: Work, out: Out) -> dict[str, Any]:
    with _full_disk_named(out):
        return work.stage.run()(work.spec, work.opened(), out, work.placement, work.report)


@contextmanager
def _full_disk_named(out: Out) -> Iterator[None]:
    """Name a full disk that a stage meets, wherever it writes, and give back what the attempt took for nothing.

    Raises:
        StoreError: there is no room left.
    """
    try:
        with full_disk_named(out.folder, out.scratch):
            yield
    except StoreError as error:
        if is_full(error):
            out.discard()
        raise
