"""What changes the prompts: the sources, and how rows are chosen, cleaned and split."""

from typing import Literal, Self

from pydantic import Field, model_validator

from deepspec.lines.bad_rows import DEFAULT_SHARE, BadShare
from deepspec.specs import Spec


class Splits(Spec):
    """Shares of the samples that training does not see; each sample's split is a function of its id and the seed."""

    validation: float = Field(default=0.04, ge=0, lt=1)
    calibration: float = Field(default=0.03, ge=0, lt=1)
    test: float = Field(default=0.03, ge=0, lt=1)

    @model_validator(mode="after")
    def _leave_some(self) -> Self:
        held_out = self.validation + self.calibration + self.test
        if held_out >= 1:
            raise ValueError(
                f"validation + calibration + test is {held_out:g}, so nothing is left to train on; lower them"
            )
        return self


class Source(Spec):
    """One file or dataset of rows. Where it lies is in `Placement.locations`, under its digest."""

    digest: str
    """`xxh3:…` of a file's bytes; `hub:REVISION/CONFIG/SPLIT` of a Hugging Face dataset."""
    name: str
    """What rows that name no source of their own get as `source`."""
    limit: int | None = Field(default=None, gt=0)
    """Use at most so many of its rows, chosen by seed."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the result relative to the other sources; None, for all of them: every row there is."""


class PrepareOptions(Spec):
    """What a user sets of the preparation."""

    seed: int = 0
    """Chooses rows and splits."""
    splits: Splits = Splits()
    """How much is held out of training."""
    max_samples: int | None = Field(default=None, gt=0)
    """Use at most so many samples, chosen by seed: those of a smaller number are among those of a larger one."""
    near_duplicates: float | None = Field(default=0.8, gt=0, le=1)
    """Of rows whose prompts share this much (Jaccard over runs of five words), one stays; None keeps them all."""
    benchmark_ngram: int = Field(default=8, gt=2)
    """Words in the runs by which benchmark prompts are recognised."""
    benchmark_overlap: float | None = Field(default=0.5, gt=0, le=1)
    """A row that holds this share of a benchmark prompt's runs is removed; None keeps it."""
    bad_rows: Literal["stop", "drop"] = "drop"
    """Drop and count rows that cannot be used, wherever the same file is read, or stop at the first of them."""
    bad_share: BadShare = DEFAULT_SHARE
    """Share of the rows read that may be bad, where they are twenty or more; beyond it the stage ends, once all are
    read, with a table of why."""
    rows_per_file: int = Field(default=50_000, gt=0)
    """Rows in one `part-….jsonl.zst`."""


class PrepareSpec(PrepareOptions):
    """Turn sources into prompts."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """What is read, in this order."""
    benchmarks: tuple[str, ...] = ()
    """Digests of the files of benchmark prompts (`{"turns": […]}`) that must not be trained on."""

    @model_validator(mode="after")
    def _weights_for_all(self) -> Self:
        weighted = [source.name for source in self.sources if source.weight is not None]
        if weighted and len(weighted) < len(self.sources):
            rest = ", ".join(source.name for source in self.sources if source.weight is None)
            raise ValueError(f"sources {', '.join(weighted)} have a weight and {rest} have none; give all or none")
        return self
