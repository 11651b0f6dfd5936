"""What no training gives: a fresh draft of the same shape."""

import torch

from deepspec.checkpoint.draft import adopt_target
from deepspec.checkpoint.shipped import load_heads
from deepspec.formats.recipe import TRAITS
from deepspec.models.draft import BlockDraft, EagleDraft, build_draft
from deepspec.models.layout import dense, lay_out_for_decoding
from deepspec.target.load import Target


def untrained_draft(draft: BlockDraft | EagleDraft, target: Target, seed: int) -> BlockDraft | EagleDraft:
    """Return a draft of the same shape with random weights; embedding, head and vocabulary are the draft's own.

    Of heads that the target ships, these: what tuning them gave is what it is held against.

    Args:
        draft: the trained one.
        target: gives embedding and head.
        seed: of the weights.

    Raises:
        TargetError: the target does not ship the heads that the draft is made of.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build_draft(draft.config)
    weight = draft.fc.weight
    fresh = fresh.to(weight.device, weight.dtype)
    if draft.config.reduced_vocabulary:
        fresh.d2t.copy_(draft.d2t)
        fresh.t2d.copy_(draft.t2d)
    adopt_target(
        fresh, target.embed_weight, dense(target.head_weight), target.head_bias if draft.config.head_bias else None
    )
    if TRAITS[draft.config.algorithm].shipped:
        load_heads(fresh, target.folder)
    lay_out_for_decoding(fresh)
    return fresh.eval().requires_grad_(False)
