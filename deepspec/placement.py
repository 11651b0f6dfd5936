"""Where and how wide a stage runs: devices, engines and scratch, which do not change its result."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from deepspec.errors import TargetError

PARTS_LIMIT = 64 << 30
"""Bytes of cache parts that a machine keeps at hand, where it is told no other limit."""
STAGING_LIMIT = 8 << 30
"""Bytes of states that engines have been asked for and no part holds yet, where a machine is told no other limit."""

SPREAD = "spread"
"""A device that lays the layers of one target over all cards."""
DEVICE = re.compile(r"cpu|cuda(:\d{1,4})?|auto|spread")


class Endpoint(BaseModel):
    """One OpenAI-compatible engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    """Base URL up to and including `/v1`."""
    model: str
    """Name under which the engine serves the target."""
    start_seconds: float = Field(default=0.0, ge=0)
    """How long it may take until it is back after it ended, where the run itself starts it again; 0: nobody knows."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself never travels."""
    api_key_block: str | None = None
    """Name of the orchestrator's secret that holds the key, instead of a variable."""
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """The key, filled in by the process that uses it; never written anywhere."""

    @property
    def key_variable(self) -> str | None:
        """Return the name of the environment variable in which the process that asks finds the key."""
        if self.api_key_block is None:
            return self.api_key_env
        return f"DEEPSPEC_KEY_{re.sub('[^A-Z0-9]', '_', self.api_key_block.upper())}"

    @model_validator(mode="after")
    def _says_no_secret(self) -> Self:
        url = urlsplit(self.url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("an endpoint's URL is not one; wanted http://HOST:PORT/v1 or https://…")
        if url.username or url.password:
            raise ValueError("an endpoint's URL holds a user or password; give keys by name (--key-env, --key-block)")
        if self.api_key_env and self.api_key_block:
            raise ValueError("an endpoint's key has two names; give --key-env or --key-block")
        return self


class Placement(BaseModel):
    """Where and how wide a stage runs: what does not change its result, so it is not hashed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = "cpu"
    """Torch device of the models: cpu; cuda, of which each process takes a card; cuda:N; auto, which is cuda where
    there is a card and cpu elsewhere; or spread, which lays one large target over all cards."""
    threads: int | None = Field(default=None, gt=0)
    """Torch threads per process; None leaves the library's choice."""
    processes: int = Field(default=1, gt=0)
    """Training processes, or capture workers."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers that training tells, as accelerate calls them: tensorboard, wandb, mlflow, …."""
    micro_batch: int | None = Field(default=None, gt=0)
    """Rows per forward pass in training, a sample each unless packed; None lets a memory preflight choose."""
    fetch_every: int | None = Field(default=None, gt=0)
    """Training steps whose losses are fetched from the device together; None: each on a CPU, sixteen elsewhere."""
    readers: int | None = Field(default=None, gt=0)
    """Threads that read training samples; None: one on a CPU, up to four for a card."""
    profile: bool = False
    """Training keeps a trace of three warm steps, by torch.profiler."""
    pack: bool = False
    """Training puts short samples together into rows no longer than a step's longest sample."""
    batch: int | None = Field(default=None, gt=0)
    """Sequences decoded together in evaluation; None: eight on a CPU, on a card as many as its memory holds."""
    endpoints: tuple[Endpoint, ...] = ()
    """Engines that serve the target."""
    drafting: tuple[Endpoint, ...] = ()
    """Engines that serve the target with the draft."""
    scratch: Path = Path(".deepspec/scratch")
    """Local folder for ledgers, checkpoints in flight and fetched files."""
    parts_limit: int = Field(default=PARTS_LIMIT, gt=0)
    """Bytes of cache parts, fetched or computed, that scratch holds at most."""
    staging_limit: int = Field(default=STAGING_LIMIT, gt=0)
    """Bytes of states that engines may have been asked for before parts hold them."""
    patience: float | None = Field(default=None, gt=0)
    """Seconds that a run waits while nothing is under way at any endpoint; None: ten minutes. Its own engines it waits
    for as long as they may take to start, in any case."""
    locations: Mapping[str, str] = Field(default_factory=dict)
    """Digest of a target, source or benchmark -> where it lies on this machine."""
    keep_errors: bool = False
    """Commit answers though some rows failed with errors that could pass."""

    @field_validator("device")
    @classmethod
    def _is_known(cls, device: str) -> str:
        if not DEVICE.fullmatch(device):
            raise ValueError(f"unknown device {device!r}; known: cpu, cuda, cuda:N, auto, spread")
        return device

    def target_folder(self, digest: str) -> Path:
        """Return where a target lies on this machine.

        Raises:
            TargetError: the placement does not say.
        """
        if digest not in self.locations:
            raise TargetError(
                f"target {digest} has no location on this machine; give --target its folder or preset (a stage that is "
                "called from Python: placement.locations)"
            )
        return Path(self.locations[digest])

    @property
    def draft_device(self) -> str:
        """Return where a draft is trained, which is never spread."""
        return "cuda" if self.device == SPREAD else self.device
