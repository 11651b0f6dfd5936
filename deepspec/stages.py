"""The stages: which artifact each makes, from what, with which code; and the one way to run any of them.

Rooms load torch, so a stage's `run` is imported when it runs, never when this table is read.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from deepspec.artifacts import Artifact, ArtifactRef, Spec, address_of, open_artifact, read_manifest, reference
from deepspec.benchmark.spec import BenchmarkSpec
from deepspec.cache.spec import CacheSpec
from deepspec.disk import full_disk_named, is_full
from deepspec.errors import StoreError, UnknownNameError
from deepspec.evaluate.spec import EvaluateSpec
from deepspec.export.spec import ExportSpec
from deepspec.placement import Placement
from deepspec.prepare.spec import PrepareSpec
from deepspec.publish import Out, is_fresh
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.release.spec import ReleaseSpec
from deepspec.report import Report
from deepspec.store import Store
from deepspec.train.spec import TrainSpec

Run = Callable[[Any, Mapping[str, Artifact], Out, Placement, Report], dict[str, Any]]
"""`run(spec, inputs, out, placement, report)` writes files through `out` and returns the counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One row of the table."""

    name: str
    kind: str
    """Kind of the artifact that it publishes."""
    spec: type[Spec]
    inputs: tuple[str, ...] = ()
    """Kinds of the artifacts that it reads; also their names in `run`."""
    version: int = 1
    """Raised whenever the output changes for the same spec and inputs."""

    sharded: bool = False
    """Whether its room offers `shards` and `run_shard`, so that many can share the work."""

    def room(self) -> Any:
        """Import and return the module with the stage's code."""
        return import_module(f"deepspec.{self.name}.run")

    def run(self) -> Run:
        """Import and return the stage's code."""
        run: Run = self.room().run
        return run


_ROWS = (
    Stage(name="prepare", kind="prompts", spec=PrepareSpec, version=2),
    Stage(name="regenerate", kind="answers", spec=RegenerateSpec, inputs=("prompts",), version=2),
    Stage(name="cache", kind="target_cache", spec=CacheSpec, inputs=("answers",), sharded=True, version=2),
    Stage(name="train", kind="draft", spec=TrainSpec, inputs=("target_cache",), version=2),
    Stage(name="export", kind="exports", spec=ExportSpec, inputs=("draft",), version=2),
    Stage(name="evaluate", kind="scores", spec=EvaluateSpec, inputs=("draft",), version=3, sharded=True),
    Stage(name="benchmark", kind="speed", spec=BenchmarkSpec, inputs=("draft", "exports", "scores"), version=3),
    Stage(name="release", kind="release", spec=ReleaseSpec, inputs=("draft", "exports", "scores", "speed"), version=3),
)

STAGES: Mapping[str, Stage] = {stage.name: stage for stage in _ROWS}
"""Stage name -> row, in the order in which a draft is built."""


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
        inputs: kind -> address of each input.
    """
    return address_of(stage.kind, stage.version, spec, {kind: inputs[kind] for kind in stage.inputs})


def find_fresh(stage: Stage, spec: Spec, inputs: Mapping[str, ArtifactRef], store: Store) -> ArtifactRef | None:
    """Return the published result of a stage, or None where it is missing, incomplete or stale."""
    where = address(stage, spec, {kind: inputs[kind].address for kind in stage.inputs})
    used = {kind: inputs[kind] for kind in stage.inputs}
    if not is_fresh(store, stage.kind, where, used):
        return None
    manifest = read_manifest(store, stage.kind, where)
    return None if manifest is None else reference(store, manifest)


def materialize(
    stage: Stage,
    spec: Spec,
    inputs: Mapping[str, ArtifactRef],
    store: Store,
    placement: Placement,
    report: Report,
) -> ArtifactRef:
    """Return the stage's artifact: the published one where it is fresh, else made now and published.

    Args:
        stage: the row of the table.
        spec: what changes the result.
        inputs: kind -> reference of each input; its content decides whether a published result is stale.
        store: where artifacts lie.
        placement: where and how wide to run.
        report: who listens.
    """
    found = find_fresh(stage, spec, inputs, store)
    if found is not None:
        return found
    out = _attempt(stage, spec, inputs, store, placement)
    if read_manifest(store, out.kind, out.address) is not None:
        report.log(f"{out.prefix} is stale or incomplete; it is made again")
    counts = _run(stage, spec, out, placement, report)
    with _full_disk_named(out):
        return out.publish(spec, stage.version, counts)


def join(
    stage: Stage,
    spec: Spec,
    inputs: Mapping[str, ArtifactRef],
    store: Store,
    placement: Placement,
    report: Report,
) -> None:
    """Take part in a stage as a rank that does not publish; the arguments are those of `materialize`."""
    _run(stage, spec, _attempt(stage, spec, inputs, store, placement), placement, report)


class Shards:
    """The shards of a stage, for workers that share them out; the arguments are those of `materialize`."""

    def __init__(
        self, stage: Stage, spec: Spec, inputs: Mapping[str, ArtifactRef], store: Store, placement: Placement
    ) -> None:
        """Open the inputs."""
        self._room, self._spec, self._placement = stage.room(), spec, placement
        self._out = _attempt(stage, spec, inputs, store, placement)
        self._opened = _open(self._out, placement)

    def count(self, report: Report) -> int:
        """Return how many there are."""
        return int(self._room.shards(self._spec, self._opened, self._out, self._placement, report))

    def make(self, shard: int, report: Report) -> None:
        """Make what is missing of one and commit it."""
        with _full_disk_named(self._out):
            self._room.run_shard(shard, self._spec, self._opened, self._out, self._placement, report)


def _attempt(stage: Stage, spec: Spec, inputs: Mapping[str, ArtifactRef], store: Store, placement: Placement) -> Out:
    used = {kind: inputs[kind] for kind in stage.inputs}
    where = address(stage, spec, {kind: ref.address for kind, ref in used.items()})
    return Out(store, stage.kind, where, used, placement.scratch)


def _run(stage: Stage, spec: Spec, out: Out, placement: Placement, report: Report) -> dict[str, Any]:
    with _full_disk_named(out):
        return stage.run()(spec, _open(out, placement), out, placement, report)


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


def _open(out: Out, placement: Placement) -> dict[str, Artifact]:
    return {kind: open_artifact(out.store, ref, placement.scratch) for kind, ref in out.inputs.items()}
