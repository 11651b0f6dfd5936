"""How many tokens a round of the draft would get accepted: the rounds that decoding takes over held-out answers.

Told are two lengths, each with its interval (bootstrap over samples): at temperature 0, of answers as far as they are
the target's greedy ones; and as the answers were sampled. What is watched is that of the answers' own kind. Where
nobody knows how they were sampled, it is the greedy one, if at least half of their tokens are greedy.

Sampled answers are soon cut when they are walked greedily. So where the target answered held-out prompts greedily, too,
the length at temperature 0 is of those.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from deepspec.records.batch import Batch
from deepspec.rounds.measure import Tally, resampled
from deepspec.target_cache.facts import Sampled
from deepspec.train.task import Task
from deepspec.walk.walker import Walked, Walker

WalkedWay = Literal["greedy", "sampled"]
WAYS: tuple[WalkedWay, WalkedWay] = ("greedy", "sampled")
LENGTH = "accepted_length"
"""Of a look's row: what is watched."""
ENOUGH = 0.5
"""Share of the answers' tokens that have to be the target's greedy ones for them to be taken for greedy answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswersKnown:
    """What is known of the answers in a cache."""

    sampled: Sampled | None = None
    """How; None: nobody knows."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end one; empty: nobody knows, and the last rounds of each are not counted."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Sample id -> kind of its prompt."""


class AcceptedLength:
    """Counts the rounds of the draft as it is.

    Args:
        task: what is trained.
        sample_ids: of all samples that are looked at, by all ranks.
        answered: what is known of their answers.
    """

    def __init__(self, task: Task, sample_ids: Sequence[str], answered: AnswersKnown) -> None:
        """Count nothing yet."""
        self._model = task.model
        self._numbers = {name: number for number, name in enumerate(sample_ids)}
        self._sampled = answered.sampled
        self._kinds = [answered.kinds.get(name) for name in sample_ids]
        self._walker = Walker(
            algorithm=task.algorithm,
            slots=task.algorithm.slots(task.config),
            sampled=answered.sampled,
            stop_ids=answered.stop_ids,
            most=task.spec.walked_tokens,
            at_once=task.spec.objective.num_anchors,
        )
        self.seconds = 0.0
        """That all looks so far have taken for it."""

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the rounds over some samples add up to, to be summed over batches and ranks."""
        begin = time.perf_counter()
        numbers = [self._numbers[name] for name in batch.sample_ids]
        pair = self._walker.rounds(self._model, batch, numbers)
        walked = (rounds.walked(len(self._numbers)) for rounds in pair)
        found = {f"{way}/{name}": value for way, each in zip(WAYS, walked, strict=True) for name, value in _named(each)}
        self.seconds += time.perf_counter() - begin
        return found

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the accepted lengths; what is watched, by kind of prompt and slot, too, where it can be told."""
        ways = {way: _walked(sums, way) for way in WAYS}
        found: dict[str, float] = {}
        for way, walked in ways.items():
            if way == "greedy" or self._temperature > 0:
                found |= _told(f"{LENGTH}_{way}", walked.sums)
                found |= {f"cut_{way}": float(walked.cut.sum()), f"known_{way}": _share(walked)}
        watched = self._watched(ways["greedy"])
        if watched is None or f"{LENGTH}_{watched}" not in found:
            return found
        return found | self._whole(LENGTH, "accepted", ways[watched].sums)

    def of_greedy(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the accepted length at temperature 0, by kind of prompt and slot, too, under names that say so."""
        walked = _walked(sums, "greedy")
        counts = {"cut_greedy": float(walked.cut.sum()), "known_greedy": _share(walked)}
        return counts | self._whole(f"{LENGTH}_greedy", "accepted_greedy", walked.sums)

    def _whole(self, name: str, slots: str, sums: Tally) -> dict[str, float]:
        """Return a length, that of each kind of prompt, and what each slot accepts."""
        found = _told(name, sums) | _by_slot(slots, sums)
        for kind in sorted({kind for kind in self._kinds if kind is not None}):
            found |= _told(name, _some(sums, [each == kind for each in self._kinds]), f"/{kind}")
        return found

    @property
    def _temperature(self) -> float:
        return 0.0 if self._sampled is None else self._sampled.temperature

    def _watched(self, greedy: Walked) -> WalkedWay | None:
        if self._sampled is not None:
            return "sampled" if self._temperature > 0 else "greedy"
        return "greedy" if _share(greedy) >= ENOUGH else None


def _named(walked: Walked) -> Iterator[tuple[str, Tensor]]:
    arrays: dict[str, Any] = {
        **asdict(walked.sums),
        "walk_tokens": walked.tokens,
        "known": walked.known,
        "cut": walked.cut,
    }
    for name, values in arrays.items():
        yield name, torch.from_numpy(np.asarray(values, dtype=np.float64))


def _walked(sums: Mapping[str, Tensor], way: WalkedWay) -> Walked:
    told = {name: sums[f"{way}/{name}"].numpy() for name in (each.name for each in fields(Tally))}
    counts = {"tokens": "walk_tokens", "known": "known", "cut": "cut"}
    whole = {name: sums[f"{way}/{key}"].numpy().astype(np.int64) for name, key in counts.items()}
    return Walked(sums=Tally(**told), **whole)


def _share(walked: Walked) -> float:
    """Return the share of the answers' tokens that are the target's own."""
    return float(walked.known.sum()) / max(int(walked.tokens.sum()), 1)


def _told(name: str, sums: Tally, of: str = "") -> dict[str, float]:
    """Return a length with its interval; nothing where there was no round."""
    if not sums.rounds.any():
        return {}
    told = _some(sums, sums.rounds > 0)
    length = resampled(lambda weights: told.ratios(weights)["accepted_length"], len(told.rounds))
    return {f"{name}{of}": length.value, f"{name}_low{of}": length.low, f"{name}_high{of}": length.high}


def _by_slot(name: str, sums: Tally) -> dict[str, float]:
    """Return the chance that each slot is accepted given that all before it were, of those that were reached."""
    accepted, reached = sums.accepted.sum(0), sums.reached.sum(0)
    return {f"{name}@{slot}": float(accepted[slot] / reached[slot]) for slot in np.flatnonzero(reached).tolist()}


def _some(sums: Tally, chosen: Any) -> Tally:
    """Return the sums of some samples."""
    where = np.flatnonzero(np.asarray(chosen))
    return Tally(**{name: values[where] for name, values in asdict(sums).items()})
