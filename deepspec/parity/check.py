"""The same text through every form of target and draft: where do they part?

    cached states      what training read             against   the target now
    stepwise states    the target with its cache      against   the target in one pass
    decoding form      the draft with its cache       against   the draft as it was trained
    exported form      the draft read back            against   the draft

A draft that was trained on one thing and served on another is accepted a tenth as often and raises no error; this
gate does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.parity.forms import decoding_form, stepwise, training_form
from deepspec.passes.agree import ROUNDING
from deepspec.records.batch import Record, supervises
from deepspec.target.load import Target

LOGITS = 2e-3
"""Largest difference of two logits, relative to the largest logit: another kernel rounds differently, in fp32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FormsCompared:
    """Two forms of one thing on one text."""

    name: str
    difference: float
    """The largest, relative to what is compared."""
    tolerance: float
    position: int | None
    """First token position at which the difference is above the tolerance."""

    @property
    def passed(self) -> bool:
        """Return whether the forms agree."""
        return self.difference <= self.tolerance  # False for NaN, too


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """What the gate found."""

    comparisons: tuple[FormsCompared, ...]

    @property
    def passed(self) -> bool:
        """Return whether all forms agree."""
        return all(each.passed for each in self.comparisons)

    def rows(self) -> list[dict[str, Any]]:
        """Return a table for people."""
        return [
            {
                "compared": each.name,
                "difference": f"{each.difference:.2e}",
                "tolerance": f"{each.tolerance:.0e}",
                "verdict": "pass" if each.passed else f"FAIL from position {each.position}",
            }
            for each in self.comparisons
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedStates:
    """One sample of a cache."""

    stored: Record
    """As the cache has it."""
    fresh: Record
    """As the target gives it now, in the dtype and the batches of the cache."""
    codec: str


@torch.inference_mode()
def check_parity(
    target: Target,
    draft: BlockDraft | EagleDraft,
    input_ids: Tensor,
    *,
    cached: CachedStates | None = None,
    forms: Mapping[str, BlockDraft | EagleDraft] | None = None,
) -> Parity:
    """Compare all forms on one text.

    Args:
        target: in fp32 for meaningful tolerances.
        draft: the draft as trained.
        input_ids: `(T,)` tokens of the text, longer than two blocks.
        cached: what a cache stores of the same text, if there is one.
        forms: name -> the draft as read back from an export.
    """
    layers = draft.config.target_layer_ids
    hidden = target.capture(input_ids[None], layers)[0][0]
    found = [] if cached is None else _cached_states(cached)
    found.append(_compare("stepwise states", stepwise(target, layers, input_ids), hidden, LOGITS))
    found.append(_as_trained("decoding form", draft, draft, input_ids, hidden))
    found += [check_form(name, form, draft, input_ids, hidden) for name, form in (forms or {}).items()]
    return Parity(comparisons=tuple(found))


@torch.inference_mode()
def check_form(
    name: str,
    form: BlockDraft | EagleDraft,
    draft: BlockDraft | EagleDraft,
    input_ids: Tensor,
    hidden: Tensor,
) -> FormsCompared:
    """Compare a form that was read back, as it decodes, with the draft as it was trained, on captured states."""
    return _as_trained(f"exported form {name}", form, draft, input_ids, hidden)


def _as_trained(
    name: str, form: BlockDraft | EagleDraft, draft: BlockDraft | EagleDraft, input_ids: Tensor, hidden: Tensor
) -> FormsCompared:
    trained, positions = training_form(draft, input_ids, hidden)
    return _compare(name, decoding_form(form, input_ids, hidden, positions), trained, LOGITS, positions)


def states_now(target: Target, record: Record, layers: Sequence[int]) -> Record:
    """Return a record with the states that the target gives now."""
    hidden, last = target.capture(record.input_ids[None], layers)
    device = record.hidden.device
    return replace(record, hidden=hidden[0].to(device), last_hidden=last[0].to(device)[supervises(record.loss_mask)])


def _cached_states(cached: CachedStates) -> list[FormsCompared]:
    stored, fresh, tolerance = cached.stored, cached.fresh, ROUNDING[cached.codec].value
    kept = supervises(stored.loss_mask).nonzero().flatten().tolist()
    return [
        _compare("cached states", stored.hidden, fresh.hidden, tolerance),
        _compare("cached last states", stored.last_hidden, fresh.last_hidden, tolerance, kept),
    ]


def _compare(
    name: str, found: Tensor, wanted: Tensor, tolerance: float, positions: Sequence[int] | None = None
) -> FormsCompared:
    """Return the comparison of two tensors whose first axis is the token positions, or those given."""
    scale = wanted.float().flatten(1).abs().amax(1).clamp_min(1e-6)
    apart = (found.float() - wanted.float()).flatten(1).abs().amax(1) / scale
    beyond = [place for place, value in enumerate(apart.tolist()) if not value <= tolerance]
    place = beyond[0] if beyond else None
    return FormsCompared(
        name=name,
        difference=float(apart.max()),
        tolerance=tolerance,
        position=place if place is None or positions is None else positions[place],
    )
