"""Which samples make up which step.

Everything here is a pure function of (seed, step): neither the number of ranks nor an interruption changes it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import xxhash
from torch import Tensor

from deepspec.errors import DeepSpecError, StoreError, TrainingError
from deepspec.records.batch import Record


class Samples(Protocol):
    """One split of a cache: samples by number."""

    @property
    def state_bytes(self) -> int:
        """Return the bytes of the states of one token."""

    def __len__(self) -> int:
        """Return how many there are."""

    def order(self, epoch: int) -> Sequence[int]:
        """Return the numbers of all samples in the order of one epoch."""

    def sample_id(self, number: int) -> str:
        """Return the id of a sample."""

    def length(self, number: int) -> int:
        """Return the tokens of a sample."""

    def ahead(self, numbers: Sequence[int]) -> None:
        """Hear which samples are read next, in this order, after those that were named before."""

    def record(self, number: int) -> Record:
        """Read a sample."""

    def tokens(self, number: int) -> tuple[Tensor, Tensor]:
        """Read token ids and loss mask of a sample, `(T,)` each, and nothing else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """One sample in one step."""

    number: int
    epoch: int
    key: int
    """Seeds every random choice about this sample in this epoch."""


PackedRow = list[Draw]
"""Samples that share a row of a batch: one, or where rows are packed several."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """How a step is cut into forward passes: it changes no result but for the order of additions."""

    ranks: int
    """That share the step."""
    micro_batch: int
    """Most rows of a pass."""
    pack: bool = False
    """Whether short samples share a row no longer than the step's longest sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What one rank computes of a step."""

    pieces: list[list[PackedRow]]
    """Its micro-batches."""
    tokens: int
    """Of the global batch."""


def key_of(seed: int, epoch: int, sample_id: str) -> int:
    """Return the seed of a sample's random choices, 63 bits; of nothing but the three arguments."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{epoch}/{sample_id}".encode()) >> 1


class Stream:
    """The samples of all epochs, one after another, cut into steps.

    Args:
        samples: the training split.
        global_batch: samples per step. A step may reach into the next epoch: no sample is ever dropped.
        seed: of the run.
    """

    def __init__(self, samples: Samples, global_batch: int, seed: int) -> None:
        """Read nothing yet."""
        self._samples = samples
        self._batch = global_batch
        self._seed = seed
        self._orders: dict[int, Sequence[int]] = {}
        """Of the present epoch and the next; only one thread asks a stream."""

    def draws(self, step: int) -> list[Draw]:
        """Return the global batch of one step."""
        start = step * self._batch
        return [self._draw(place) for place in range(start, start + self._batch)]

    def share(self, step: int, rank: int, cut: Cut) -> Share:
        """Return one rank's micro-batches of a step: every round of like ones is dealt out the other way round."""
        draws = self.draws(step)
        pieces, ranks = self._pieces(draws, cut), cut.ranks
        rounds = [pieces[start : start + ranks] for start in range(0, len(pieces), ranks)]
        places = [rank if number % 2 == 0 else ranks - 1 - rank for number in range(len(rounds))]
        return Share(
            pieces=[dealt[place] for dealt, place in zip(rounds, places, strict=True) if place < len(dealt)],
            tokens=sum(self._samples.length(draw.number) for draw in draws),
        )

    def _pieces(self, draws: Sequence[Draw], cut: Cut) -> list[list[PackedRow]]:
        """Return the micro-batches of a step, longest rows first: like lengths together, as many for each rank."""
        rows = self._rows(draws, cut)
        count = min(len(rows), cut.ranks * math.ceil(len(rows) / (cut.ranks * cut.micro_batch)))
        edges = [number * len(rows) // count for number in range(count + 1)]
        return [rows[start:stop] for start, stop in pairwise(edges)]

    def _rows(self, draws: Sequence[Draw], cut: Cut) -> list[PackedRow]:
        """Return the rows of one step, longest samples first."""
        draws = sorted(draws, key=lambda draw: (-self._samples.length(draw.number), draw.key))
        if not cut.pack:
            return [[draw] for draw in draws]
        return _packed(draws, [self._samples.length(draw.number) for draw in draws], cut.ranks)

    def _draw(self, place: int) -> Draw:
        epoch, position = divmod(place, len(self._samples))
        if epoch not in self._orders:
            self._orders = {known: order for known, order in self._orders.items() if known >= epoch - 1}
            self._orders[epoch] = self._samples.order(epoch)
        number = self._orders[epoch][position]
        return Draw(number=number, epoch=epoch, key=key_of(self._seed, epoch, self._samples.sample_id(number)))


def _packed(draws: Sequence[Draw], lengths: Sequence[int], least: int) -> list[PackedRow]:
    """Return rows no longer than the first sample, the longest; each sample lies in the first row that has room.

    Args:
        draws: longest first.
        lengths: of each, in tokens.
        least: rows that there must be, so that each rank has one.
    """
    rows: list[PackedRow] = []
    room: list[int] = []
    for draw, length in zip(draws, lengths, strict=True):
        fitting = (number for number, left in enumerate(room) if length <= left)
        chosen = next(fitting, len(rows)) if len(rows) >= least else len(rows)
        if chosen == len(rows):
            rows.append([])
            room.append(lengths[0])
        rows[chosen].append(draw)
        room[chosen] -= length
    return rows


def read_record(samples: Samples, number: int) -> Record:
    """Return one record; an error names the sample."""
    with _naming(samples.sample_id(number)):
        return samples.record(number)


def read_tokens(samples: Samples, number: int) -> tuple[Tensor, Tensor]:
    """Return token ids and loss mask of a sample; an error names it."""
    with _naming(samples.sample_id(number)):
        return samples.tokens(number)


@contextmanager
def _naming(sample_id: str) -> Iterator[None]:
    """Put the sample's id into whatever goes wrong."""
    try:
        yield
    except StoreError as error:
        raise type(error)(f"sample {sample_id}: {error}") from error
    except DeepSpecError as error:
        raise TrainingError(f"sample {sample_id}: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(f"sample {sample_id} cannot be read: {error}; run: deepspec cache verify") from error
