"""Calling stage tasks in order: refresh what the store lost, remember what each step gave and how long it took."""

import resource
import time
from collections.abc import Mapping, Sequence
from typing import Any

from prefect import Task
from pydantic import BaseModel, ConfigDict

from deepspec.artifacts import ArtifactRef, open_artifact
from deepspec.catalog import find_kind
from deepspec.errors import NotPublishedError
from deepspec.overview.story import story
from deepspec.plan.budget import plan_lines
from deepspec.plan.plan import Plan
from deepspec.plan.resolve import Resolved
from deepspec.specs import Spec
from deepspec.stages import GREEDY, PRODUCTS, address, find_fresh, stage_named
from deepspec.store import Store
from flows.choices import Choices
from infra.caps import caps_of
from infra.site import Site
from tasks.report import PrefectReport
from tasks.resolve import resolve_plan
from tasks.run import label_run, show_link
from tasks.shards import make_shards
from tasks.stages import STAGE_TASKS


class StageRun(BaseModel):
    """One stage of a run that is done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    """Name of what was made: that of its stage, and for greedy answers and their cache `-greedy` behind it."""
    state: str
    """`Cached`, or `Completed` where the stage did something."""
    seconds: float
    processor: float = 0.0
    """Seconds of the processor that its processes took, all cores together, whatever else the machine did."""
    ref: ArtifactRef


class Chain:
    """The stages of one run on one site.

    Args:
        specs: name of what the run makes -> its spec.
        site: where to run.
        given: stage name -> name of a published artifact that stands in for that of the stage.
        plan: what the specs were resolved from, where shards may run on other machines.
        expected: what the plan comes to, in lines for the run's page.
    """

    def __init__(
        self,
        specs: Mapping[str, Spec],
        site: Site,
        given: Mapping[str, str | None] | None = None,
        plan: Plan | None = None,
        expected: Sequence[str] = (),
    ) -> None:
        """Start with nothing done."""
        self._specs = specs
        self._given = given or {}
        self._plan = plan
        self._site = site
        self._store = Store(site.root)
        self._expected = expected
        self._page: PrefectReport | None = None
        self.steps: list[StageRun] = []

    def run(self, name: str, *inputs: ArtifactRef, **named: ArtifactRef) -> ArtifactRef:
        """Return what a stage makes: Prefect's cached reference where the store still holds it fresh.

        Args:
            name: of what is made.
            inputs: those that are called by their kind.
            named: others.
        """
        stage, spec = stage_named(PRODUCTS[name].stage), self._specs[name]
        given = {ref.kind: ref for ref in inputs} | named
        task: Task[..., ArtifactRef] = STAGE_TASKS[name]
        fresh = find_fresh(stage, spec, given, self._store) is not None
        start, before = time.monotonic(), processor_seconds()
        if not fresh and stage.sharded and self._site.fan_out.workers > 1:
            make_shards(name, spec, given, self._site, self._plan)
        state: Any = task.with_options(refresh_cache=not fresh)(spec, given, self._site, return_state=True)
        ref, name_of_state = state.result(), "Cached" if fresh else state.name or ""
        current = find_fresh(stage, spec, given, self._store) or ref
        spent = {"seconds": time.monotonic() - start, "processor": processor_seconds() - before}
        self.steps.append(StageRun(stage=name, state=name_of_state, ref=current, **spent))
        show_link(name, current)
        self._tell()
        self._site = self._site.model_copy(update={"caps": self._site.caps.at(current.prefix)})
        return current

    def caches(self) -> dict[str, ArtifactRef]:
        """Return what training reads, by name: the target cache, the one named or made from what comes before it; and
        that of greedy answers, where there are to be some.
        """
        named = self._named("cache")
        if named is not None:
            return {"target_cache": named}
        prompts = self.run("prepare")
        answers = self.run("regenerate", prompts)
        greedy = self.run("regenerate-greedy", prompts) if self._holds_out(prompts) else None
        found = {"target_cache": self.run("cache", answers)}
        return found if greedy is None else {**found, "greedy_cache": self.run("cache-greedy", greedy)}

    def draft(self) -> ArtifactRef:
        """Return the draft: the one named, or the stage's, trained on the cache."""
        return self._named("train") or self.run("train", **self.caches())

    def only(self, stage: str) -> StageRun:
        """Make what one stage makes of what is published, and return the first of its steps."""
        names = [name for name, product in PRODUCTS.items() if product.stage == stage and self._makes(name)]
        for name in names:
            self.run(name, **self.inputs(name))
        return self.steps[-len(names)]

    def _tell(self) -> None:
        """Show the run's story as far as it has come: one text above all that its tasks show, with their pictures."""
        rows = [
            {"stage": step.stage, "state": step.state, "took": f"{step.seconds:.1f} s", "artifact": step.ref.prefix}
            for step in self.steps
        ]
        made = [open_artifact(self._store, step.ref, self._site.placement.scratch) for step in self.steps]
        self._page = self._page or PrefectReport("run")
        self._page.markdown("story", story("What this run did", self._expected, rows, made).markdown())

    def published(self, name: str) -> ArtifactRef:
        """Return what a stage made, fresh, with all that it was made from.

        Raises:
            NotPublishedError: the stage has to run first.
        """
        named = self._named(name)
        if named is not None:
            return named
        stage, given = stage_named(PRODUCTS[name].stage), self.inputs(name)
        found = find_fresh(stage, self._specs[name], given, self._store)
        if found is None:
            where = address(stage, self._specs[name], {each: ref.address for each, ref in given.items()})
            missing = f"{self._store.uri(f'{stage.kind}/{where}')} is not published or stale"
            raise NotPublishedError(f"{missing}; run first: deepspec {stage.name} (or deepspec run for all stages)")
        return found

    def inputs(self, name: str) -> dict[str, ArtifactRef]:
        """Return the published inputs, by name, of what a stage makes."""
        wanted = PRODUCTS[name].inputs.items()
        return {each: self.published(maker) for each, maker in wanted if self._makes(maker)}

    def _makes(self, name: str) -> bool:
        """Return whether this run makes something, or was given it: all but greedy answers always."""
        return name not in GREEDY or (name in self._specs and self._holds_out(self.published("prepare")))

    def _holds_out(self, prompts: ArtifactRef) -> bool:
        """Return whether greedy answers are wanted, and there is a prompt for them: a share of few may be none."""
        if "regenerate-greedy" not in self._specs:
            return False
        counts = open_artifact(self._store, prompts, self._site.placement.scratch).counts
        return bool(counts.get("splits", {}).get("validation"))

    def _named(self, name: str) -> ArtifactRef | None:
        """Return the artifact that the user named for a stage, if any."""
        given = self._given.get(name)
        return None if given is None else find_kind(self._store, given, stage_named(name).kind)


def processor_seconds() -> float:
    """Return the seconds of the processor that children of this process took, as far as they have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def begin(plan: Plan, site: Site, only: str | None = None) -> tuple[Resolved, Site]:
    """Resolve a plan; the run is tagged with target, algorithm and plan, and the site knows its caps."""
    caps = caps_of(plan.limits, spent=label_run(tags_of(plan)))
    return resolve_plan(plan, site.model_copy(update={"caps": caps}), only)


def tags_of(plan: Plan) -> tuple[str, ...]:
    """Return what a run can be searched for by."""
    return (f"target:{plan.target.name}", f"algorithm:{plan.train.draft.algorithm}", f"plan:{plan.digest}")


def chain_of(choices: Choices, site: Site, only: str | None = None) -> Chain:
    """Return the chain of all stages for what was chosen, of which `only` one may be made."""
    plan = choices.plan
    resolved, site = begin(plan, site, only)
    expected = plan_lines(plan, Store(site.root), resolved.sizes)
    return Chain(resolved.specs, site, {"cache": plan.dataset.cache, "train": plan.draft}, plan, expected)
