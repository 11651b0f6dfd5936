"""What a command line says about a run, as a plan and a site."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepspec.artifacts import Endpoint, Placement
from deepspec.errors import SpecError
from deepspec.plan import presets
from deepspec.plan.plan import Plan
from infra.settings import default_root, scratch_dir
from infra.work import Site

SMOKE_STEPS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """The options that all commands about a run share; `None` leaves a value to the presets and defaults."""

    target: str = "smollm2-135m"
    algorithm: str = "dspark"
    dataset: str | None = None
    size: str | None = None
    prompts: tuple[str, ...] = ()
    answers: Path | None = None
    benchmarks_dir: Path | None = None
    overrides: tuple[str, ...] = ()
    smoke: int | None = None
    root: str | None = None
    device: str = "cpu"
    threads: int | None = None
    processes: int = 1
    endpoints: tuple[str, ...] = ()
    model: str | None = None
    key_env: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def plan(self) -> Plan:
        """Return the plan: presets, then options, then `--set`.

        Raises:
            SpecError: names or values that make no sense.
        """
        dataset = self.dataset or (None if self.prompts or self.answers else "demo")
        parts: list[Mapping[str, Any]] = [presets.target(self.target)]
        if dataset:
            parts.append(presets.load("datasets", dataset))
        size = self.size or ("laptop" if dataset == "demo" else None)
        if size:
            parts.append(presets.load("sizes", size))
        parts += [self._told(), *([_smoke(self.smoke)] if self.smoke else [])]
        return presets.build_plan(parts, self.overrides)

    def site(self) -> Site:
        """Return where the run happens."""
        placement = Placement(
            device=self.device,
            threads=self.threads,
            processes=self.processes,
            endpoints=self._endpoints(),
            scratch=scratch_dir(),
        )
        return Site(root=self.root or default_root(), placement=placement)

    def _told(self) -> dict[str, Any]:
        dataset: dict[str, Any] = {}
        if self.prompts:
            dataset |= {"name": "own", "prompts": list(self.prompts)}
        if self.answers:
            dataset |= {"name": "own", "answers": str(self.answers), "prompts": []}
        if self.benchmarks_dir:
            dataset["benchmarks_dir"] = str(self.benchmarks_dir)
        return {"dataset": dataset, "train": {"draft": {"algorithm": self.algorithm}}}

    def _endpoints(self) -> tuple[Endpoint, ...]:
        if self.endpoints and not self.model:
            raise SpecError("--endpoint needs --model, the name under which the engines serve the target")
        return tuple(Endpoint(url=url, model=str(self.model), api_key_env=self.key_env) for url in self.endpoints)


def _smoke(samples: int) -> dict[str, Any]:
    """Return a plan's sizes for trying everything out on a few samples."""
    return {
        "prepare": {"max_samples": samples},
        "regenerate": {"sampling": {"max_tokens": 32}},
        "train": {"steps": SMOKE_STEPS, "global_batch": 2, "validation_samples": 4},
        "evaluate": {"samples": 2, "max_new_tokens": 16},
        "benchmark": {"samples": 2, "max_new_tokens": 16},
    }
