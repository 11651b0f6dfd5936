"""One Prefect task per stage. What to retry and what to cache; no logic, no torch."""

from collections.abc import Mapping

from prefect import Task, task

from deepspec.artifacts import ArtifactRef
from deepspec.benchmark.spec import BenchmarkSpec
from deepspec.cache.spec import CacheSpec
from deepspec.evaluate.spec import EvaluateSpec
from deepspec.export.spec import ExportSpec
from deepspec.prepare.spec import PrepareSpec
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.release.spec import ReleaseSpec
from deepspec.train.spec import TrainSpec
from infra.site import Site
from tasks.perform import Refs, perform
from tasks.policy import stage_options


@task(**stage_options("prepare"))
def prepare_prompts(spec: PrepareSpec, inputs: Refs, site: Site) -> ArtifactRef:
    """Publish the prompts: deduplicated, split, every dropped row counted."""
    return perform("prepare", spec, inputs, site)


@task(**stage_options("regenerate"))
def regenerate_answers(spec: RegenerateSpec, inputs: Refs, site: Site) -> ArtifactRef:
    """Publish the answers that the target gives to the prompts."""
    return perform("regenerate", spec, inputs, site)


@task(**stage_options("regenerate", "regenerate-greedy"))
def regenerate_greedy(spec: RegenerateSpec, inputs: Refs, site: Site) -> ArtifactRef:
    """Publish the target's greedy answers to held-out prompts."""
    return perform("regenerate", spec, inputs, site, named="regenerate-greedy")


@task(**stage_options("cache"))
def cache_target(spec: CacheSpec, inputs: Refs, site: Site) -> ArtifactRef:
    """Publish the target's hidden states over the answers."""
    return perform("cache", spec, inputs, site)


@task(**stage_options("cache", "cache-greedy"))
def cache_greedy(spec: CacheSpec, inputs: Refs, site: Site) -> ArtifactRef:
    """Publish the target's hidden states over its greedy answers."""
    return perform("cache", spec, inputs, site, named="cache-greedy")


@task(**stage_options("train"))
def train_draft(spec: TrainSpec, inputs: Refs, site: Site) -> ArtifactRef:
    """Publish a draft model fitted to the cached states."""
    return perform("train", spec, inputs, site)


@task(**stage_options("export"))
def export_draft(spec: ExportSpec, inputs: Refs, site: Site) -> ArtifactRef:
    """Publish the draft in the forms that engines load."""
    return perform("export", spec, inputs, site)


@task(**stage_options("evaluate"))
def evaluate_draft(spec: EvaluateSpec, inputs: Refs, site: Site) -> ArtifactRef:
    """Publish the draft's scores: acceptance, and the check that decoding is lossless."""
    return perform("evaluate", spec, inputs, site)


@task(**stage_options("benchmark"))
def benchmark_draft(spec: BenchmarkSpec, inputs: Refs, site: Site) -> ArtifactRef:
    """Publish the draft's wall-clock speed on this hardware."""
    return perform("benchmark", spec, inputs, site)


@task(**stage_options("release"))
def release_draft(spec: ReleaseSpec, inputs: Refs, site: Site) -> ArtifactRef:
    """Publish the release: engine folders, model card and report."""
    return perform("release", spec, inputs, site)


STAGE_TASKS: Mapping[str, Task[..., ArtifactRef]] = {
    "prepare": prepare_prompts,
    "regenerate": regenerate_answers,
    "regenerate-greedy": regenerate_greedy,
    "cache": cache_target,
    "cache-greedy": cache_greedy,
    "train": train_draft,
    "export": export_draft,
    "evaluate": evaluate_draft,
    "benchmark": benchmark_draft,
    "release": release_draft,
}
"""Name of what a run makes -> its task."""
