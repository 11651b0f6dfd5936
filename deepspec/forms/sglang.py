"""SGLang's forms: DSpark with its fields also nested in `dflash_config`; Eagle3 as LlamaForCausalLMEagle3.

Layers with a window are causal ones there unless `is_causal` is false; Eagle3's class reads none from its config, and
is told one by the command. Blocks read decoder layers alone, of which the first has the id 0; Eagle3's class takes the
embedding, -1, too, and any number of layers.
"""

import torch

from deepspec.checkpoint.draft import BORROWED
from deepspec.formats.recipe import TRAITS
from deepspec.forms import heads, zlab
from deepspec.forms.form import (
    Form,
    FormSource,
    Json,
    Tensors,
    check_rope,
    has_norms,
    not_by_slot,
    not_filled_in,
    not_parallel,
    not_refined,
    not_style,
    not_whole,
    safetensors_form,
    turns_whole_heads,
    unlike_its_block,
    with_rope,
    with_zero_markov,
    without,
)
from deepspec.forms.names import EAGLE_STYLE
from deepspec.models.config import DraftConfig

_EAGLE = "LlamaForCausalLMEagle3"
_NESTED = ("target_layer_ids", "mask_token_id", "markov_rank", "markov_head_type")
_CONFIDENCE = ("enable_confidence_head", "confidence_head_with_markov")
_EAGLE_NORMS = ("norm_before_fc", "fc_norm", "norm_output")
_WINDOW = "--speculative-draft-window-size"
"""By which alone its Eagle3 class gets a window, the same for all layers."""


def _refuse(source: FormSource) -> str | None:
    draft = source.draft
    if turns_whole_heads(draft) or not_refined(draft):
        return turns_whole_heads(draft) or not_refined(draft)
    if TRAITS[draft.algorithm].blocks:
        return _refuse_blocks(draft) or not_by_slot(draft) or _reads_embedding(draft)
    if TRAITS[draft.algorithm].parallel:
        return not_parallel(draft)
    unread = _itself_alone(draft) or has_norms(draft, *_EAGLE_NORMS)
    return not_style(draft, EAGLE_STYLE) or unlike_its_block(draft) or unread


def _itself_alone(draft: DraftConfig) -> str | None:
    if draft.window != 1:
        return None
    return f"a window of 1 position; {_WINDOW} counts those before a token's own, and takes no 0"


def _refuse_blocks(draft: DraftConfig) -> str | None:
    if zlab.is_filled_in(draft):
        return zlab.refuse(draft)
    return not_filled_in(draft) or not_style(draft, "qwen3") or unlike_its_block(draft) or not_whole(draft)


def _reads_embedding(draft: DraftConfig) -> str | None:
    if min(draft.target_layer_ids) >= 0:
        return None
    return f"a {draft.algorithm} draft that reads the embedding (layer -1); its blocks read decoder layers alone"


def _encode(source: FormSource) -> tuple[Json, Tensors, list[str]]:
    if zlab.is_filled_in(source.draft):
        return zlab.encode_filled(source)
    if not TRAITS[source.draft.algorithm].blocks:
        return _encode_eagle(source)
    config, tensors, notes = with_zero_markov(source)
    nested = {key: config[key] for key in (*_NESTED, *_CONFIDENCE) if key in config}
    config["dflash_config"] = {**nested, "projector_type": "dspark", "attention_mode": "gqa"}
    return zlab.both_ways(with_rope(config, source.draft), source.draft), without(tensors, *BORROWED), notes


def _encode_eagle(source: FormSource) -> tuple[Json, Tensors, list[str]]:
    draft = source.draft
    config = {key: value for key, value in source.config.items() if key != "target_layer_ids"}
    config = with_rope(config, draft) | {
        "architectures": [_EAGLE],
        "draft_vocab_size": draft.draft_vocab_size,
        "eagle_config": {
            "eagle_aux_hidden_state_layer_ids": list(draft.target_layer_ids),
            "use_aux_hidden_state": True,
        },
    }
    tensors = without(source.tensors, "embed_tokens.weight")
    if not draft.reduced_vocabulary:
        tensors["d2t"] = torch.zeros(draft.vocab_size, dtype=torch.int64)
        tensors["t2d"] = torch.ones(draft.vocab_size, dtype=torch.bool)
    named = {_renamed(name, "layers.0.", "midlayer."): tensor for name, tensor in tensors.items()}
    return config, named, [note for option in _options(source) for note in _of_window(option)]


def _options(source: FormSource) -> tuple[str, ...]:
    """Return the window as its Eagle3 class counts it: the positions before a token's own."""
    draft = source.draft
    if TRAITS[draft.algorithm].blocks or draft.window is None:
        return ()
    return (f"{_WINDOW} {draft.window - 1}",)


def _of_window(option: str) -> list[str]:
    return [
        f"SGLang reads the window from no file: without {option} (the positions before a token's own) the draft "
        "attends in full, and the longer the context the less of it is accepted",
        "SGLang's FlashInfer attention, by its source (0.5.23, not run), leaves the window out at the drafts behind "
        "the first of a round; --speculative-draft-attention-backend triton keeps it there, one position short",
    ]


def _decode(config: Json, tensors: Tensors) -> tuple[Json, Tensors]:
    check_rope(config)
    if zlab.decodes(config):
        return zlab.decode(config, tensors)
    if config["architectures"] != [_EAGLE]:
        zlab.check_both_ways(config)
        own = {key: value for key, value in config["dflash_config"].items() if key != "causal"}
        return {key: value for key, value in {**config, **own}.items() if key != "is_causal"}, tensors
    public = {key: value for key, value in config.items() if key != "eagle_config"}
    public["architectures"] = ["LlamaEagle3Model"]
    public["target_layer_ids"] = config["eagle_config"]["eagle_aux_hidden_state_layer_ids"]
    named = {_renamed(name, "midlayer.", "layers.0."): tensor for name, tensor in tensors.items()}
    whole = config["draft_vocab_size"] == config["vocab_size"]
    return public, without(named, "d2t", "t2d") if whole else named


def _renamed(name: str, old: str, new: str) -> str:
    return new + name.removeprefix(old) if name.startswith(old) else name


SGLANG: Form = heads.served_with_target(
    safetensors_form(_refuse, _encode, _decode, _options), "with --speculative-algorithm NEXTN and no draft path"
)
