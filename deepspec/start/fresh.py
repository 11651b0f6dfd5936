"""Where training starts: a fresh draft around the target's frozen embedding and head."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoTokenizer

from deepspec.checkpoint.checks import check_mask_token
from deepspec.checkpoint.draft import adopt_target
from deepspec.checkpoint.ends import read_ends
from deepspec.checkpoint.new import new_draft_config
from deepspec.checkpoint.options import check_objective
from deepspec.checkpoint.shipped import load_heads
from deepspec.errors import SpecError, TargetError
from deepspec.families import read_folder
from deepspec.families.ends import head_bias
from deepspec.formats.recipe import TRAITS
from deepspec.formats.tensor_heads import read_heads
from deepspec.models.config import DraftConfig
from deepspec.models.draft import BlockDraft, EagleDraft, build_draft
from deepspec.records.stream import Samples
from deepspec.start.beginning import Beginning
from deepspec.start.blocks import start_from_target
from deepspec.start.initial import initialize
from deepspec.start.vocabulary import learn_vocabulary
from deepspec.target_cache.facts import CacheFacts


def fresh_draft(
    spec: Beginning, facts: CacheFacts, folder: Path, samples: Samples, log: Callable[[str], None]
) -> BlockDraft | EagleDraft:
    """Return an untrained draft in fp32 on the CPU: the same weights on every machine.

    MTP heads begin as the target ships them, whatever start is asked for.

    Args:
        spec: shape, seed and kind of start.
        facts: of the cache: layers, sizes, mask token.
        folder: the target's.
        samples: of the training split: a reduced vocabulary is chosen by their tokens.
        log: told which vocabulary was chosen, and where the draft cannot start from the target.

    Raises:
        TargetError: the target's folder cannot be read, is not of the cache's sizes, or ships no heads where those
            are to be tuned.
        SpecError: no mask token can be chosen.
    """
    model = _around_target(build_draft(draft_config(spec, facts, folder)), spec, folder, samples, log)
    if TRAITS[model.config.algorithm].shipped:
        load_heads(model, folder)
        log("the draft starts as the heads that the target ships")
        return model
    initialize(model, spec.seed)
    if spec.start != "random" and not start_from_target(model, folder):
        log("the target's blocks have another form than the draft's: it starts from random weights")
    return model


def empty_draft(
    spec: Beginning, facts: CacheFacts, folder: Path, samples: Samples, device: torch.device
) -> BlockDraft | EagleDraft:
    """Return a draft of the same shape, vocabulary, embedding and head in fp32 on a device, its other weights not set.

    The host's memory holds nothing of it: it is for a rank that is given another one's weights. Arguments and errors as
    in `fresh_draft`.
    """
    with torch.device("meta"):
        model = build_draft(draft_config(spec, facts, folder))
    return _around_target(model.to_empty(device=device), spec, folder, samples, lambda _: None)


def _around_target(
    model: BlockDraft | EagleDraft, spec: Beginning, folder: Path, samples: Samples, log: Callable[[str], None]
) -> BlockDraft | EagleDraft:
    """Return a draft once it has its vocabulary, and the target's embedding and head."""
    embedding, head, bias = read_ends(folder)
    if embedding.shape != model.embed_tokens.weight.shape:
        wanted = tuple(model.embed_tokens.weight.shape)
        raise TargetError(f"target {folder}: its embedding is {tuple(embedding.shape)}, its config says {wanted}")
    chosen = learn_vocabulary(model, samples, spec.vocabulary_samples)
    if chosen is not None:
        log(chosen)
    own = embedding.clone()  # out of the mapped file, where it lies unaligned
    adopt_target(model, own, own if head is embedding else head.clone(), bias, keep_head=True)
    return model


def draft_config(spec: Beginning, facts: CacheFacts, folder: Path) -> DraftConfig:
    """Return the config of the draft to be trained on a cache.

    Raises:
        TargetError: the target's folder cannot be read, or is not of the cache's sizes.
        SpecError: no mask token can be chosen, or the algorithm has not what is asked of it.
        CheckpointError: conversations hold the mask token that was chosen.
    """
    shape = read_folder(folder)
    sizes = (shape.num_layers, shape.block.hidden_size, shape.vocab_size)
    if sizes != (facts.num_layers, facts.hidden_size, facts.vocab_size):
        wanted = (facts.num_layers, facts.hidden_size, facts.vocab_size)
        raise TargetError(f"target {folder}: layers, hidden size, vocabulary are {sizes}, the cache's {wanted}")
    shape = replace(shape, head_bias=head_bias(folder, read_heads(folder), shape.vocab_size) is not None)
    if facts.embedding_scale is not None:
        shape = replace(shape, embedding_scale=facts.embedding_scale)
    check_objective(spec.draft.algorithm, spec.objective)
    config = new_draft_config(shape, spec.draft, facts.layers, _mask_token(spec, facts), spec.objective)
    if spec.mask_token_id is not None:
        check_mask_token(config, AutoTokenizer.from_pretrained(folder))
    return config


def _mask_token(spec: Beginning, facts: CacheFacts) -> int | None:
    if not TRAITS[spec.draft.algorithm].masked:
        return None
    chosen = facts.mask_token_id if spec.mask_token_id is None else spec.mask_token_id
    if chosen is None:
        raise SpecError(f"the target has no mask token of its own: {facts.mask_token_advice}; set train.mask_token_id")
    return chosen
