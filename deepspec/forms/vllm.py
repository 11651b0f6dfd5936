"""vLLM's native form: the public DeepSpec form for DSpark, an own class name and layer count for Eagle3.

P-EAGLE is its Eagle3 with a mask token, `pard_token`, and the state beside it. DFlash in the layout fill_in,
DFlash 2 and XPress are written as their authors have them (zlab.py).
"""

from deepspec.checkpoint.config import KINDS
from deepspec.formats.recipe import TRAITS
from deepspec.forms import heads, zlab
from deepspec.forms.form import (
    Form,
    FormSource,
    Json,
    Tensors,
    check_rope,
    has_norms,
    has_window,
    not_by_slot,
    not_filled_in,
    not_style,
    not_vanilla,
    not_whole,
    safetensors_form,
    unlike_its_block,
    with_rope,
    with_zero_markov,
)

_EAGLE = {"qwen3": "Eagle3Qwen3ForCausalLM", "llama": "Eagle3LlamaForCausalLM"}

_FLAGS = ("norm_before_residual", "norm_output")
"""Written where they are false, too: vLLM takes a missing norm_before_residual for true."""
_PRE_NORMS = ("norm_before_fc", "fc_norm")
_MASK = "pard_token"
"""Key of the token that stands for unknown ones where all are drafted in a pass."""
_NO_WINDOW = "its class for this block attends in full"
_TRAINED = "num_depths"
"""How many tokens a pass was trained for; vLLM does not read it."""


def _refuse(source: FormSource) -> str | None:
    draft = source.draft
    if not TRAITS[draft.algorithm].blocks:
        unread = has_norms(draft, "norm_before_fc", *_FLAGS) if TRAITS[draft.algorithm].parallel else None
        unread = unread or (None if draft.style == "llama" else has_window(draft, _NO_WINDOW))
        return not_style(draft, *_EAGLE) or unlike_its_block(draft) or unread
    if zlab.is_filled_in(draft):
        return zlab.refuse(draft) or not_by_slot(draft)
    unmapped = (not_whole(draft) or has_window(draft, _NO_WINDOW)) if draft.style == "gemma4" else None
    unknown = not_filled_in(draft) or not_by_slot(draft) or not_style(draft, "qwen3", "gemma4")
    return unknown or unlike_its_block(draft) or not_vanilla(draft) or unmapped


def _encode(source: FormSource) -> tuple[Json, Tensors, list[str]]:
    if zlab.is_filled_in(source.draft):
        config, tensors, notes = zlab.encode_filled(source)
        return config, tensors, [zlab.NOT_RUN] if TRAITS[source.draft.algorithm].convolved else notes
    if TRAITS[source.draft.algorithm].blocks:
        config, tensors, notes = with_zero_markov(source)
        return zlab.both_ways(with_rope(config, source.draft), source.draft), tensors, notes
    norms = source.draft.norms
    left = ("target_layer_ids", "mask_token_id", "block_size")
    config = {key: value for key, value in source.config.items() if key not in left}
    config = with_rope(config, source.draft) | {
        "architectures": [_EAGLE[source.draft.style]],
        "eagle_aux_hidden_state_layer_ids": [layer + 1 for layer in source.draft.target_layer_ids],
        "draft_vocab_size": source.draft.draft_vocab_size,
        **{key: getattr(norms, key) for key in _FLAGS},
        **{key: True for key in _PRE_NORMS if getattr(norms, key)},
    }
    if not TRAITS[source.draft.algorithm].parallel:
        return config, dict(source.tensors), []
    config[_MASK] = source.draft.mask_token_id
    most = source.draft.drafts
    note = f'all tokens come of one pass: serve it with "parallel_drafting": true, and at most {most} tokens'
    return {**config, _TRAINED: most}, dict(source.tensors), [note]


def _decode(config: Json, tensors: Tensors) -> tuple[Json, Tensors]:
    check_rope(config)
    if zlab.decodes(config):
        return zlab.decode(config, tensors)
    if config["architectures"][0] not in _EAGLE.values():
        zlab.check_both_ways(config)
        return {key: value for key, value in config.items() if key not in ("is_causal", "dflash_config")}, tensors
    style = next(style for style, name in _EAGLE.items() if name == config["architectures"][0])
    public = {key: value for key, value in config.items() if key not in _FLAGS or value}
    parallel = _MASK in public
    public["architectures"] = [style.capitalize() + KINDS["peagle" if parallel else "eagle3"]]
    if parallel:
        public |= {"mask_token_id": public.pop(_MASK), "block_size": public.pop(_TRAINED)}
    public["target_layer_ids"] = [layer - 1 for layer in public.pop("eagle_aux_hidden_state_layer_ids")]
    return public, tensors


VLLM: Form = heads.served_with_target(
    safetensors_form(_refuse, _encode, _decode),
    """with --speculative-config '{"method": "mtp", "num_speculative_tokens": …}'""",
)
