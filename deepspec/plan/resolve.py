"""From a plan to specs: sources and target become hashes, and where they lie is kept beside.

No path enters a spec. Everything that a stage's result depends on does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepspec.benchmark.spec import BenchmarkSpec
from deepspec.cache.spec import CacheSpec
from deepspec.disk import checksum
from deepspec.errors import SourceError
from deepspec.evaluate.spec import EvaluateSpec
from deepspec.families import TargetShape
from deepspec.families.gguf_header import another_target, is_gguf
from deepspec.families.working import working
from deepspec.formats import benchmarks
from deepspec.formats.recipe import TRAITS
from deepspec.formats.tensor_heads import check_pointer
from deepspec.plan.cost.given import Sizes
from deepspec.plan.cost.sources import stored_codec
from deepspec.plan.layers import layers_of
from deepspec.plan.plan import Plan
from deepspec.prepare import resolve as sources
from deepspec.prepare.demo import BENCHMARKS as DEMO_BENCHMARKS
from deepspec.prepare.spec import PrepareSpec
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.release.spec import ReleaseSpec
from deepspec.specs import Spec, TargetId
from deepspec.states.wanted import WhileAnswering
from deepspec.target.heads import TargetHeads, read_target
from deepspec.target.identity import identify, remembered_checksum
from deepspec.target.source import TargetFiles

_WANTS_GGUF = "export.gguf wants the GGUF file from which llama.cpp serves the target"


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A plan in which everything is named by its hash."""

    specs: Mapping[str, Spec]
    """Name of what is made -> spec; without prompts, which a draft made elsewhere does not need, none for prepare."""
    target: TargetId
    """Which target it is."""
    locations: Mapping[str, str]
    """Digest -> where it lies on this machine, for `Placement.locations`."""
    sizes: Sizes
    """Of the target, read from its config."""
    files: TargetFiles
    """The target on this machine."""


def check_sources(plan: Plan, *, remote: bool = True) -> None:
    """Check that prompts, answers, benchmarks and other files that a plan names are there.

    Args:
        plan: names them.
        remote: whether the hub and URLs are asked for those that lie there.

    Raises:
        SourceError: one is missing, empty or cannot be reached; or the GGUF file of the export is.
    """
    _sources(plan, remote=remote)
    _answers(plan)
    _gguf(plan)
    if remote or plan.dataset.benchmarks_dir is not None:
        benchmarks_of(plan)


def resolve(plan: Plan, files: TargetFiles, memo: Path, hardware: str) -> Resolved:
    """Return the specs of all stages.

    Args:
        plan: what the user decided.
        files: the target, ready.
        memo: JSON file that remembers hashes of big files.
        hardware: fingerprint of what the benchmark's times are measured on.

    Raises:
        SourceError: prompts, answers or benchmarks are missing.
        TargetError: a file of the target cannot be read.
    """
    target = read_target(files.folder)
    identity = identify(files.folder, memo)
    found = _sources(plan)
    tests = benchmarks_of(plan)
    gguf = _gguf(plan)
    served = {} if gguf is None else {remembered_checksum(gguf, memo): str(gguf)}
    within = _within(plan, target.shape)
    within = within.but(export=within.export.but(gguf=next(iter(served), None)))
    own = {identity.digest: str(files.folder)}
    return Resolved(
        specs=_specs(within, identity, found, tests, hardware),
        target=identity,
        locations={**found.locations, **tests.locations, **_answers(plan), **served, **own},
        sizes=sizes_of(target),
        files=files,
    )


def released_name(plan: Plan) -> str:
    """Return how cards and releases name the target: without a path of this machine."""
    return plan.target.name if plan.target.is_local or not plan.target.model else plan.target.model


def _within(plan: Plan, shape: TargetShape) -> Plan:
    """Return a plan whose samples are no longer than the target reads, and which says what layer shipped heads read."""
    within = plan.cache.but(max_length=min(plan.cache.max_length, shape.max_positions))
    if TRAITS[plan.train.draft.algorithm].shipped:
        within = within.but(layers=layers_of(plan, shape.num_layers))
    return plan.but(cache=within)


def _sources(plan: Plan, *, remote: bool = True) -> sources.FoundSources:
    data = plan.dataset
    names = [name for name in data.sources if remote or not sources.is_remote(name)]
    return sources.find_sources(names, data.benchmarks_dir)


def benchmarks_of(plan: Plan) -> benchmarks.FoundBenchmarks:
    """Return the benchmarks of a plan with their digests, and where they lie.

    Raises:
        SourceError: the folder has none, or the hub cannot be reached.
        UnknownNameError: a name that is not among them.
    """
    folder = plan.dataset.benchmarks_dir
    if folder is None:
        return benchmarks.find_benchmarks(None, plan.dataset.benchmarks)
    return benchmarks.find_benchmarks(
        DEMO_BENCHMARKS if folder == sources.DEMO else Path(folder), plan.dataset.benchmarks
    )


def _answers(plan: Plan) -> dict[str, str]:
    """Return digest -> place of the answers given, or nothing."""
    if plan.dataset.answers is None:
        return {}
    path = Path(plan.dataset.answers).expanduser()
    if not path.is_file():
        raise SourceError("no such file; --answers wants a file of conversations with the target's answers", path)
    check_pointer(path, SourceError)
    return {checksum(path): str(path.resolve())}


def check_gguf(plan: Plan, target: TargetShape) -> None:
    """Check that the GGUF file that a plan names is the target's; `check_sources` sees whether it is there.

    Raises:
        SourceError: it is another target's.
    """
    path = None if plan.export.gguf is None else Path(plan.export.gguf).expanduser()
    if path is None or not is_gguf(path):
        return
    if other := another_target(path, target.num_layers, target.block.hidden_size):
        raise SourceError(f"{other}; {_WANTS_GGUF}", path)


def _gguf(plan: Plan) -> Path | None:
    """Return the GGUF file that llama.cpp's form is written for, where the plan names one."""
    if plan.export.gguf is None:
        return None
    path = Path(plan.export.gguf).expanduser()
    if not path.is_file():
        raise SourceError(f"no such file; {_WANTS_GGUF}", path)
    check_pointer(path, SourceError)
    if not is_gguf(path):
        raise SourceError(f"no GGUF file; {_WANTS_GGUF}", path)
    return path.resolve()


def _specs(
    plan: Plan, target: TargetId, found: sources.FoundSources, tests: benchmarks.FoundBenchmarks, hardware: str
) -> dict[str, Spec]:
    name = released_name(plan)
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
            while_answering=_while_answering(plan),
        ),
        "cache": _extended(CacheSpec, plan.cache, target=target),
        **_greedy_specs(plan, target),
        "train": plan.train,
        "export": plan.export.but(target=plan.export.target or name),
        "evaluate": _extended(EvaluateSpec, plan.evaluate, target=target, benchmarks=tests.benchmarks),
        "benchmark": _extended(
            BenchmarkSpec, plan.benchmark, target=target, benchmarks=tests.benchmarks, hardware=hardware
        ),
        "release": _extended(
            ReleaseSpec,
            plan.release,
            target=name,
            target_license=plan.target.license,
            dataset=plan.dataset.name,
            dataset_license=plan.dataset.license,
        ),
    }


def _while_answering(plan: Plan) -> dict[str, object] | None:
    """Return what regeneration must know of a cache whose states come with the answers; None: of no such."""
    if not plan.cache.while_answering or plan.dataset.answers is not None:
        return None
    return plan.cache.model_dump(include=set(WhileAnswering.model_fields))


def _greedy_specs(plan: Plan, target: TargetId) -> dict[str, Spec]:
    """Return the specs of greedy answers to held-out prompts and of their cache; none where the plan makes none.

    The states over them are few, and stored also where training computes its own, or has engines give them.
    """
    if not plan.greedy_samples:
        return {}
    asked = plan.regenerate.but(sampling=plan.regenerate.sampling.greedy())
    alone = plan.cache.but(while_answering=False, keep_states=None)
    stored = alone.but(splits=("validation",), codec=stored_codec(plan.cache.codec))
    if plan.train.source == "engine":
        told = plan.train.model_dump(include={"engine_version", "engine_quantization"})
        stored = stored.but(states="vllm", **told)
    return {
        "regenerate-greedy": _extended(RegenerateSpec, asked, target=target, held_out=plan.greedy_samples),
        "cache-greedy": _extended(CacheSpec, stored, target=target),
    }


def _extended(kind: type[Spec], options: Spec, **found: object) -> Spec:
    """Return the spec that options and what resolving found make up."""
    return kind.model_validate({**options.model_dump(), **found})


def sizes_of(target: TargetHeads) -> Sizes:
    """Return what an estimate must know of a target."""
    shape, block = target.shape, target.shape.block
    return Sizes(
        layers=shape.num_layers,
        hidden=block.hidden_size,
        intermediate=block.intermediate_size,
        heads=block.num_heads,
        kv_heads=block.num_kv_heads,
        head_dim=block.head_dim,
        vocabulary=shape.vocab_size,
        parameters=target.parameters,
        working=working(shape.text_config, target.heads, target.weights),
        bits=target.bits,
        reads_again=bool(shape.reads_again),
    )
