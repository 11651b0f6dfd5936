"""Numbers about rounds: accepted length, verify rate, acceptance by position, each with a bootstrap interval.

Per round, n tokens are proposed and a of them accepted. Accepted length with the bonus token is the mean of a + 1,
without it the mean of a; the verify rate is Σ(a + 1) / Σ(n + 1). Position k (from 1): cumulative acceptance is
#(a ≥ k) / #(n ≥ k), conditional acceptance #(a ≥ k) / #(a ≥ k − 1 and n ≥ k). Tokens beyond the limit are not counted.

Intervals resample whole samples, since rounds of one sample resemble each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepspec.rounds.decoded import Decoded, Round

Floats = NDArray[np.float64]

RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """Sums per sample, from which every ratio comes: rows are samples, columns positions."""

    rounds: Floats
    """`(S,)`."""
    tokens: Floats
    """`(S,)` generated tokens but for the first, which no round makes."""
    proposed: Floats
    """`(S, K)`: rounds with n ≥ k."""
    accepted: Floats
    """`(S, K)`: rounds with a ≥ k."""
    reached: Floats
    """`(S, K)`: rounds with a ≥ k − 1 and n ≥ k."""
    public: Floats
    """`(S,)`: Σ of the public evaluator's acceptance length: nothing is cut at the limit, and a round that ends in an
    accepted stop token has no bonus token."""

    @property
    def slots(self) -> int:
        """Return K."""
        return int(self.proposed.shape[1])

    def ratios(self, weights: Floats) -> dict[str, Floats]:
        """Return every ratio under weights of the samples.

        Args:
            weights: `(R, S)`, one row per resample.

        Returns:
            name -> `(R,)`, or `(R, K)` for those by position; NaN where nothing was counted.
        """
        rounds, accepted, proposed = weights @ self.rounds, weights @ self.accepted, weights @ self.proposed
        kept, drafted = accepted.sum(1), proposed.sum(1)
        own = self.accepted.sum(1) / np.maximum(self.rounds, 1) + 1
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "accepted_length": (kept + rounds) / rounds,
                "accepted_length_without_bonus": kept / rounds,
                "accepted_length_per_sample": (weights @ own) / weights.sum(1),
                "verify_rate": (kept + rounds) / (drafted + rounds),
                "proposal_length": drafted / rounds,
                "tokens_per_round": (weights @ self.tokens) / rounds,
                "tau_deepspec": (weights @ self.public) / rounds,
                "cumulative": accepted / proposed,
                "conditional": accepted / (weights @ self.reached),
            }


def tally(samples: Sequence[Decoded], slots: int, *, within_limit: bool = True) -> Tally:
    """Return the sums of some samples.

    Args:
        samples: decoded ones.
        slots: K, the most tokens that a round proposes.
        within_limit: count only what the limit left a place for; False counts as the public evaluator does.
    """
    rows = [_sums(sample.rounds, slots, within_limit) for sample in samples]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 2 + 3 * slots)
    proposed, accepted, reached = np.split(table[:, 2:], 3, axis=1)
    tokens = np.array([len(sample.tokens) - 1 for sample in samples], dtype=np.float64)
    return Tally(
        rounds=table[:, 0], tokens=tokens, proposed=proposed, accepted=accepted, reached=reached, public=table[:, 1]
    )


def estimates(sums: Tally, seed: int = 0) -> dict[str, Any]:
    """Return each ratio as an `Estimate`; those by position as a list of them.

    Args:
        sums: of at least one sample.
        seed: of the resampling.
    """
    count = len(sums.rounds)
    whole = sums.ratios(np.ones((1, count)))
    drawn = sums.ratios(resamples(count, seed)[1:])
    return {name: _estimate(whole[name][0], drawn[name]) for name in whole}


def paired_difference(first: Tally, second: Tally, seed: int = 0) -> Estimate:
    """Return how much longer the second accepts than the first, on the same samples in the same order."""

    def difference(weights: Floats) -> Floats:
        return second.ratios(weights)["accepted_length"] - first.ratios(weights)["accepted_length"]

    return resampled(difference, len(first.rounds), seed)


def resampled(statistic: Callable[[Floats], Floats], count: int, seed: int = 0, *, centred: bool = False) -> Estimate:
    """Return a number with its interval, by bootstrap.

    Args:
        statistic: weights of the samples, `(R, S)` -> the number under each row of them, `(R,)`.
        count: S.
        seed: of the resampling.
        centred: whether the interval is moved so that the resamples' mean comes to lie on the number: for sums of
            absolute values, which every resample makes larger.
    """
    found = statistic(resamples(count, seed))
    drawn = found[1:] - (np.nanmean(found[1:]) - found[0]) if centred and np.isfinite(found[0]) else found[1:]
    estimate: Estimate = _estimate(found[0], drawn)
    return estimate


def resamples(count: int, seed: int) -> Floats:
    """Return weights of samples, `(1 + RESAMPLES, count)`: all of them once, then how often each is drawn."""
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    weights: Floats = np.concatenate([np.ones((1, count)), drawn])
    return weights


def _estimate(value: Any, drawn: Floats) -> Any:
    if np.ndim(value):
        return [_estimate(value[k], drawn[:, k]) for k in range(len(value))]
    known = drawn[np.isfinite(drawn)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return Estimate(value=float(value), low=float(low), high=float(high))


def _sums(rounds: Sequence[Round], slots: int, within_limit: bool) -> list[int]:
    """Return rounds, the public sum, and per position: proposed, accepted, reached."""
    pairs = [
        (each.counted_proposed, each.counted_accepted) if within_limit else (each.proposed, each.accepted)
        for each in rounds
    ]
    places = range(1, slots + 1)
    return [
        len(pairs),
        sum(each.accepted + (not each.stopped) for each in rounds),
        *(sum(n >= k for n, _ in pairs) for k in places),
        *(sum(a >= k for _, a in pairs) for k in places),
        *(sum(a >= k - 1 and n >= k for n, a in pairs) for k in places),
    ]
