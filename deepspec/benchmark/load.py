"""What a draft is worth under load: the target's step rate, profiled here, and recorded rounds, replayed."""

import time
from collections.abc import Sequence
from statistics import median

import numpy as np
import torch

from deepspec.decoding.measure import Floats, tally
from deepspec.decoding.results import Decoded
from deepspec.decoding.rows import RowCache
from deepspec.decoding.schedule import StepRate, replay
from deepspec.decoding.target_rows import TargetRows
from deepspec.formats.speed import LoadSpeed
from deepspec.target.load import Target

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Tokens in a pass whose time is measured."""
WIDTH = 8
"""Tokens of one row in such a pass, at most."""
CONTEXT = 64
"""Tokens that each row has read before."""
REPEATS = 3


def profile(target: Target) -> StepRate:
    """Return how long a pass of the target takes by the tokens in it."""
    rows = TargetRows(target, ())
    return StepRate(tokens=TOKENS, seconds=tuple(_seconds(rows, target.device, tokens) for tokens in TOKENS))


def by_load(samples: Sequence[Decoded], slots: int, rate: StepRate, loads: Sequence[int], seed: int) -> list[LoadSpeed]:
    """Return the throughput of the target by number of requests: plain, proposals verified whole, and scheduled.

    Args:
        samples: decoded ones, whose rounds are replayed.
        slots: K.
        rate: of the target on this machine.
        loads: numbers of requests.
        seed: of the draw of rounds.
    """
    rounds = [each for sample in samples for each in sample.rounds if each.proposed == slots]
    if not rounds:
        return []
    accepted = np.array([each.accepted for each in rounds])
    replays = replay(_survival(samples, slots), accepted, rate, loads, seed)
    return [
        LoadSpeed(
            requests=each.requests,
            plain_tokens_per_second=each.plain,
            fixed_tokens_per_second=each.fixed,
            scheduled_tokens_per_second=each.scheduled,
        )
        for each in replays
    ]


def _survival(samples: Sequence[Decoded], slots: int) -> Floats:
    """Return the chance of survival of each whole round's tokens: the draft's own confidence, else what is usual."""
    rounds = [each for sample in samples for each in sample.rounds if each.proposed == slots]
    if rounds[0].confidence:
        logits = np.array([each.confidence for each in rounds], dtype=np.float64)
        return np.asarray(np.cumprod(1 / (1 + np.exp(-logits)), axis=1), dtype=np.float64)
    usual = tally(samples, slots).ratios(np.ones((1, len(samples))))["cumulative"][0]
    return np.asarray(np.tile(np.nan_to_num(usual), (len(rounds), 1)), dtype=np.float64)


@torch.inference_mode()
def _seconds(rows: TargetRows, device: torch.device, tokens: int) -> float:
    width = min(tokens, WIDTH)
    count = tokens // width
    cache = RowCache(count, CONTEXT + width, device)
    rows.prefill([[1] * CONTEXT] * count, cache)
    ids = torch.ones(count, width, dtype=torch.int64, device=device)
    spent = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        rows.step(ids, cache)[1].sum().item()
        spent.append(time.perf_counter() - start)
    return median(spent[1:])
