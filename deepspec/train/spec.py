"""What changes the result of training."""

import math
from typing import Literal, Self

from pydantic import ByteSize, Field, model_validator

from deepspec.optimizers.optimization import Optimization
from deepspec.specs import NOT_ADDRESSED
from deepspec.start.beginning import Beginning

LOOKS = 20
"""Looks at the held-out slice in a run, where the spec names no other pace."""


class TrainSpec(Beginning, Optimization):
    """Fit a draft model to the cached states of a target.

    Layers, sizes and identity of the target come from the cache.
    """

    source: Literal["cache", "online", "rolling", "engine"] = "cache"
    """Where hidden states come from: stored; from the target, sample by sample; from it, part by part; or from engines
    that serve it meanwhile."""
    engine_version: str | None = None
    """Version of the engines whose states they are; None: asked of them when a run begins."""
    engine_quantization: str | None = None
    """How the engines quantise a target whose checkpoint is not (fp8, …); None: not at all."""
    keep_states: ByteSize = Field(default=ByteSize(0), ge=0, json_schema_extra=NOT_ADDRESSED)
    """Bytes of states from engines that are kept in scratch, for later epochs and for a run that goes on: 200GB, 2TB;
    0: none."""
    on_corrupt: Literal["stop", "quarantine"] = "stop"
    """A stored sample that does not match its checksum: stop, or list it and let it supervise nothing."""

    epochs: float = Field(default=10.0, gt=0)
    """Passes over the training split."""
    steps: int | None = Field(default=None, gt=0)
    """Optimizer steps; where given, `epochs` is not read."""
    global_batch: int = Field(default=512, gt=0)
    """Samples per optimizer step, over all ranks and micro-batches."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the forward and backward pass; master weights and optimizer state are fp32 in both."""

    validate_every: int | None = Field(default=None, gt=0)
    """Steps between looks at the validation split; None: twenty looks a run. There is always one at the last step."""
    untrained_look: bool = True
    """Whether there is one before the first step, too, at what training begins with."""
    validation_samples: int = Field(default=64, ge=0)
    """Held-out samples of each look, at most; 0: none is taken."""
    greedy_samples: int = Field(default=256, ge=0)
    """Held-out prompts that the target answers once more at temperature 0, at most, where the answers are sampled
    otherwise; each look walks over their rounds, too. 0: none."""
    walked_tokens: int = Field(default=512, ge=0)
    """Answer tokens of each of them over which accepted length is walked, at most; 0: it is not."""
    watch: Literal["accepted_length", "loss"] = "accepted_length"
    """By what looks are held against each other: the accepted length that decoding would have, or the loss."""
    patience: int | None = Field(default=None, gt=0)
    """Looks that are no better than the best one after which training stops; None: never."""
    keep: Literal["last", "best"] = "last"
    """Which weights become the draft: those of the last step, or of the best look."""
    skip_limit: int = Field(default=10, ge=0)
    """Steps in a row that may be skipped because loss or gradients are not finite."""
    window: int = Field(default=8, gt=0)
    """Cache parts among which samples are shuffled."""

    checkpoint_every: int = Field(default=50, gt=0, json_schema_extra=NOT_ADDRESSED)
    """Steps between saved states."""
    keep_checkpoints: int = Field(default=2, gt=0, json_schema_extra=NOT_ADDRESSED)
    """Saved states kept; the one before the last is used where the last is damaged."""
    keep_every: int | None = Field(default=None, gt=0, json_schema_extra=NOT_ADDRESSED)
    """Beside them, the states of every so many steps are kept until the draft is published; None: no others."""
    parity_samples: int = Field(default=2, ge=0, json_schema_extra=NOT_ADDRESSED)
    """Cached samples whose states the target computes again before the first step; they must agree. 0: none."""

    def look_every(self, steps: int) -> int:
        """Return the steps between looks at the validation split in a run of so many."""
        return self.validate_every or math.ceil(steps / LOOKS)

    def looks(self, steps: int) -> int:
        """Return how many looks there are in a run of so many steps."""
        return (math.ceil(steps / self.look_every(steps)) + self.untrained_look) if self.validation_samples else 0

    @model_validator(mode="after")
    def _engine_is_asked(self) -> Self:
        if self.source != "engine" and (self.engine_version or self.engine_quantization or self.keep_states):
            raise ValueError(
                "engine_version, engine_quantization and keep_states are of an engine; set train.source=engine"
            )
        return self

    @model_validator(mode="after")
    def _judged(self) -> Self:
        if self.validation_samples == 0 and (self.patience or self.keep == "best"):
            raise ValueError("patience and keep=best judge by the validation split; set validation_samples above 0")
        if self.walked_tokens == 0 and self.watch == "accepted_length" and (self.patience or self.keep == "best"):
            raise ValueError(
                "patience and keep=best go by the accepted length; set walked_tokens above 0, or watch=loss"
            )
        return self
