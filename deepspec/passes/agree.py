"""How far stored states are from those that the target computes now."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from deepspec.records.batch import Record
from deepspec.target_cache.codec import TOKENS_ONLY
from deepspec.target_cache.facts import CacheFacts


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounding:
    """How far rounding may put stored states from those that the target computes again."""

    norm: float
    """Norm of a sample's difference, as a share of its norm."""
    value: float
    """Largest difference at a position, as a share of the largest value there: one value, not the mean of many."""


ROUNDING: Mapping[str, Rounding] = {
    "bf16": Rounding(norm=0.02, value=0.02),
    "bf16-zstd": Rounding(norm=0.02, value=0.02),
    "fp8": Rounding(norm=0.06, value=0.1),
    TOKENS_ONLY: Rounding(norm=0.0, value=0.0),
}
"""By codec. Forward passes of other shapes round otherwise (a norm of 0.004 in bf16). fp8 keeps three bits: it is off
by 0.026 as a norm, by up to 1/16 in one value. States of another layer or sample are off by about 1."""

ENGINE = 0.06
"""How much more it may be where an engine computed what is stored: its kernels round otherwise in every layer."""


def tolerance(facts: CacheFacts) -> float:
    """Return the largest error of a recomputed sample of a cache, as a share of the norm."""
    return ROUNDING[facts.codec].norm + (0.0 if facts.engine is None else ENGINE)


def states_difference(stored: Record, computed: Record, facts: CacheFacts) -> float:
    """Return the largest relative error over the captured layers and the last hidden state.

    Where the last token is a label only, it is left out, and that its own states are zeros is held.

    Args:
        stored: a sample as the cache has it.
        computed: as the target gives it now.
        facts: of the cache.
    """
    layers, length = len(facts.layers), facts.with_states(len(stored.input_ids))
    if stored.hidden[length:].any() or (facts.last_is_label and stored.last_hidden[-1:].any()):
        return math.inf
    stored, computed = stored.cut(length), computed.cut(length)
    pairs = list(zip(stored.hidden.chunk(layers, dim=1), computed.hidden.chunk(layers, dim=1), strict=True))
    pairs.append((stored.last_hidden, computed.last_hidden))
    return max(_relative(one, other) for one, other in pairs)


def _relative(stored: Tensor, computed: Tensor) -> float:
    return float((stored.float() - computed.float()).norm() / computed.float().norm().clamp_min(1e-12))
