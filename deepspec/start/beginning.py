"""What decides with which weights a run begins. No torch, so that specs can hold it."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from deepspec.formats.recipe import TRAITS, DraftRecipe, Objective
from deepspec.specs import Spec

FITTED_POSITIONS = 32768
"""Positions to which the first block of a fitted start is fitted."""


class Beginning(Spec):
    """The draft that is to be trained, and where its first weights come from."""

    draft: DraftRecipe = DraftRecipe()
    """Algorithm and shape of the draft."""
    objective: Objective = Objective()
    """What it is trained for."""
    seed: int = Field(default=0, ge=0)
    mask_token_id: int | None = Field(default=None, ge=0)
    """Token that stands for "not drafted yet" (dspark, dflash); None: one that the tokenizer never produces."""

    start: Literal["random", "target", "fitted"] = "random"
    """Weights of a fresh draft: random; the target's last blocks, where those have the form of the draft's; or these,
    the first of them fitted to the states before a slot (dspark, dflash): the best on small budgets. mtp: the heads
    that the target ships, whatever is said here."""
    bigram_samples: int = Field(default=512, ge=0)
    """Samples from whose stored states a vanilla Markov head starts, with the target's bigrams (dspark); 0: at zero."""
    vocabulary_samples: int = Field(default=4096, gt=0)
    """Samples by whose answers a reduced vocabulary is chosen (train.draft.draft_vocab_size)."""
    continue_from: str | None = None
    """Address of a finished draft whose weights and optimizer state to start from, on a new schedule."""
    warm_start: str | None = None
    """Address of a draft, or digest of a public checkpoint (see `Placement.locations`), whose weights to start from."""

    @model_validator(mode="after")
    def _from_one(self) -> Self:
        if self.continue_from and self.warm_start:
            raise ValueError("continue_from and warm_start are both given; continue_from already brings the weights")
        return self

    @property
    def begins_anew(self) -> bool:
        """Return whether the run begins with a new draft's weights, not with those of an earlier one."""
        return self.continue_from is None and self.warm_start is None

    def of_given_weights(self) -> Self:
        """Return the beginning of a draft that is given all its weights at once: nothing is read for a start."""
        return self.but(start="random", bigram_samples=0)

    def start_samples(self, samples: int, supervised: float) -> int:
        """Return the samples whose states the start of a run reads, as far as its draft's blocks have a form for it.

        Args:
            samples: of the training split.
            supervised: tokens of one that the target generated, on average.
        """
        if not self.begins_anew or not TRAITS[self.draft.algorithm].blocks:
            return 0
        said = TRAITS[self.draft.algorithm].heads and self.draft.markov_rank and self.draft.markov_head == "vanilla"
        fitted = math.ceil(FITTED_POSITIONS / max(1.0, supervised)) if self.start == "fitted" else 0
        return min(samples, max(self.bigram_samples if said else 0, fitted))
