"""With which weights a run begins: the one place that says it."""

from collections.abc import Callable

from torch import Tensor

from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.records.stream import Samples
from deepspec.start.beginning import Beginning
from deepspec.start.bigrams import start_markov_head
from deepspec.start.fitted import anchors_for, fit_first_block
from deepspec.start.fresh import fresh_draft
from deepspec.start.previous import continued, warm_weights
from deepspec.target_cache.facts import CacheFacts

Log = Callable[[str], None]


def new_draft(
    spec: Beginning, facts: CacheFacts, samples: Samples, placement: Placement, log: Log
) -> BlockDraft | EagleDraft:
    """Return the draft of a run that begins, in fp32 on the CPU; where an earlier draft's weights take the place of its
    own, no sample is read for a start.

    Only the first rank makes it: the others have `empty_draft`, and are given its weights before the first step.

    Args:
        spec: shape, seed and kind of start.
        facts: of the cache: layers, sizes, mask token.
        samples: of the training split.
        placement: where the target lies.
        log: told what was chosen, and what could not be done.

    Raises:
        TargetError: the target's folder cannot be read, or is not of the cache's sizes.
        SpecError: no mask token can be chosen.
    """
    spec = spec if spec.begins_anew else spec.of_given_weights()
    model = fresh_draft(spec, facts, placement.target_folder(facts.target.digest), samples, log)
    anchors = anchors_for(model) if spec.start == "fitted" else None
    bigrams = start_markov_head(model, samples, spec.bigram_samples, None if anchors is None else anchors.add)
    unfit = fit_first_block(model, samples, bigrams, anchors) if spec.start == "fitted" else None
    if unfit is not None:
        log(f"the draft cannot start from a linear guess: {unfit}")
    return model


def earlier_weights(spec: Beginning, steps: int, out: Out, placement: Placement, log: Log) -> dict[str, Tensor] | None:
    """Return the tensors of an earlier draft that a run begins with in place of the new draft's; None: of none.

    Master weights are named `master.…`; with them comes the optimizer's state where the spec continues a draft.

    Args:
        spec: names the earlier draft, or none.
        steps: of the run that begins, for the log.
        out: of the run: its store has published drafts.
        placement: where public checkpoints lie.
        log: told what is taken.

    Raises:
        CheckpointError: the earlier draft is not there, or has another shape.
    """
    if spec.continue_from is not None:
        return continued(spec.continue_from, steps, out, placement, log)
    if spec.warm_start is not None:
        return warm_weights(spec.warm_start, out, placement, log)
    return None
