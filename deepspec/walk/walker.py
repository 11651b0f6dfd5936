"""From batches of held-out samples to the rounds of a draft, and what they add up to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepspec.algorithms.base import Algorithm
from deepspec.algorithms.rows import head_of
from deepspec.errors import TrainingError
from deepspec.records.batch import Batch, Tokens, on_device
from deepspec.rounds.measure import Floats, Tally
from deepspec.rounds.walk import Answers, walk
from deepspec.target_cache.facts import Sampled
from deepspec.walk.agreement import AnswerChances, kept_of_draft, said_by_target
from deepspec.walk.answers import WalkedAnswer, answers_in


@dataclass(frozen=True, kw_only=True, slots=True)
class Walked:
    """What the rounds over some samples add up to."""

    sums: Tally
    """By sample."""
    tokens: NDArray[np.int64]
    """`(S,)` of the answers of each, as far as they were to be walked."""
    known: NDArray[np.int64]
    """`(S,)` those of them that are the target's own, and so were."""
    cut: NDArray[np.int64]
    """`(S,)` answers that were cut before their end because a token is not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounds:
    """Every round that could begin in the answers of a batch."""

    whole: NDArray[np.int64]
    """`(N,)` tokens of each answer, as far as it was to be walked."""
    answers: Answers
    """As far as they are the target's own."""

    def walked(self, samples: int) -> Walked:
        """Return what the rounds that decoding takes add up to, by sample of so many."""
        known = self.answers.known
        counts = {"tokens": self.whole, "known": known, "cut": (known < self.whole).astype(np.int64)}
        found = {name: np.zeros(samples, dtype=np.int64) for name in counts}
        for name, values in counts.items():
            np.add.at(found[name], self.answers.owners, values)
        return Walked(sums=walk(self.answers, samples), **found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Walker:
    """Walks over the answers of samples with a draft as it is."""

    algorithm: Algorithm
    slots: int
    """K, tokens that a round proposes."""
    sampled: Sampled | None
    """How the answers were sampled; None, or at temperature 0: nothing is told of that."""
    stop_ids: frozenset[int]
    """Tokens that end an answer; empty: of every answer a beginning is known."""
    most: int
    """Tokens of a sample that are walked, from its first answer on."""
    at_once: int
    """Rounds of a row that are computed at once."""
    memory: dict[tuple[str, ...], AnswerChances] = field(default_factory=dict)
    """Ids of a batch's samples -> what the target says there, a few bytes a token: the same at every look."""

    def rounds(self, model: Any, batch: Batch, numbers: Sequence[int]) -> tuple[Rounds, Rounds]:
        """Return the rounds over a batch: at temperature 0, and as the answers were sampled.

        At temperature 0 an answer is cut where its token is not the target's likeliest, else where the target could not
        have drawn it.

        Args:
            model: the draft.
            batch: samples on its device, states in its dtype.
            numbers: which of all the samples each of them is.

        Raises:
            TrainingError: the draft's head knows a part of the vocabulary, and it was not given the whole.
        """
        if model.config.reduced_vocabulary and model.target_head() is None:
            raise TrainingError("rounds of a reduced vocabulary need the target's whole head; the draft was given none")
        answers = list(answers_in(_on_host(batch), self.stop_ids, self.most))
        owners = np.array([numbers[each.sample] for each in answers], dtype=np.int64)
        greedy, sampled, own, possible = self._grids(model, batch, answers)
        return _rounds(answers, greedy, own, owners), _rounds(answers, sampled, possible, owners)

    @torch.no_grad()
    def _grids(self, model: Any, batch: Batch, answers: Sequence[WalkedAnswer]) -> list[Tensor]:
        """Return what is kept, greedily and as sampled, `(B, T, K)` by where a round begins; and which tokens are the
        target's likeliest, and which it could have drawn, `(B, T)`. In host memory.
        """
        begins = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
        for each in answers:
            begins[each.row, each.start : each.start + each.length - 1] = True
        begins = on_device(begins, batch.hidden.device)
        said = self._said(model, batch, begins)
        kept = [batch.hidden.new_zeros((*begins.shape, self.slots), dtype=torch.float32) for _ in range(2)]
        for drafted in self.algorithm.drafted(model, batch, begins, self.at_once):
            tokens = drafted.targets[drafted.rows.target_index] + 1
            there = AnswerChances(best=said.best.flatten()[tokens], chance=said.chance.flatten()[tokens])
            found = kept_of_draft(drafted, there, self.slots, self._drawn)
            for grid, values in zip(kept, found, strict=True):
                grid.view(-1)[drafted.places] = values
        return [each.cpu() for each in (*kept, said.best == batch.input_ids, said.chance > 0)]

    def _said(self, model: Any, batch: Batch, begins: Tensor) -> AnswerChances:
        """Return what the target says of every token of the answers but the first, `(B, T)`: asked once a batch."""
        if batch.sample_ids not in self.memory:
            tokens, best = batch.ahead(batch.input_ids, 1), torch.full_like(batch.input_ids, -1)
            found = said_by_target(head_of(model, whole=True), batch.last_hidden[begins], tokens[begins], self._drawn)
            chance = torch.ones_like(best, dtype=torch.float32)
            places = begins.flatten().nonzero()[:, 0] + 1
            best.view(-1)[places] = found.best
            chance.view(-1)[places] = found.chance
            self.memory[batch.sample_ids] = AnswerChances(best=best, chance=chance)
        return self.memory[batch.sample_ids]

    @property
    def _drawn(self) -> Sampled | None:
        """Return how answers were sampled, where any chance is asked for."""
        return self.sampled if self.sampled is not None and self.sampled.temperature > 0 else None


def _on_host(batch: Batch) -> Tokens:
    told: Mapping[str, Any] = {each.name: getattr(batch, each.name) for each in fields(Tokens)}
    return on_device(Tokens(**told), "cpu")


def _rounds(answers: Sequence[WalkedAnswer], kept_BTK: Tensor, own_BT: Tensor, owners: NDArray[np.int64]) -> Rounds:
    """Return the rounds in answers, each as far as its tokens are the target's own."""
    cut = [_cut(each, own_BT[each.row, each.start + 1 : each.start + each.length]) for each in answers]
    kept: Floats = np.zeros((len(cut), max((each.length for each in cut), default=0), kept_BTK.shape[2]))
    for place, each in enumerate(cut):
        kept[place, : each.length] = kept_BTK[each.row, each.start : each.start + each.length].numpy()
    told = Answers(
        kept=kept,
        known=np.array([each.length for each in cut], dtype=np.int64),
        stopped=np.array([each.stopped for each in cut], dtype=np.bool_),
        owners=owners,
    )
    return Rounds(whole=np.array([each.length for each in answers], dtype=np.int64), answers=told)


def _cut(answer: WalkedAnswer, own_T: Tensor) -> WalkedAnswer:
    """Return an answer before its first token that is not the target's own; of its first one nothing is asked."""
    length = 1 + int(own_T.long().cumprod(0).sum())
    return replace(answer, length=length, stopped=answer.stopped and length == answer.length)
