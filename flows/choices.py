"""What a person says about a run: on the command line, in the form of the UI, or as a deployment's parameters."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from deepspec.checkpoint.options import OBJECTIVE, RECIPE, of_algorithm
from deepspec.errors import SpecError
from deepspec.formats.recipe import TRAITS, AlgorithmName
from deepspec.placement import Endpoint, Placement
from deepspec.plan import presets
from deepspec.plan.plan import Plan
from deepspec.specs import Spec
from infra.engines.managed import ManagedEngines, kind_named
from infra.settings import named_root, parts_limit, patience, scratch_dir, staging_limit
from infra.site import Site

SMOKE_STEPS = 4


class Choices(Spec):
    """What to make. None and empty leave a value to the presets and the defaults."""

    target: str = "smollm2-135m"
    """Preset, hub id ORG/MODEL, folder, or own YAML file."""
    algorithm: AlgorithmName = "dspark"
    dataset: str | None = None
    """Dataset preset; None: demo, unless prompts, answers or a draft are given."""
    size: str | None = None
    """Size preset (minutes, laptop, hour); None: the published sizes."""
    prompts: tuple[str, ...] = ()
    """JSONL or parquet files, URLs, or hub dataset ids."""
    answers: str | None = None
    """File of answers that the target gave before: nothing is asked."""
    benchmarks_dir: str | None = None
    """Folder of benchmark files with rows {"turns": […]}."""
    draft: str | None = None
    """Published draft that stands in for a trained one: nothing is asked, cached or trained."""
    states_while_answering: bool = False
    """Whether a vLLM engine gives the states of the cache with the answers, in one pass."""
    overrides: tuple[str, ...] = ()
    """section.field=value each; `deepspec fields` lists every field."""
    smoke: int | None = Field(default=None, ge=8)
    """Run everything on this many samples."""

    @property
    def label(self) -> str:
        """Return a short name for runs: a target's folder without those above it."""
        return f"{Path(self.target).name}-{self.algorithm}"

    @cached_property
    def plan(self) -> Plan:
        """Return the plan: presets, then what is said here, then the overrides. It is made once and goes with them.

        A command and the flow that it runs have the same choices, hence one plan. To a deployment choices come as JSON,
        and it makes its own.

        Raises:
            SpecError: names or values that make no sense.
        """
        dataset = self.dataset or (None if self.prompts or self.answers or self.draft else "demo")
        parts: list[Mapping[str, Any]] = [presets.target(self.target)]
        if dataset:
            parts.append(presets.load("datasets", dataset))
        size = self.size or ("minutes" if dataset == "demo" else None)
        if size:
            part = presets.load("sizes", size)
            ours = size in presets.names("sizes")  # of a file of the user's own each field was asked for
            parts.append(_sized(part, presets.laid([self._told()], self.overrides)) if ours else part)
        parts += [self._told(), *([_smoke(self.smoke)] if self.smoke else [])]
        return presets.build_plan(parts, self.overrides)

    def _told(self) -> dict[str, Any]:
        dataset: dict[str, Any] = {}
        if self.prompts:
            dataset |= {"name": "own", "prompts": list(self.prompts)}
        if self.answers:
            dataset |= {"name": "own", "answers": self.answers, "prompts": []}
        if self.benchmarks_dir:
            dataset["benchmarks_dir"] = self.benchmarks_dir
        states = {"cache": {"states": "vllm", "while_answering": True}} if self.states_while_answering else {}
        return {"dataset": dataset, "draft": self.draft, "train": {"draft": {"algorithm": self.algorithm}}, **states}


def named_endpoints(
    urls: list[str],
    model: str | None,
    key_env: str | None = None,
    key_block: str | None = None,
    option: str = "--endpoint",
) -> tuple[Endpoint, ...]:
    """Return engines that serve one model, with the name of the key that opens them.

    Raises:
        SpecError: there are some, and the model's name is missing; or a URL is none, or holds a password.
    """
    if urls and not model:
        raise SpecError("--endpoint needs --model, the name under which the engines serve the target")
    told = {"model": model, "api_key_env": key_env, "api_key_block": key_block}
    return tuple(presets.validated(Endpoint, {"url": url, **told}, option) for url in urls)


def managed_engines(
    kind: str | None, count: int | None = None, gpus: Sequence[str] = (), arguments: str = ""
) -> ManagedEngines:
    """Return engines that the run starts itself.

    Raises:
        UnknownNameError: there is no such kind.
    """
    if kind is not None:
        kind_named(kind)
    told = {"count": count, "gpus": gpus, "arguments": arguments}
    return presets.validated(ManagedEngines, told if kind is None else {"kind": kind, **told}, "--engine")


def choose_site(
    root: str | None = None,
    endpoints: tuple[Endpoint, ...] = (),
    engines: ManagedEngines = ManagedEngines(),  # noqa: B008 - frozen
    **placed: Any,
) -> Site:
    """Return where a run happens.

    Args:
        root: the store; None: the default.
        endpoints: engines that run.
        engines: those to start where none run.
        placed: further fields of `Placement`.

    Raises:
        SpecError: engines are to be started, though some run; or a device that there is not.
    """
    if endpoints and engines != ManagedEngines():
        raise SpecError("--engine starts engines and --endpoint names running ones; give one of the two")
    limits = {"parts_limit": parts_limit(), "staging_limit": staging_limit(), "patience": patience()}
    told = {"endpoints": endpoints, "scratch": scratch_dir(), **limits, **placed}
    placement = presets.validated(Placement, told, "the place of a run")
    return Site(root=named_root(root), placement=placement, engines=engines)


def _sized(size: Mapping[str, Any], told: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a plan that a size is, without what the algorithm has not: a size is made for all of them.

    Args:
        size: of a preset.
        told: what was said beside it, the algorithm among it. What is wrong there is refused where the plan is made.
    """
    train = told["train"]
    draft = train["draft"] if isinstance(train, Mapping) else None
    said = draft["algorithm"] if isinstance(draft, Mapping) else None
    algorithm = next((name for name in TRAITS if name == said), None)
    if algorithm is None:
        return size
    tables = {"draft": RECIPE, "objective": OBJECTIVE}
    own = {name: of_algorithm(algorithm, size["train"][name], tables[name]) for name in tables if name in size["train"]}
    return {**size, "train": {**size["train"], **own}}


def _smoke(samples: int) -> dict[str, Any]:
    """Return a plan's sizes for trying everything out on a few samples."""
    return {
        "prepare": {"max_samples": samples},
        "regenerate": {"sampling": {"max_tokens": 32}},
        "train": {"steps": SMOKE_STEPS, "global_batch": 2, "validation_samples": 4, "greedy_samples": 4},
        "evaluate": {"samples": 2, "max_new_tokens": 16},
        "benchmark": {"samples": 2, "max_new_tokens": 16},
    }
