"""speed.json: what a measurement of the wall clock found, typed and versioned."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from deepspec.errors import CorruptArtifactError
from deepspec.formats.engine_speed import EngineSpeed
from deepspec.formats.numbers import Frozen
from deepspec.formats.served import UnderLoad

VERSION: Literal[1] = 1
SPEED = "speed.json"
"""Name of the file in the artifact."""


class BatchSpeed(Frozen):
    """Speculative against plain decoding at one batch size: medians of interleaved pairs of runs."""

    batch: int
    tokens_per_second: float
    """Of all rows together; reading the prompts is not in it."""
    plain_tokens_per_second: float
    speedup: float
    """Median of the pairs' ratios of tokens per second."""
    spread: float
    """Largest over smallest speed-up of the pairs."""
    tokens_per_round: float
    """Generated tokens per round and sample."""
    round_seconds: float
    """Of one round of the whole batch, all that belongs to it."""
    round_cost: float
    """Seconds of a round over seconds of a plain step: the accepted length at which both sides are equally fast."""
    shares: dict[str, float]
    """Part of the loop (draft, verify, sample, other) -> share of the time."""
    plain_shares: dict[str, float]
    prefill_seconds: float

    def row(self) -> dict[str, Any]:
        """Return one row of the table that people read."""
        return {
            "batch": self.batch,
            "tokens/s": f"{self.tokens_per_second:.1f}",
            "plain tokens/s": f"{self.plain_tokens_per_second:.1f}",
            "speed-up": f"{self.speedup:.2f}",
            "tokens per round": f"{self.tokens_per_round:.2f}",
            "break-even": f"{self.round_cost:.2f}",
            **{name: f"{share:.0%}" for name, share in self.shares.items()},
        }


class LoadSpeed(Frozen):
    """Throughput to expect at one load, by replay of recorded rounds: the target's passes and the draft's time."""

    requests: int
    plain_tokens_per_second: float
    fixed_tokens_per_second: float
    """Every proposal verified whole."""
    scheduled_tokens_per_second: float
    """As much of each proposal verified as the prefix scheduler admits."""

    @property
    def speedups(self) -> tuple[float, float]:
        """Return how much faster than plain decoding whole and scheduled proposals are."""
        plain = self.plain_tokens_per_second
        return self.fixed_tokens_per_second / plain, self.scheduled_tokens_per_second / plain

    def row(self) -> dict[str, Any]:
        """Return one row of the table of what to expect under load."""
        whole, scheduled = self.speedups
        return {
            "requests": self.requests,
            "plain tokens/s": f"{self.plain_tokens_per_second:.1f}",
            "whole proposals": f"{whole:.2f} x",
            "scheduled": f"{scheduled:.2f} x",
        }


class Speed(Frozen):
    """speed.json."""

    version: Literal[1] = VERSION
    algorithm: str
    draft: str
    """Address of the draft's artifact."""
    target: str
    """Digest of the target."""
    hardware: str
    """Fingerprint of the machine."""
    engine: str
    """What ran both sides."""
    threads: int
    slots: int
    temperature: float
    batches: tuple[BatchSpeed, ...]
    loads: tuple[LoadSpeed, ...] = ()
    step_seconds: dict[int, float] = Field(default_factory=dict)
    """Tokens in a pass of the target -> its seconds, measured here."""
    served: EngineSpeed | None = None
    """None: no engine served the draft."""
    under_load: UnderLoad | None = Field(default=None, exclude_if=lambda found: found is None)
    """None: no engine was measured under load."""

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each batch size."""
        return [each.row() for each in self.batches]


def read_speed(path: Path) -> Speed:
    """Return the measurement in a file.

    Raises:
        CorruptArtifactError: it is not one, or of another version.
    """
    try:
        return Speed.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise CorruptArtifactError(f"{path} is not a speed.json of version {VERSION}: {error}") from error
