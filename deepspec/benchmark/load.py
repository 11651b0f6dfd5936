"""What a draft is worth under load: the target's step rate, profiled here, and recorded rounds, replayed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepspec.decoding.graphs import Recorder, Replayed
from deepspec.decoding.schedule import StepRate, replay
from deepspec.decoding.target_rows import TargetRows
from deepspec.formats.speed import BatchSpeed, LoadSpeed
from deepspec.kv.fixed import span_of
from deepspec.proposers.confidence import calibrated
from deepspec.rounds.decoded import Decoded
from deepspec.rounds.measure import Floats, tally
from deepspec.target.load import Target

ENOUGH_SECONDS = 0.5
"""Passes of the target are not profiled beyond one that takes so long: from there on time grows with tokens."""
WIDTH = 8
"""Tokens of one row in a pass, at most."""
CONTEXT = 64
"""Tokens that each row has read before."""
REPEATS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """Rounds that verified whole proposals."""

    survival: Floats
    """`(N, K)` chance that all tokens through each one are accepted."""
    accepted: NDArray[np.int64]
    """`(N,)`."""


def recorded(samples: Sequence[Decoded], slots: int, temperatures: Sequence[float]) -> Recorded | None:
    """Return the whole rounds of some samples; None where there is none.

    Args:
        samples: decoded ones.
        slots: K.
        temperatures: of the draft's confidence, by position; a draft without one survives as is usual.
    """
    rounds = [each for sample in samples for each in sample.rounds if each.proposed == slots]
    if not rounds:
        return None
    accepted = np.array([each.accepted for each in rounds])
    if rounds[0].confidence:
        logits = torch.tensor([each.confidence[:slots] for each in rounds], dtype=torch.float64)
        chances = calibrated(logits, tuple(temperatures)).sigmoid().cumprod(1)
        return Recorded(survival=chances.numpy(), accepted=accepted)
    usual = tally(samples, slots).ratios(np.ones((1, len(samples))))["cumulative"][0]
    return Recorded(survival=np.tile(np.nan_to_num(usual), (len(rounds), 1)), accepted=accepted)


def profile(target: Target, most: int) -> StepRate:
    """Return how long a pass of the target takes by the tokens in it, up to `most` tokens."""
    rows = TargetRows(target, ())
    found: dict[int, float] = {}
    tokens = 1
    while not found or (tokens <= most and max(found.values()) < ENOUGH_SECONDS):
        found[tokens] = _seconds(rows, target.device, tokens)
        tokens *= 2
    return StepRate(tokens=tuple(found), seconds=tuple(found.values()))


def beside(batches: Sequence[BatchSpeed]) -> StepRate:
    """Return how long all of a round but the target's pass takes, by requests, as timed at some batch sizes."""
    spent = {each.batch: each.round_seconds * (1 - each.shares["verify"]) for each in sorted(batches, key=_batch)}
    return StepRate(tokens=tuple(spent), seconds=tuple(spent.values()))


def speed_by_load(
    rounds: Recorded, target: StepRate, draft: StepRate, loads: Sequence[int], seed: int
) -> list[LoadSpeed]:
    """Return the throughput to expect by number of requests: plain, proposals verified whole, and scheduled.

    Args:
        rounds: to replay.
        target: passes per second by tokens.
        draft: rounds per second of everything else, by requests.
        loads: numbers of requests.
        seed: of the draw of rounds.
    """
    return [_one_load(rounds, target, 1 / draft(requests), requests, seed) for requests in loads]


def _one_load(rounds: Recorded, target: StepRate, spent: float, requests: int, seed: int) -> LoadSpeed:
    found = replay(rounds.survival, rounds.accepted, lambda tokens: 1 / (1 / target(tokens) + spent), requests, seed)
    return LoadSpeed(
        requests=requests,
        plain_tokens_per_second=requests * target(requests),
        fixed_tokens_per_second=found.fixed,
        scheduled_tokens_per_second=found.scheduled,
    )


def _batch(speed: BatchSpeed) -> int:
    return speed.batch


@torch.inference_mode()
def _seconds(rows: TargetRows, device: torch.device, tokens: int) -> float:
    width = min(tokens, WIDTH)
    count = tokens // width
    memory = rows.memory(count, CONTEXT + width)
    rows.prefill([[1] * CONTEXT] * count, memory)
    recorder = Recorder(rows.passes == "recorded", rows.say, device)
    if recorder.active:
        growing, memory = memory, rows.fixed(count, span_of(CONTEXT + width))
        memory.adopt(growing)
    ids, sums = torch.ones(count, width, dtype=torch.int64, device=device), torch.zeros((), device=device)
    step = Replayed(lambda: _note(sums, rows.step(ids, memory)[1]), recorder)
    spent = []
    for _ in range(REPEATS + 1 + recorder.active):
        start = time.perf_counter()
        step()
        sums.item()
        spent.append(time.perf_counter() - start)
    return median(spent[-REPEATS:])


def _note(sums: Tensor, logits: Tensor) -> None:
    """Keep what has to be waited for, where a recorded pass leaves it."""
    sums.copy_(logits.sum())
