"""Rounds without decoding: what a walk over an answer gives, where every round that could begin in it is known.

A round that begins at token c of an answer keeps its slot k, the answer's token c + 1 + k, with a chance that hangs on
the tokens before it alone, if all slots before it are kept. If the answer is what the target says, then decoding it
takes these very rounds: at temperature 0 each chance is 0 or 1, and the walk c → c + kept + 1 is the decoding; above it
the answer is a sample of the target, slot k of it is kept with min(1, q / p) of that token, and what is summed here is
what decoding to this answer gives on average. Nothing is drawn, so nothing of it is noise.

An answer of which only a beginning is known (it is longer, or the rest is not the target's own) tells of the rounds
whose slots all lie in it: whether a round is counted hangs on where it begins, never on how it goes.

Legend of shapes: N answers, A tokens of the longest, K slots.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepspec.rounds.measure import Floats, Tally

Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Answers of which every round is known."""

    kept: Floats
    """`(N, A, K)`: chance that a round beginning at token c keeps slot k, given that it keeps those before. What lies
    behind the known tokens is not looked at."""
    known: NDArray[np.int64]
    """`(N,)`: tokens of each that are known, from its first, which no round makes."""
    stopped: Flags
    """`(N,)`: whether the last known token ends the answer."""
    owners: NDArray[np.int64]
    """`(N,)`: number of the sample that each is an answer of."""

    @property
    def begins(self) -> Flags:
        """Return where a round may begin that is counted, `(N, A)`."""
        last = np.where(self.stopped, self.known - 2, self.known - 1 - self.kept.shape[2])
        begins: Flags = np.arange(self.kept.shape[1]) <= last[:, None]
        return begins

    @property
    def room(self) -> NDArray[np.int64]:
        """Return how many tokens are known behind each, `(N, A)`."""
        room: NDArray[np.int64] = self.known[:, None] - 1 - np.arange(self.kept.shape[1])
        return room

    @property
    def meant(self) -> Flags:
        """Return which slots have a known token to be held against, `(N, A, K)`."""
        meant: Flags = np.arange(self.kept.shape[2]) < self.room[..., None]
        return meant

    @property
    def reached(self) -> Floats:
        """Return the chance that a round keeps at least 0, 1, … K slots, `(N, A, K + 1)`."""
        chances = np.where(self.meant, self.kept, 0.0).cumprod(2)
        return np.concatenate([np.ones((*chances.shape[:2], 1)), chances], axis=2)


def walk(answers: Answers, samples: int) -> Tally:
    """Return the expected sums of each sample's rounds: at temperature 0 those of its decoding.

    Args:
        answers: of the samples.
        samples: how many there are; those without an answer have no round.
    """
    reached, meant, visited, slots = answers.reached, answers.meant, visits(answers), answers.kept.shape[2]
    whole = np.take_along_axis(reached, answers.room.clip(0, slots)[..., None], axis=2)
    ended = whole * ((answers.room <= slots) & answers.stopped[:, None])[..., None]
    tokens = reached.sum(2) - ended[..., 0]

    def summed(values: Floats) -> Floats:
        total = np.zeros((samples, *values.shape[2:]))
        np.add.at(total, answers.owners, np.einsum("na,na...->n...", visited, values))
        return total

    return Tally(
        rounds=summed(np.ones_like(visited)),
        tokens=summed(tokens),
        proposed=summed(np.where(meant, 1.0, 1.0 - ended)),
        accepted=summed(reached[..., 1:]),
        reached=summed(reached[..., :-1] * meant),
        public=summed(tokens),
    )


def visits(answers: Answers) -> Floats:
    """Return the chance that a round begins at each token, `(N, A)`, found from the first one on; at temperature 0
    whether one does.
    """
    reached, begins = answers.reached, answers.begins
    count, length, most = reached.shape
    exactly = reached.copy()
    exactly[..., :-1] -= reached[..., 1:]
    found = np.zeros((count, length + most))
    found[:, 0] = 1.0
    for place in range(length):
        found[:, place] *= begins[:, place]
        found[:, place + 1 : place + 1 + most] += found[:, place, None] * exactly[:, place]
    return np.asarray(found[:, :length])
