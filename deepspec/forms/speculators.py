"""The form of the `speculators` library: the block's config nested, layer ids counted from the embedding."""

import json
from typing import Any

from deepspec.checkpoint import foreign
from deepspec.checkpoint.checks import CONVOLVED, REFINED, parts_of
from deepspec.checkpoint.draft import BORROWED, CONFIG
from deepspec.formats.recipe import TRAITS
from deepspec.forms import heads
from deepspec.forms.form import (
    Form,
    FormSource,
    Json,
    Tensors,
    check_rope,
    has_window,
    not_style,
    safetensors_form,
    unlike_its_block,
    with_rope,
    without,
)
from deepspec.models.config import DraftConfig

_CLASSES = {
    "dspark": "DSparkSpeculator",
    "dflash": "DFlashSpeculator",
    "dflash2": "DFlash2DraftModel",
    "xpress": "XPressDraftModel",
    "eagle3": "Eagle3Speculator",
    "peagle": "PEagleDraftModel",
    "mtp": "MTPDraftModel",
}

_VERSION = "0.9.0"
"""Version of speculators whose form this is."""

_OURS = frozenset(
    {
        "architectures", "block_size", "confidence_head_with_markov", "draft_num_hidden_layers", "draft_vocab_size",
        "enable_confidence_head", "markov_head_type", "markov_rank", "mask_token_id", "num_anchors",
        "num_target_layers", "step_loss_decay", "target_layer_ids", "ttt_length", "sample_from_anchor",
        *CONVOLVED, *REFINED, foreign.WINDOW_FORM,
        "norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "embed_requires_grad",
    }
)  # fmt: skip
"""Keys of the public form that are not the block's."""

_NORMS = foreign.NORMS
"""Written where they are false, too: engines take some that are missing for true."""


def _refuse(source: FormSource) -> str | None:
    if TRAITS[source.draft.algorithm].shipped:
        return unlike_its_block(source.draft)
    blocks = TRAITS[source.draft.algorithm].blocks
    unread = None if blocks else has_window(source.draft, "its class for this kind of draft attends in full")
    styles = ("qwen3",) if blocks else ("qwen3", "llama")
    return not_style(source.draft, *styles) or unlike_its_block(source.draft) or unread


def _encode(source: FormSource) -> tuple[Json, Tensors, list[str]]:
    draft = source.draft
    config: Json = {
        "architectures": [_CLASSES[draft.algorithm]],
        "speculators_model_type": draft.algorithm,
        "speculators_version": _VERSION,
        "tie_word_embeddings": False,
        "transformer_layer_config": with_rope(
            {key: value for key, value in source.config.items() if key not in _OURS}, draft
        ),
        "speculators_config": _proposal(source),
        "dtype": str(source.tensors["fc.weight"].dtype).removeprefix("torch."),
    }
    if TRAITS[draft.algorithm].shipped:
        return _heads(draft, config), heads.to_speculators(dict(source.tensors)), _notes_of_heads(draft)
    config["draft_vocab_size"] = draft.draft_vocab_size
    layers = [layer + 1 for layer in draft.target_layer_ids]
    if not TRAITS[draft.algorithm].blocks:
        config |= {"eagle_aux_hidden_state_layer_ids": layers, **{key: getattr(draft.norms, key) for key in _NORMS}}
        if TRAITS[draft.algorithm].parallel:
            config |= {"mask_token_id": draft.mask_token_id, "embed_requires_grad": draft.train_embedding}
        return config, dict(source.tensors), []
    config |= {
        "aux_hidden_state_layer_ids": layers,
        "block_size": draft.block_size,
        "mask_token_id": draft.mask_token_id,
        "sample_from_anchor": draft.layout == "shift",
        "sliding_window_non_causal": draft.window_form != "causal",
    }
    if draft.window is not None:
        config[foreign.WINDOW_FORM] = draft.window_form
    config |= {key: getattr(draft, key) for key in parts_of(TRAITS[draft.algorithm])}
    if TRAITS[draft.algorithm].refined:
        config[foreign.JACOBI] = draft.drafts
    if TRAITS[draft.algorithm].heads:
        told = (draft.markov_rank, draft.markov_head, draft.confidence_head, draft.confidence_with_markov)
        config |= dict(zip(foreign.HEADS, told, strict=True))
    borrowed = BORROWED[:1] if draft.reduced_vocabulary else BORROWED
    return config, without(source.tensors, *borrowed), _notes(draft)


def _heads(draft: DraftConfig, config: Json) -> Json:
    read = {foreign.HEADS_READ: list(draft.target_layer_ids)} if draft.reads_normed else {}
    return {**config, "num_nextn_predict_layers": draft.num_layers, **read}


def _notes_of_heads(draft: DraftConfig) -> list[str]:
    """Return what heads in this form do not tell their library."""
    theirs = "the library trains heads on the target's state before its final norm; these read the one behind it"
    return [theirs] if draft.reads_normed else []


def _notes(draft: DraftConfig) -> list[str]:
    """Return the traps that this form has in engines."""
    if draft.layout == "fill_in":
        return ["not every vLLM translates this form; serve the folder for vllm"] if draft.selector_rank else []
    shift = "several vLLM versions ignore sample_from_anchor of this form and shift the block by one token"
    advice = "in vLLM serve the folder for vllm instead"
    return [f"{shift}; {advice}" + ("" if TRAITS[draft.algorithm].heads else ", as DSpark")]


def _proposal(source: FormSource) -> Json:
    verifier = {"name_or_path": source.target, "architectures": _target_architectures(source)}
    method = {
        "proposal_type": "greedy",
        "speculative_tokens": source.draft.drafts,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    return {
        "algorithm": source.draft.algorithm,
        "proposal_methods": [method],
        "default_proposal_method": "greedy",
        "verifier": verifier,
    }


def _target_architectures(source: FormSource) -> list[Any]:
    if source.target_folder is None:
        return []
    told = json.loads((source.target_folder / CONFIG).read_text(encoding="utf-8"))
    return list(told.get("architectures") or [])


def _decode(config: Json, tensors: Tensors) -> tuple[Json, Tensors]:
    check_rope(config["transformer_layer_config"])
    return foreign.decode_speculators(config), foreign.public_tensors(config, tensors)


SPECULATORS: Form = safetensors_form(_refuse, _encode, _decode)
