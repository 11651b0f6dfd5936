"""The draft to be trained: the layers that it reads, its mask token, its vocabulary, and what it is judged by."""

from collections.abc import Sequence
from typing import Any

from deepspec.checkpoint.config import check_mask_token, new_draft_config
from deepspec.errors import SpecError
from deepspec.plan.known import Known
from deepspec.plan.rules.seen import LATER, Seen
from deepspec.target.layers import check_layers, default_layers
from deepspec.target.mask_token import choose_mask_token

TRAINED = "train"
HELD_OUT = "validation"
GIVEN = Seen("none is trained: a draft is given")


def layers(known: Known) -> Seen:
    """Hold the captured layers against those of the target."""
    if known.plan.draft is not None:
        return GIVEN
    chosen = captured(known)
    return LATER if chosen is None else Seen(f"{list(chosen)}{' of the cache' if known.facts else ''}")


def recipe(known: Known) -> Seen:
    """Hold the draft's shape, mask token and vocabulary against the target."""
    if known.plan.draft is not None:
        return GIVEN
    train, target, chosen = known.plan.train, known.target, captured(known)
    if target is None or chosen is None:
        return LATER
    needed, mask = train.draft.algorithm != "eagle3", None
    if needed:
        mask = _mask_token(known, target.rows)
    if needed and mask is None:
        return Seen("its mask token is seen when the tokenizer is loaded")
    config = new_draft_config(target.shape, train.draft, chosen, mask, train.objective)
    if train.mask_token_id is not None and known.tokenizer is not None:
        check_mask_token(config, known.tokenizer)
    return Seen(f"{config.algorithm}, {config.num_layers} layers{'' if mask is None else f', mask token {mask}'}")


def held_out(known: Known) -> Seen:
    """See that there is something to train on, and to judge by where the best weights are asked for."""
    plan = known.plan
    if plan.draft is not None:
        return GIVEN
    counts = None if known.facts is None else known.facts.splits
    stored = set(plan.cache.splits) if counts is None else {name for name, split in counts.items() if split.supervised}
    if counts is None and plan.prepare.splits.validation == 0:
        stored -= {HELD_OUT}
    if TRAINED not in stored:
        raise SpecError(f"there is nothing to train on: {_where(known)} supervises nothing in training")
    asked = [f"train.patience={plan.train.patience}"] if plan.train.patience else []
    asked += ["train.keep=best"] if plan.train.keep == "best" else []
    if asked and HELD_OUT not in stored:
        raise SpecError(
            f"there is nothing to judge by: {' and '.join(asked)} look at validation samples, and {_where(known)} "
            "has none; raise prepare.splits.validation, or leave them out"
        )
    return Seen(", ".join(sorted(stored)))


def captured(known: Known) -> Sequence[int] | None:
    """Return the layers that the draft reads; None where that hangs on a target that is not here yet.

    Raises:
        TargetError: the target has no such layers.
    """
    if known.facts is not None:
        return known.facts.layers
    if known.target is None:
        return None
    chosen = known.plan.cache.layers or default_layers(known.target.shape.num_layers)
    check_layers(chosen, known.target.shape.num_layers)
    return chosen


def _mask_token(known: Known, rows: int) -> int | None:
    """Return the mask token that training will take; None where only the loaded tokenizer can tell."""
    chosen, tokenizer = known.plan.train.mask_token_id, known.tokenizer
    if chosen is None and known.facts is not None:
        if known.facts.mask_token_id is None:
            raise SpecError(f"the cache has no mask token: {known.facts.mask_token_advice}; set train.mask_token_id")
        return known.facts.mask_token_id
    if chosen is None and tokenizer is None:
        return None
    reads: Any = tokenizer  # a chosen id is only held against the rows
    return choose_mask_token(reads, rows, chosen)


def _where(known: Known) -> str:
    if known.plan.dataset.cache is not None:
        return f"the cache {known.plan.dataset.cache}"
    return "the run (prepare.splits, cache.splits)"
