"""Wall clock of decoding, speculative and plain, through the same code in the same process."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from deepspec.decoding.decode import Decoder
from deepspec.formats.speed import BatchSpeed
from deepspec.rounds.decoded import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedPass:
    """One pass over the prompts. Reading the prompts is timed apart: it costs both sides the same."""

    seconds: float
    """After the prompts were read."""
    prefill: float
    """Seconds of reading prompts."""
    shares: dict[str, float]
    """Part -> share of `seconds`; `other` is what is left."""
    tokens: int
    """Generated, the first of each sample left out."""
    rounds: int
    """Rounds of single samples."""
    passes: int
    """Rounds of the batch: forward passes of the target."""

    @property
    def seconds_per_token(self) -> float:
        """Return seconds per generated token, all rows of the batch together."""
        return self.seconds / self.tokens

    @property
    def seconds_per_round(self) -> float:
        """Return seconds per forward pass of the target, with all that belongs to it."""
        return self.seconds / self.passes


def _timed(decoder: Decoder, prompts: Sequence[Prompt]) -> TimedPass:
    """Decode the prompts once and return where the time went."""
    before, passes = dict(decoder.clock.seconds), decoder.passes
    start = time.perf_counter()
    decoded = list(decoder.decode(prompts))
    whole = time.perf_counter() - start
    spent = {name: seconds - before.get(name, 0.0) for name, seconds in decoder.clock.seconds.items()}
    prefill = spent.pop("prefill")
    seconds = whole - prefill
    shares = {name: part / seconds for name, part in spent.items()}
    rounds = sum(len(each.rounds) for each in decoded)
    return TimedPass(
        seconds=seconds,
        prefill=prefill,
        shares={**shares, "other": 1 - sum(shares.values())},
        tokens=sum(len(each.tokens) - 1 for each in decoded),
        rounds=rounds,
        passes=decoder.passes - passes,
    )


def compare_times(
    speculative: Decoder, plain: Decoder, prompts: Sequence[Prompt], batch: int, repeats: int
) -> BatchSpeed:
    """Return medians of interleaved pairs, after one pass of each that is not counted.

    Args:
        speculative: with the draft.
        plain: the target alone.
        prompts: decoded by both.
        batch: sequences decoded together, as told.
        repeats: pairs.
    """
    speculative.time_parts()
    plain.time_parts()
    warm = prompts[:batch]
    _timed(speculative, warm)
    _timed(plain, warm)
    pairs = [(_timed(speculative, prompts), _timed(plain, prompts)) for _ in range(repeats)]
    ratios = [alone.seconds_per_token / drafted.seconds_per_token for drafted, alone in pairs]
    first, first_plain = pairs[0]
    return BatchSpeed(
        batch=batch,
        tokens_per_second=median(1 / drafted.seconds_per_token for drafted, _ in pairs),
        plain_tokens_per_second=median(1 / alone.seconds_per_token for _, alone in pairs),
        speedup=median(ratios),
        tokens_per_round=first.tokens / first.rounds,
        round_seconds=median(drafted.seconds_per_round for drafted, _ in pairs),
        round_cost=median(drafted.seconds_per_round / alone.seconds_per_round for drafted, alone in pairs),
        shares=first.shares,
        plain_shares=first_plain.shares,
        prefill_seconds=first.prefill,
        spread=max(ratios) / min(ratios),
    )
