"""What changes the scores."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from deepspec.formats.benchmarks import HUB_BENCHMARKS, Benchmark
from deepspec.specs import Spec, TargetId


class EvaluateOptions(Spec):
    """What a user sets of an evaluation."""

    temperatures: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(0.0, 1.0), min_length=1)
    """Each benchmark is decoded once at each."""
    samples: int | None = Field(default=None, gt=0)
    """Questions per benchmark, a seeded choice; None: all of a file, the published sizes from the hub."""
    max_new_tokens: int = Field(default=1024, gt=0)
    """Of one turn; tokens beyond are neither kept nor counted."""
    thinking: bool = False
    """Whether a template that can switch thinking leaves it on."""
    slots: int | None = Field(default=None, gt=0)
    """Tokens proposed per round; None: the draft's block size."""
    confidence_threshold: float = Field(default=0.0, ge=0, lt=1)
    """A proposal is cut before the first slot whose confidence is below this; 0: never."""
    threshold_mode: Literal["cumulative", "per_slot"] = "cumulative"
    """Confidence of a slot: the product through it; or its own, as in the public evaluator."""
    confidence_temperatures: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """One per position, dividing its confidence logit where a threshold is set: `calibration.json` of a release."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the target; auto: that of its checkpoint."""
    draft_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Precision of the draft; None: the target's."""
    seed: int = Field(default=0, ge=0)
    """Of the choice of questions, of sampling at a temperature above 0, and of the intervals."""
    shard_questions: int = Field(default=64, gt=0)
    """Questions of one shard: what a killed run redoes at most."""
    lossless_samples: int = Field(default=4, ge=0)
    """Questions decoded again by the target alone, token for token; 0: none."""
    untrained_samples: int = Field(default=4, ge=0)
    """Questions also decoded with a fresh draft of the same shape, to compare with; 0: none."""
    calibration_samples: int = Field(default=64, ge=0)
    """Prompts of the calibration split on which confidence temperatures are fitted; 0: none are."""

    contexts: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Lengths in tokens: at each, some questions' first turns are asked behind other material that fills the prompt to
    it, at the first temperature; of one that the target has no room for all are counted as left out. Empty: none."""
    context_samples: int = Field(default=8, gt=0)
    """Questions asked at each of these lengths, taken in turn from all benchmarks."""

    @field_validator("contexts")
    @classmethod
    def _ascend(cls, contexts: tuple[int, ...]) -> tuple[int, ...]:
        """Refuse lengths that are named twice or out of order."""
        if list(contexts) != sorted(set(contexts)):
            raise ValueError(f"{list(contexts)}: wanted lengths in ascending order, each once")
        return contexts

    @field_validator("temperatures")
    @classmethod
    def _differ(cls, temperatures: tuple[float, ...]) -> tuple[float, ...]:
        """Refuse one that is named twice: its samples would be counted twice."""
        if len(set(temperatures)) < len(temperatures):
            raise ValueError(f"{list(temperatures)} names a temperature twice; wanted each once")
        return temperatures

    def questions(self) -> int:
        """Return how many questions the nine benchmarks ask, all temperatures together: for estimates."""
        sizes = [benchmark.size for benchmark in HUB_BENCHMARKS.values()]
        return sum(min(size, self.samples or size) for size in sizes) * len(self.temperatures)


class EvaluateSpec(EvaluateOptions):
    """Measure how well a draft speaks for its target: quality only, no wall clock."""

    target: TargetId
    """The target that verifies."""
    benchmarks: tuple[Benchmark, ...] = Field(min_length=1)
    as_of: str | None = None
    """Moment, ISO 8601, at which it is done anew: earlier results do not serve. None: any result does."""
    baseline: str | None = None
    """Address of published scores that the new ones are compared with, question by question."""
