"""From a plan to specs: sources and target become hashes, and where they lie is kept beside.

No path enters a spec. Everything that a stage's result depends on does.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepspec import families
from deepspec.artifacts import Spec, TargetId, checksum
from deepspec.benchmark.spec import BenchmarkSpec
from deepspec.cache.spec import CacheSpec
from deepspec.errors import SourceError, TargetError
from deepspec.evaluate.spec import EvaluateSpec
from deepspec.families import TargetShape
from deepspec.formats import benchmarks
from deepspec.plan.estimate import Sizes
from deepspec.plan.plan import Plan
from deepspec.prepare import resolve as sources
from deepspec.prepare.demo import BENCHMARKS as DEMO_BENCHMARKS
from deepspec.prepare.spec import PrepareSpec
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.release.spec import ReleaseSpec
from deepspec.target.identity import identify, read_template
from deepspec.target.source import TargetFiles


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A plan in which everything is named by its hash."""

    specs: Mapping[str, Spec]
    """Stage name -> spec; without prompts, which a draft made elsewhere does not need, none for prepare."""
    target: TargetId
    """Which target it is."""
    locations: Mapping[str, str]
    """Digest -> where it lies on this machine, for `Placement.locations`."""
    sizes: Sizes
    """Of the target, read from its config."""
    files: TargetFiles
    """The target on this machine."""


def check_sources(plan: Plan) -> None:
    """Check that prompts, answers and benchmarks are there.

    Raises:
        SourceError: one is missing, empty or cannot be reached.
    """
    _sources(plan)
    _answers(plan)
    _benchmarks(plan)


def resolve(plan: Plan, files: TargetFiles, memo: Path) -> Resolved:
    """Return the specs of all stages.

    Args:
        plan: what the user decided.
        files: the target, ready.
        memo: JSON file that remembers hashes of big files.

    Raises:
        SourceError: prompts, answers or benchmarks are missing.
        TargetError: the target's config cannot be read, or it has no chat template.
    """
    config = json.loads((files.folder / "config.json").read_text(encoding="utf-8"))
    if not read_template(files.folder):
        advice = "give one in an own preset (target.chat_template), or choose the instruction-tuned version"
        raise TargetError(f"target {plan.target.name} ({files.folder}) has no chat template; {advice}")
    shape = families.read(config)
    identity = identify(files.folder, memo)
    found = _sources(plan)
    tests = _benchmarks(plan)
    return Resolved(
        specs=_specs(plan, identity, found, tests),
        target=identity,
        locations={**found.locations, **tests.locations, **_answers(plan), identity.digest: str(files.folder)},
        sizes=_sizes(shape, files.folder),
        files=files,
    )


def _sources(plan: Plan) -> sources.Resolved:
    """Return the prompts; with answers and no prompts, the prompts are those of the answers."""
    data = plan.dataset
    names = data.prompts or ((data.answers,) if data.answers else ())
    return sources.resolve(names, data.benchmarks_dir)


def _benchmarks(plan: Plan) -> benchmarks.Resolved:
    folder = plan.dataset.benchmarks_dir
    if folder is None:
        return benchmarks.resolve(None, plan.dataset.benchmarks)
    return benchmarks.resolve(DEMO_BENCHMARKS if folder == sources.DEMO else Path(folder), plan.dataset.benchmarks)


def _answers(plan: Plan) -> dict[str, str]:
    """Return digest -> place of the answers given, or nothing."""
    if plan.dataset.answers is None:
        return {}
    path = Path(plan.dataset.answers).expanduser()
    if not path.is_file():
        raise SourceError("no such file; --answers wants a file of conversations with the target's answers", path)
    return {checksum(path): str(path.resolve())}


def _specs(plan: Plan, target: TargetId, found: sources.Resolved, tests: benchmarks.Resolved) -> dict[str, Spec]:
    name = plan.target.name if plan.target.is_local or not plan.target.model else plan.target.model
    answers = next(iter(_answers(plan)), None)
    told = {"sources": found.sources, "benchmarks": found.benchmarks}
    first = {"prepare": _extended(PrepareSpec, plan.prepare, **told)} if found.sources else {}
    return {
        **first,
        "regenerate": _extended(
            RegenerateSpec,
            plan.regenerate,
            target=target,
            answers=answers,
            answers_bad_rows=plan.prepare.bad_rows,
            answers_bad_share=plan.prepare.bad_share,
        ),
        "cache": _extended(CacheSpec, plan.cache, target=target),
        "train": plan.train,
        "export": plan.export.but(target=plan.export.target or name),
        "evaluate": _extended(EvaluateSpec, plan.evaluate, target=target, benchmarks=tests.benchmarks),
        "benchmark": _extended(BenchmarkSpec, plan.benchmark, target=target, benchmarks=tests.benchmarks),
        "release": _extended(
            ReleaseSpec,
            plan.release,
            target=name,
            target_license=plan.target.license,
            dataset=plan.dataset.name,
            dataset_license=plan.dataset.license,
        ),
    }


def _extended(kind: type[Spec], options: Spec, **found: object) -> Spec:
    """Return the spec that options and what resolving found make up."""
    return kind.model_validate({**options.model_dump(), **found})


def _sizes(shape: TargetShape, folder: Path) -> Sizes:
    block = shape.block
    return Sizes(
        layers=shape.num_layers,
        hidden=block.hidden_size,
        intermediate=block.intermediate_size,
        heads=block.num_heads,
        kv_heads=block.num_kv_heads,
        head_dim=block.head_dim,
        vocabulary=shape.vocab_size,
        parameters=_parameters(folder),
    )


def _parameters(folder: Path) -> int:
    """Return the number of weights in a folder of safetensors, read from the headers."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        total += sum(math.prod(told["shape"]) for name, told in header.items() if name != "__metadata__")
    return total
