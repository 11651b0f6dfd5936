"""Proof of an export: the form is read back by its own rules, and its outputs compared with the draft's."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from deepspec.checkpoint.config import read_draft_config
from deepspec.errors import ParityError
from deepspec.formats.recipe import TRAITS
from deepspec.forms.form import FormSource
from deepspec.models.config import DraftConfig
from deepspec.models.draft import BlockDraft, EagleDraft, build_draft

TOLERANCE = 1e-5
"""Largest difference of two logits; the same weights in the same kernels usually give none."""

CONTEXT = 12
"""Positions of the golden batch."""
STRIDES = (1, 7919)
"""How far apart they lie: side by side, and as in a long context, where ropes that differ a little are far apart."""


def read_back(source: FormSource, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> BlockDraft | EagleDraft:
    """Return the draft that a form describes, with what the form leaves to the target.

    Args:
        source: the draft that was written.
        config: of the form, in public keys; what only the target knows may be missing.
        tensors: of the form, in public names; the target's own may be missing.

    Raises:
        ParityError: it describes another draft, or its tensors do not fit.
        CheckpointError: it does not describe a draft.
    """
    known = {"num_target_layers": source.draft.num_target_layers, "ttt_length": source.draft.block_size}
    told = read_draft_config({**known, **config})
    _check_config(told, source.draft)
    borrowed = {name: source.tensors[name] for name in ("embed_tokens.weight", "lm_head.weight")}
    return draft_with(told, {**borrowed, **tensors})


def output_difference(form: BlockDraft | EagleDraft, draft: BlockDraft | EagleDraft) -> float:
    """Return the largest absolute difference between the outputs of a form that was read back and of the draft.

    Raises:
        ParityError: they differ by more than rounding.
    """
    return max(apart(outputs(form, stride), outputs(draft, stride), stride) for stride in STRIDES)


def apart(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], stride: int = STRIDES[0]) -> float:
    """Return the largest absolute difference between outputs by name.

    Args:
        found: of a form that was read back.
        wanted: of the draft.
        stride: between the positions that were looked at.

    Raises:
        ParityError: one of them differs by more than rounding, is no number, or is not there.
    """
    missing = found.keys() ^ wanted.keys()
    if missing - {"confidence"}:
        raise ParityError(f"the form read back gives {sorted(found)}, the draft {sorted(wanted)}; export again")
    by_name = {name: float((found[name] - wanted[name]).abs().max()) for name in sorted(found.keys() & wanted.keys())}
    for name, by in by_name.items():  # one by one: the largest of several may hide one that is no number
        if not by <= TOLERANCE:
            raise ParityError(
                f"the form read back differs from the draft by {by:g} in {name}, more than {TOLERANCE:g}" + _far(stride)
            )
    return max(by_name.values())


def _far(stride: int) -> str:
    """Return what an error adds where only far positions show it."""
    return "" if stride == STRIDES[0] else f", between positions {stride} apart: is its rope the draft's?"


def _check_config(found: DraftConfig, wanted: DraftConfig) -> None:
    """Compare what outputs on given states do not show: captured layers, mask token, sizes, rope."""
    keys = (
        "target_layer_ids", "mask_token_id", "num_layers", "vocab_size", "draft_vocab_size", "embedding_scale",
        "layout", "norms", "train_embedding", "conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k",
        "windows", "window_form", "xpress_rank", "xpress_mlp_ratio", "head_bias",
    )  # fmt: skip
    pairs = {key: (getattr(found, key), getattr(wanted, key)) for key in (*keys, "logit_softcap")}
    if TRAITS[wanted.algorithm].masked:
        pairs["block_size"] = (found.block_size, wanted.block_size)
    pairs |= _pairs(asdict(found.block), asdict(wanted.block))
    wrong = [f"{key} {have!r}, wanted {want!r}" for key, (have, want) in pairs.items() if not _same(have, want)]
    if wrong:
        raise ParityError(f"the form read back says {'; '.join(wrong)}")


def _pairs(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    pairs = {key: (found[key], wanted[key]) for key in found if key != "rope"}
    return pairs | {f"rope.{key}": (value, wanted["rope"][key]) for key, value in found["rope"].items()}


def _same(found: Any, wanted: Any) -> bool:
    """Return whether two values are equal, floats up to the rounding of fp32."""
    if isinstance(found, float) and isinstance(wanted, float):
        return math.isclose(found, wanted, rel_tol=1e-6)
    return bool(found == wanted)


def draft_with(config: DraftConfig, tensors: Mapping[str, Tensor]) -> BlockDraft | EagleDraft:
    """Return a draft with these weights, in fp32 and eval mode.

    Raises:
        ParityError: names or shapes do not fit.
    """
    with torch.device("meta"):
        model = build_draft(replace(config, source={}))
    weights = {name: _in_memory(tensor) for name, tensor in tensors.items()}
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ParityError(f"the form read back does not fit its own config: {error}") from error
    return model.eval()


def _in_memory(tensor: Tensor) -> Tensor:
    """Return a copy, in fp32 where it is a weight: in a mapped file it lies unaligned, and kernels round otherwise."""
    return tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor.clone()


@torch.no_grad()
def outputs(model: BlockDraft | EagleDraft, stride: int = 1) -> dict[str, Tensor]:
    """Return logits (and confidence) of a draft on a fixed batch of seeded states and tokens, a stride apart."""
    generator = torch.Generator().manual_seed(1)
    config = model.config
    hidden = torch.randn(1, CONTEXT, config.num_captured * config.block.hidden_size, generator=generator)
    ids = torch.randint(config.vocab_size, (1, CONTEXT), generator=generator)
    hidden, ids = hidden.to(model.fc.weight.device), ids.to(model.fc.weight.device)
    positions = stride * torch.arange(CONTEXT + config.block_size, device=ids.device)[None]
    if isinstance(model, EagleDraft):
        return _eagle(model, hidden, ids, positions[:, :CONTEXT])
    return _block(model, hidden, ids, positions)


def _block(model: BlockDraft, hidden: Tensor, ids: Tensor, positions: Tensor) -> dict[str, Tensor]:
    slots = model.config.block_size
    context = model.context_keys_values(model.context(hidden), positions[:, :CONTEXT])
    block = torch.full_like(positions[:, :slots], model.config.mask_token_id or 0)
    block[:, 0] = ids[:, 0]
    state = model(block, positions[:, CONTEXT:], context, None)
    previous = ids.repeat(1, slots)[:, :slots]
    logits = model.head(state)
    embedded = None if model.markov_head is None else model.markov_head.embed(previous)
    if model.markov_head is not None and embedded is not None:
        logits = logits + model.markov_head.markov_w2(model.markov_head.sequence(embedded, state))
    if model.refiner_head is not None:
        refined = model.refiner_head.features(model.refiner_head.seen(state), previous)
        logits = logits + model.refiner_head.readout(refined)
    found = {"logits": logits}
    if model.candidate_selector is not None:
        some = previous[..., None].expand(-1, -1, slots).flatten(0, 1)
        found["selector"] = model.candidate_selector(state.flatten(0, 1), previous.flatten(), some)
    if model.confidence_head is not None:
        found["confidence"] = model.confidence(state, embedded)
    return found


def _eagle(model: EagleDraft, hidden: Tensor, ids: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """Two steps: over the context, then one token fed with the output of the first, or a mask token."""
    causal = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool, device=ids.device).tril()[None, None]
    output, seen = model(ids, model.fuse(hidden), positions, None, causal)
    token, state = ids[:, :1], model.handed(output[:, -1:])
    if TRAITS[model.config.algorithm].parallel:
        token, state = (each.expand_as(other) for each, other in zip(model.masked(), (token, state), strict=True))
    after, _ = model(token, state, positions[:, -1:] + 1, seen, None)
    found = {"first": model.logits(output), "second": model.logits(after)}
    known = model.known_ids()
    return found if known is None else {**found, "ids": known.float()}
