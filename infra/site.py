"""Where a run happens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from deepspec.artifacts import ArtifactRef
from deepspec.placement import Placement
from deepspec.plan.resolve import Resolved
from deepspec.report import Report
from deepspec.specs import Spec
from deepspec.stages import Stage, Work
from deepspec.store import Store
from infra.caps import Caps
from infra.engines.managed import ManagedEngines
from infra.settings import default_root, scratch_dir, secret


class FanOut(BaseModel):
    """How the shards of a stage are shared out; one worker: the stage makes them itself, in one child."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int = Field(default=1, gt=0)
    """Shards at a time; on Ray, what the cluster has room for."""
    runner: Literal["threads", "ray", "deployment"] = "threads"
    """Children here, tasks of a Ray cluster, or runs of a deployment (in a Kubernetes pool, say)."""
    address: str | None = None
    """Of the Ray cluster, or name of the deployment, such as shard/kubernetes."""


class Site(BaseModel):
    """Where a run happens: the store's root and the placement. Nothing here changes a result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: str = Field(default_factory=default_root)
    """Local folder or `s3://bucket/prefix` that artifacts are published under."""
    placement: Placement = Field(default_factory=lambda: Placement(scratch=scratch_dir()))
    engines: ManagedEngines = ManagedEngines()
    """What the run starts to answer prompts, where the placement gives no endpoints."""
    gguf: Path | None = None
    """The target as a GGUF file, for engines that serve one; known once the plan is resolved."""
    folder: Path | None = None
    """The target as a Hugging Face folder; the same."""
    limit: str | None = None
    """Name of a Prefect concurrency limit; one of its slots is held by every stage while it computes."""
    fan_out: FanOut = FanOut()
    caps: Caps = Caps()
    """What the run may use up; set by the flow from its plan."""

    @field_validator("placement", mode="before")
    @classmethod
    def _has_scratch(cls, placement: Any) -> Any:
        """Let a placement given as JSON, in a deployment say, leave the scratch folder to the machine it runs on."""
        return {"scratch": scratch_dir(), **placement} if isinstance(placement, dict) else placement

    def check_keys(self) -> None:
        """Return where every key that an endpoint names as a variable is set.

        Raises:
            SpecError: one is not; the message names it, never a value.
        """
        for endpoint in self.placement.endpoints:
            if endpoint.api_key_env:
                secret(endpoint.api_key_env)

    def work(self, stage: Stage, spec: Spec, inputs: Mapping[str, ArtifactRef], report: Report) -> Work:
        """Return a stage's work at this place."""
        return Work(
            stage=stage, spec=spec, inputs=inputs, store=Store(self.root), placement=self.placement, report=report
        )

    def at(self, resolved: Resolved) -> "Site":
        """Return the site with the places of everything that a plan names."""
        located = {**self.placement.locations, **resolved.locations}
        placement = self.placement.model_copy(update={"locations": located})
        files = resolved.files
        return self.model_copy(update={"placement": placement, "gguf": files.gguf, "folder": files.folder})
