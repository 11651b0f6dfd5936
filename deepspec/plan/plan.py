"""The plan: everything a user decides about a run. What resolving finds out (hashes, sizes) is in `resolve`."""

import hashlib
import json
from typing import Self

from pydantic import Field, model_validator

from deepspec.benchmark.spec import BenchmarkOptions
from deepspec.cache.spec import CacheOptions
from deepspec.evaluate.spec import EvaluateOptions
from deepspec.export.spec import ExportSpec
from deepspec.plan.cost.given import Sizes
from deepspec.prepare.spec import PrepareOptions
from deepspec.regenerate.spec import RegenerateOptions
from deepspec.release.spec import ReleaseOptions
from deepspec.specs import Spec
from deepspec.target.source import TargetSource
from deepspec.train.spec import TrainSpec


class TargetPlan(TargetSource):
    """The target: where it is, and what estimates and cards must know of it."""

    name: str = "target"
    """Short name for folders, cards and tables."""
    license: str = "other"
    """Licence of the target, which its drafts inherit."""
    sizes: Sizes | None = None
    """What an estimate without the target at hand must know."""


class DatasetPlan(Spec):
    """What the target is asked, and what the draft is measured on."""

    name: str = "own"
    prompts: tuple[str, ...] = ()
    """Files (JSONL, parquet), URLs or Hugging Face dataset ids."""
    answers: str | None = None
    """File of answers that the target gave before; nothing is asked then."""
    cache: str | None = None
    """Published target cache to train on, an imported one say: a ref, kind/address, or the start of an address. None
    is made then, and no prompt is read."""
    benchmarks_dir: str | None = None
    """Folder of `NAME.jsonl` files with `{"turns": […]}` rows; None: the benchmarks come from the Hugging Face hub."""
    benchmarks: tuple[str, ...] | None = None
    """Names of the benchmarks to take; None: every file of the folder, or all nine of the hub."""
    samples: int | None = Field(default=None, gt=0)
    """Number of prompts, for estimates; None: counted where the prompts are local files."""
    prompt_tokens: float = Field(default=200, gt=0)
    """Mean length of a prompt, for estimates."""
    answer_tokens: float = Field(default=500, gt=0)
    """Mean length of all answers of a sample, for estimates."""
    license: str = "other"

    @property
    def sources(self) -> tuple[str, ...]:
        """Return where the prompts come from: without prompts of their own, the answers hold them, too."""
        return self.prompts or ((self.answers,) if self.answers else ())


class Limits(Spec):
    """What a run may spend; it stops before a stage that would pass a limit. None: no limit."""

    disk_gb: float | None = Field(default=None, gt=0)
    hours: float | None = Field(default=None, gt=0)
    money: float | None = Field(default=None, gt=0)
    """US dollars."""
    hardware: str = "laptop"
    """Rates and prices that the estimate is made with: a name from presets/hardware, several of
    its devices (h100x8), or an own YAML file."""


class Plan(Spec):
    """One draft, from prompts to release."""

    target: TargetPlan
    dataset: DatasetPlan = DatasetPlan()
    draft: str | None = None
    """Published draft to export, measure and release: a ref, kind/address, or the start of an address. None is trained
    then."""
    prepare: PrepareOptions = PrepareOptions()
    regenerate: RegenerateOptions = RegenerateOptions()
    cache: CacheOptions = CacheOptions()
    train: TrainSpec = TrainSpec()
    export: ExportSpec = ExportSpec()
    evaluate: EvaluateOptions = EvaluateOptions()
    benchmark: BenchmarkOptions = BenchmarkOptions()
    release: ReleaseOptions = ReleaseOptions()
    limits: Limits = Limits()

    @property
    def digest(self) -> str:
        """Return a short name for what the plan makes: its limits are no part of it."""
        told = json.dumps(self.but(limits=Limits()).identity(), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    @property
    def greedy_samples(self) -> int:
        """Return how many held-out prompts are answered once more at temperature 0, at most.

        None are where answers are greedy, or brought, or where looks at held-out samples do not walk.
        """
        train, brought = self.train, (self.dataset.answers, self.dataset.cache, self.draft) != (None, None, None)
        looks = train.validation_samples and train.walked_tokens and "validation" in self.cache.splits
        wanted = looks and self.prepare.splits.validation and self.regenerate.sampling.temperature
        return 0 if brought or not wanted else train.greedy_samples

    @model_validator(mode="after")
    def _block_fits(self) -> Self:
        block = self.train.draft.block_size
        if self.evaluate.max_new_tokens < block:
            raise ValueError(
                f"evaluate.max_new_tokens is {self.evaluate.max_new_tokens}, below the block of "
                f"{block} tokens that the draft proposes; raise it"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_stored_in_vain(self) -> Self:
        if self.train.source != "cache" and self.cache.codec != "none":
            raise ValueError(
                f"train.source={self.train.source} computes the states while it trains, and cache.codec="
                f"{self.cache.codec} would store them, too; set cache.codec=none, or train.source=cache"
            )
        return self

    @model_validator(mode="after")
    def _has_input(self) -> Self:
        if not self.dataset.prompts and (self.dataset.answers, self.dataset.cache, self.draft) == (None, None, None):
            raise ValueError("no prompts: give dataset.prompts (--prompts FILE) or dataset.answers (--answers FILE)")
        return self
