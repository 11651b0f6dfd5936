"""The form of the `speculators` library: the block's config nested, layer ids counted from the embedding."""

import json
from typing import Any

from deepspec.checkpoint.draft import CONFIG
from deepspec.export.form import (
    BORROWED,
    Form,
    Json,
    Source,
    Tensors,
    not_style,
    safetensors_form,
    unlike_its_block,
    without,
)

_CLASSES = {"dspark": "DSparkSpeculator", "dflash": "DFlashSpeculator", "eagle3": "Eagle3Speculator"}

_VERSION = "0.9.0"
"""Version of speculators whose form this is."""

_OURS = frozenset(
    {
        "architectures", "block_size", "confidence_head_with_markov", "draft_num_hidden_layers", "draft_vocab_size",
        "enable_confidence_head", "markov_head_type", "markov_rank", "mask_token_id", "num_anchors",
        "num_target_layers", "step_loss_decay", "target_layer_ids", "ttt_length",
    }
)  # fmt: skip
"""Keys of the public form that are not the block's."""

_HEADS = ("markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov")

_EAGLE_FLAGS = dict.fromkeys(("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output"), False)


def _refuse(source: Source) -> str | None:
    styles = ("qwen3", "llama") if source.draft.algorithm == "eagle3" else ("qwen3",)
    return not_style(source.draft, *styles) or unlike_its_block(source.draft)


def _encode(source: Source) -> tuple[Json, Tensors, list[str]]:
    draft = source.draft
    config: Json = {
        "architectures": [_CLASSES[draft.algorithm]],
        "speculators_model_type": draft.algorithm,
        "speculators_version": _VERSION,
        "draft_vocab_size": draft.draft_vocab_size,
        "tie_word_embeddings": False,
        "transformer_layer_config": {key: value for key, value in source.config.items() if key not in _OURS},
        "speculators_config": _proposal(source),
        "dtype": str(source.tensors["fc.weight"].dtype).removeprefix("torch."),
    }
    layers = [layer + 1 for layer in draft.target_layer_ids]
    if draft.algorithm == "eagle3":
        return {**config, "eagle_aux_hidden_state_layer_ids": layers, **_EAGLE_FLAGS}, dict(source.tensors), []
    config |= {
        "aux_hidden_state_layer_ids": layers,
        "block_size": draft.block_size,
        "mask_token_id": draft.mask_token_id,
        "sample_from_anchor": True,
        "sliding_window_non_causal": True,
    }
    if draft.algorithm == "dspark":
        heads = (draft.markov_rank, draft.markov_head, draft.confidence_head, draft.confidence_with_markov)
        config |= dict(zip(_HEADS, heads, strict=True))
    borrowed = BORROWED[:1] if draft.reduced_vocabulary else BORROWED
    return config, without(source.tensors, *borrowed), [_note(draft.algorithm)]


def _note(algorithm: str) -> str:
    """Return the trap that this form has in engines."""
    shift = "several vLLM versions ignore sample_from_anchor of this form and shift the block by one token"
    return f"{shift}; in vLLM serve the folder for vllm instead" + (", as DSpark" if algorithm == "dflash" else "")


def _proposal(source: Source) -> Json:
    verifier = {"name_or_path": source.target, "architectures": _target_architectures(source)}
    method = {
        "proposal_type": "greedy",
        "speculative_tokens": source.draft.block_size,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    return {
        "algorithm": source.draft.algorithm,
        "proposal_methods": [method],
        "default_proposal_method": "greedy",
        "verifier": verifier,
    }


def _target_architectures(source: Source) -> list[Any]:
    if source.target_folder is None:
        return []
    told = json.loads((source.target_folder / CONFIG).read_text(encoding="utf-8"))
    return list(told.get("architectures") or [])


def _decode(config: Json, tensors: Tensors) -> tuple[Json, Tensors]:
    block = config["transformer_layer_config"]
    eagle = config["speculators_model_type"] == "eagle3"
    style = "Llama" if block["model_type"] == "llama" else "Qwen3"
    layers = config["eagle_aux_hidden_state_layer_ids" if eagle else "aux_hidden_state_layer_ids"]
    public = {
        **block,
        "architectures": [style + ("Eagle3Model" if eagle else "DSparkModel")],
        "draft_vocab_size": config["draft_vocab_size"],
        "target_layer_ids": [layer - 1 for layer in layers],
    }
    if eagle:
        proposal = config["speculators_config"]["proposal_methods"][0]
        return {**public, "ttt_length": proposal["speculative_tokens"]}, tensors
    public |= {key: config[key] for key in ("block_size", "mask_token_id", *_HEADS) if key in config}
    return public, tensors


SPECULATORS: Form = safetensors_form(_refuse, _encode, _decode)
