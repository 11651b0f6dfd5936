"""The draft to be trained: the layers that it reads, its mask token, its vocabulary, and what it is judged by."""

from collections.abc import Sequence
from typing import Any

from deepspec.checkpoint.checks import check_mask_token
from deepspec.checkpoint.new import new_draft_config
from deepspec.checkpoint.options import check_objective, check_recipe
from deepspec.errors import SpecError
from deepspec.families.shipped import check_names
from deepspec.formats.recipe import TRAITS, AlgorithmName, drafts
from deepspec.forms.names import (
    COUNTED_FORMS,
    EAGLE_FORMS,
    EAGLE_LAYERS,
    EAGLE_STYLE,
    HEAD_FORMS,
    NO_EMBEDDING_FORMS,
)
from deepspec.models.config import DraftConfig
from deepspec.plan.known import Known
from deepspec.plan.layers import layers_of
from deepspec.plan.plan import Plan
from deepspec.plan.rules.seen import LATER, Seen
from deepspec.target.layers import EMBEDDING, normed
from deepspec.target.mask_token import choose_mask_token

TRAINED = "train"
HELD_OUT = "validation"
GIVEN = Seen("none is trained: a draft is given")


def layers(known: Known) -> Seen:
    """Hold the captured layers against those of the target."""
    if known.plan.draft is not None:
        return GIVEN
    chosen = captured(known)
    if chosen is None:
        return LATER
    return Seen(
        f"{list(chosen)}{' of the cache' if known.facts else ''}",
        _unexpressed(known.plan, chosen) + _embedded(known.plan, chosen) + _unread(known, chosen),
    )


def _unexpressed(plan: Plan, chosen: Sequence[int]) -> tuple[str, ...]:
    """Return which engines' forms have no place for an Eagle3 draft of so many captured layers."""
    forms = [form for form in plan.export.forms if form in COUNTED_FORMS]
    if plan.train.draft.algorithm != "eagle3" or len(chosen) == EAGLE_LAYERS or not forms:
        return ()
    fitting = [chosen[0], chosen[len(chosen) // 2], chosen[-1]]
    how = f"; with cache.layers={fitting} it can" if len(chosen) > EAGLE_LAYERS else ""
    return (
        f"an eagle3 draft of {len(chosen)} captured layers cannot be written for {' and '.join(forms)}, which has "
        f"{EAGLE_LAYERS}, nor served and measured by it{how}",
    )


def _embedded(plan: Plan, chosen: Sequence[int]) -> tuple[str, ...]:
    """Return which engines' forms have no place for a draft of blocks that reads the embedding."""
    forms = [form for form in plan.export.forms if form in NO_EMBEDDING_FORMS]
    if not TRAITS[plan.train.draft.algorithm].blocks or EMBEDDING not in chosen or not forms:
        return ()
    return (
        f"a {plan.train.draft.algorithm} draft that reads the embedding (layer {EMBEDDING}) cannot be written for "
        f"{' and '.join(forms)}, whose blocks read decoder layers alone; with others in cache.layers it can",
    )


def _unread(known: Known, chosen: Sequence[int]) -> tuple[str, ...]:
    """Return which engines' forms refuse heads that read these layers: engines hand them what is behind the norm."""
    forms = [form for form in known.plan.export.forms if form in HEAD_FORMS]
    if not TRAITS[known.plan.train.draft.algorithm].shipped or known.target is None or not forms:
        return ()
    last = normed(known.target.shape.num_layers)
    if tuple(chosen) == (last,):
        return ()
    return (
        f"heads that read layers {list(chosen)} cannot be written for {' and '.join(forms)}, which hand them the state "
        f"behind the final norm; with cache.layers=[{last}], the default, they can",
    )


def recipe(known: Known) -> Seen:
    """Hold the draft's shape, mask token and vocabulary against the target."""
    if known.plan.draft is not None:
        return GIVEN
    train = known.plan.train
    check_recipe(train.draft)
    check_objective(train.draft.algorithm, train.objective)
    check_slots(known.plan, train.draft.algorithm, drafts(train.draft, train.objective))
    config = wanted(known)
    if config is None:
        return LATER
    if known.plan.train.mask_token_id is not None and known.tokenizer is not None:
        check_mask_token(config, known.tokenizer)
    mask = "" if config.mask_token_id is None else f", mask token {config.mask_token_id}"
    return Seen(f"{config.algorithm}, {config.num_layers} layers{mask}", _other_block(known, config))


def _other_block(known: Known, config: DraftConfig) -> tuple[str, ...]:
    """Return which engines' forms have no place for the block of an Eagle3 draft."""
    forms = [form for form in known.plan.export.forms if form in EAGLE_FORMS]
    if config.algorithm != "eagle3" or config.style == EAGLE_STYLE or not forms:
        return ()
    alike = known.target is not None and known.target.shape.model_type == EAGLE_STYLE
    how = "; with train.draft.shape=target, which is such a block, they can" if alike else ""
    return (
        f"an eagle3 draft with a {config.style} block cannot be written for {' and '.join(forms)}, which have a "
        f"{EAGLE_STYLE} block, nor served and measured by them{how}",
    )


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
    return layers_of(known.plan, known.target.shape.num_layers)


def wanted(known: Known) -> DraftConfig | None:
    """Return the draft to be trained; None where that hangs on a target or a tokenizer that is not read yet.

    Raises:
        InputError: there is none of this shape.
    """
    train, target, chosen, mask = known.plan.train, known.target, captured(known), None
    if target is None or chosen is None:
        return None
    if TRAITS[train.draft.algorithm].masked:
        mask = _mask_token(known, target.rows)
        if mask is None:
            return None
    if TRAITS[train.draft.algorithm].shipped:
        check_names(target.heads, str(target.folder))
    return new_draft_config(target.shape, train.draft, chosen, mask, train.objective)


def check_slots(plan: Plan, algorithm: AlgorithmName, most: int) -> None:
    """Check that a draft proposes as many tokens at a time as are asked of it: any number where it is one by one.

    Raises:
        SpecError: it proposes fewer.
    """
    for name, count in {"evaluate.slots": plan.evaluate.slots, "benchmark.slots": plan.benchmark.slots}.items():
        if TRAITS[algorithm].masked and count is not None and count > most:
            raise SpecError(f"{name} is {count}: the draft proposes {most} tokens at a time; lower it")


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
