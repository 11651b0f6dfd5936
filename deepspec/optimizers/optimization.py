"""How a step follows from a gradient. No torch, so that specs can hold it."""

from typing import Literal, Self

from pydantic import Field, model_validator

from deepspec.specs import Spec


class Optimization(Spec):
    """Optimizer and schedule of a run."""

    learning_rate: float = Field(default=6e-4, gt=0)
    """Peak of the schedule."""
    warmup_ratio: float = Field(default=0.04, ge=0, lt=1)
    """Share of the steps that climb linearly to the peak."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """What follows: a cosine to 0; or the peak, and a linear fall to 0 at the end (warm-up, stable, decay)."""
    decay_ratio: float = Field(default=0.2, gt=0, le=1)
    """Share of the steps that fall (wsd)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW for everything; or Muon for matrices that are no tables of a vocabulary, and AdamW for the rest."""
    muon_learning_rate: float | None = Field(default=None, gt=0)
    """Peak of the schedule for Muon's matrices; None: `learning_rate`."""
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    muon_weight_decay: float = Field(default=0.1, ge=0)
    muon_scale: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """Factor of a matrix's step: 0.2·√max(rows, columns), as large as AdamW's; or √max(1, rows/columns)."""
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = Field(default=1e-8, gt=0)
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""

    @model_validator(mode="after")
    def _climbs_before_it_falls(self) -> Self:
        if self.schedule == "wsd" and self.warmup_ratio + self.decay_ratio > 1:
            raise ValueError(
                f"warmup_ratio {self.warmup_ratio} and decay_ratio {self.decay_ratio} are more than all steps "
                "together; lower one of them"
            )
        return self
