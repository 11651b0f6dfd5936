"""What is simulated: engines, trainers, data and failures, in tokens and seconds."""

from typing import Self

from pydantic import Field, model_validator

from deepspec.engines.patience import PATIENCE_SECONDS
from deepspec.specs import Spec


class Scenario(Spec):
    """A training run on states that engines give meanwhile."""

    engines: int = Field(default=1, gt=0)
    """That are asked."""
    engine_rate: float = Field(gt=0)
    """Tokens a second that one engine reads, whatever it is asked at a time."""
    engine_start: float = Field(default=120.0, ge=0)
    """Seconds from the end of an engine until it answers again."""
    latency: float = Field(default=0.05, ge=0)
    """Seconds from the end of an engine's pass until the states are read and checked by the trainer."""
    latency_spread: float = Field(default=0.5, ge=0, le=1)
    """Share of the latency by which it varies, evenly, to both sides."""

    patience: float = Field(default=PATIENCE_SECONDS, gt=0)
    """Seconds after which a trainer ends where no engine does anything (DEEPSPEC_PATIENCE_SECONDS)."""

    ranks: int = Field(default=1, gt=0)
    """Processes that train together; a failure of one of them ends all."""
    trainer_rate: float = Field(gt=0)
    """Tokens a second that one rank trains on."""
    step_seconds: float = Field(default=0.0, ge=0)
    """What a step takes beside its tokens."""
    trainer_start: float = Field(default=120.0, ge=0)
    """Seconds from the end of a trainer until it asks engines again."""
    start_samples: int = Field(default=0, ge=0)
    """Samples that the start of a draft reads before the first step (train.bigram_samples, train.start), the first rank
    alone; a process that has a saved state to go on from reads none."""
    first_step: float = Field(default=0.0, ge=0)
    """Seconds that the first step of a process takes beyond others, engines answering already: what it loads."""
    checkpoint_every: int = Field(default=50, gt=0)
    """Steps."""
    save_seconds: float = Field(default=0.0, ge=0)
    """After which a saved state is one to go on from; training goes on meanwhile."""

    samples: int = Field(gt=0)
    """Of the training split."""
    tokens: float = Field(gt=0)
    """Mean length of a sample."""
    length_spread: float = Field(default=0.0, ge=0)
    """Standard deviation of the logarithm of lengths; 0: all are equal."""
    longest: int | None = Field(default=None, gt=0)
    """Tokens of a sample at most (cache.max_length)."""
    epochs: float = Field(default=1.0, gt=0)
    """How often each sample is trained on."""
    global_batch: int = Field(default=512, gt=0)
    """Samples of a step."""
    micro_batch: int = Field(default=1, gt=0)
    """Rows of a pass, at most."""

    state_bytes: int = Field(gt=0)
    """Of the states of one token."""
    ahead_bytes: int = Field(default=8 << 30, gt=0)
    """Of states that were asked for and are not read yet, in one rank (DEEPSPEC_STAGING_GB)."""
    read_bytes: int = Field(default=4 << 30, gt=0)
    """Of states that are read and not computed yet, in one rank."""
    readers: int = Field(default=4, gt=0)
    """Threads that read, in one rank."""
    kept_bytes: int = Field(default=0, ge=0)
    """Of states that are kept for later (train.keep_states), all ranks together."""

    engine_mtbf: float | None = Field(default=None, gt=0)
    """Mean seconds between two failures of one engine; None: it never fails."""
    trainer_mtbf: float | None = Field(default=None, gt=0)
    """Mean seconds between two failures of one rank; None: it never fails."""
    seconds: float = Field(default=172_800.0, gt=0)
    """After which the simulation ends, if training has not."""
    seed: int = 0
    """Of lengths, order, latencies, jitter and failures."""
    grain: int = Field(default=1, gt=0)
    """Samples that one simulated request stands for."""

    @model_validator(mode="after")
    def _cut_by_grain(self) -> Self:
        if self.global_batch % self.grain or self.global_batch // self.grain < self.ranks:
            raise ValueError(
                f"a request stands for {self.grain} samples (grain): a step of {self.global_batch} has no whole number "
                f"of such, or fewer than its {self.ranks} ranks; take a smaller one"
            )
        return self

    @property
    def total_steps(self) -> int:
        """Return the optimizer steps of the whole run; at least one."""
        return max(1, round(self.epochs * self.samples / self.global_batch))
