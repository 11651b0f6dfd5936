"""The native form of DFlash's authors: blocks that are filled in, for DFlash and DFlash 2, in vLLM and SGLang.

The block's config lies at top level, what is DFlash's own in `dflash_config`; layers count from the first decoder
layer, as ours do. Embedding and head are the target's and stay out. XPress' authors write theirs in the same form, with
the refiner's sizes at top level and its tensors under names of their own, for a branch of vLLM.
"""

from collections.abc import Mapping

from deepspec.checkpoint.config import KINDS
from deepspec.checkpoint.draft import BORROWED
from deepspec.errors import CheckpointError
from deepspec.formats.recipe import TRAITS, AlgorithmName
from deepspec.forms.form import FormSource, Json, Tensors, biased, not_style, with_rope, without
from deepspec.models.config import DraftConfig

_CLASSES: Mapping[AlgorithmName, str] = {
    "dflash": "DFlashDraftModel",
    "dflash2": "DFlash2DraftModel",
    "xpress": "Qwen3XPressModel",
}
_OWN = ("target_layer_ids", "mask_token_id", "block_size")
_CONVOLVED = ("conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k")
NOT_RUN = "read back, not run: hold its acceptance against ours first"
_TOKEN_BEFORE = (
    "its class is in XPress' own branch of vLLM, which may take the anchor for the token before it: then it drafts a "
    "little worse than here"
)
_SCALES = {"embedding_scale": "input_embedding_scale", "final_logit_softcapping": "final_logit_softcapping"}
"""Our key -> its key of `dflash_config`; the class of DFlash 2 alone knows them."""
_REFINER = {
    "token_embed.weight": "w1.weight",
    "mix_l": "mix.L",
    "mlp_gate.weight": "mlp.gate_proj.weight",
    "mlp_up.weight": "mlp.up_proj.weight",
    "mlp_down.weight": "mlp.down_proj.weight",
    "readout.weight": "w2.weight",
}
"""Tensor of a refiner -> its name there, where it is another."""
_OUR_HEAD, _THEIR_HEAD = "refiner_head.", "xpress_head."
_WIDE, _PASSES, _SLOTS = "xpress_mlp_hidden", "xpress_num_passes", "xpress_block_size"
_OURS = ("sample_from_anchor", "num_anchors", "markov_rank", "enable_confidence_head")


def is_filled_in(draft: DraftConfig) -> bool:
    """Return whether a draft's slots propose the token at their own place, as this form has it."""
    return draft.layout == "fill_in"


def refuse(draft: DraftConfig) -> str | None:
    """Return what of a draft whose blocks are filled in this form cannot express."""
    if draft.algorithm not in _CLASSES:
        return f"blocks that are filled in, for {draft.algorithm}; its class for it predicts from the anchor on"
    scaled = draft.embedding_scale != 1.0 or draft.logit_softcap is not None
    if scaled and not draft.selector_rank:
        return f"an embedding scale or logit softcap for {draft.algorithm}"
    if biased(draft) is not None:
        return biased(draft)
    if draft.reduced_vocabulary:
        return f"a reduced vocabulary for {draft.algorithm}; it knows the target's whole one only"
    return not_style(draft, "qwen3")


def encode_filled(source: FormSource) -> tuple[Json, Tensors, list[str]]:
    """Return config, tensors and notes of a draft whose blocks are filled in."""
    draft = source.draft
    own = {key: source.config[key] for key in _OWN}
    if TRAITS[draft.algorithm].convolved:
        own |= {key: source.config[key] for key in _CONVOLVED}
    own |= {theirs: source.config[ours] for ours, theirs in _SCALES.items() if source.config.get(ours) is not None}
    if TRAITS[draft.algorithm].refined:
        return _encode_refined(source, own)
    left = {*_OURS, *_OWN, *_CONVOLVED, *_SCALES} - {"block_size"}
    config = {key: value for key, value in source.config.items() if key not in left}
    config |= {"architectures": [_CLASSES[draft.algorithm]], "dflash_config": own}
    return both_ways(with_rope(config, draft), draft), without(source.tensors, *BORROWED), []


def _encode_refined(source: FormSource, own: Json) -> tuple[Json, Tensors, list[str]]:
    """Return the same of XPress; as many passes as there are drafts, so that it drafts as one slot after another."""
    draft = source.draft
    left = {*_OURS, *_OWN, *_SCALES, "xpress_mlp_ratio"} - {"block_size"}
    config = {key: value for key, value in source.config.items() if key not in left}
    config |= {
        "architectures": [_CLASSES[draft.algorithm]],
        "dflash_config": own,
        "sample_from_anchor": False,
        _WIDE: draft.xpress_rank * draft.xpress_mlp_ratio,
        _SLOTS: draft.block_size,
        _PASSES: draft.drafts,
    }
    tensors = {_renamed(name): tensor for name, tensor in without(source.tensors, *BORROWED).items()}
    return both_ways(with_rope(config, draft), draft), tensors, [NOT_RUN, _TOKEN_BEFORE]


def _renamed(name: str) -> str:
    if not name.startswith(_OUR_HEAD):
        return name
    part = name.removeprefix(_OUR_HEAD)
    return _THEIR_HEAD + _REFINER.get(part, part)


def decodes(config: Json) -> bool:
    """Return whether a config is of this form."""
    return config["architectures"][0] in _CLASSES.values()


def decode(config: Json, tensors: Tensors) -> tuple[Json, Tensors]:
    """Return config and tensors in our public form."""
    algorithm = next(name for name, theirs in _CLASSES.items() if theirs == config["architectures"][0])
    own = dict(config["dflash_config"])
    scales = {ours: own.pop(theirs) for ours, theirs in _SCALES.items() if theirs in own}
    check_both_ways(config)
    own.pop("causal", None)
    public = {key: value for key, value in config.items() if key not in ("dflash_config", "is_causal")}
    public |= {"architectures": ["Qwen3" + KINDS[algorithm]], **own, **scales}
    public |= {"sample_from_anchor": False, "markov_rank": 0, "enable_confidence_head": False}
    if not TRAITS[algorithm].refined:
        return public, tensors
    ours = {_renamed(_OUR_HEAD + part): _OUR_HEAD + part for part in _REFINER}
    ratio, slots = public.pop(_WIDE) // public["xpress_rank"], public.pop(_SLOTS)
    del public[_PASSES]
    named = {ours.get(name, name.replace(_THEIR_HEAD, _OUR_HEAD, 1)): tensor for name, tensor in tensors.items()}
    return {**public, "xpress_mlp_ratio": ratio, "block_size": slots}, named


def both_ways(config: Json, draft: DraftConfig) -> Json:
    """Return a config that says of layers with a window that slots of a block see each other in both directions.

    Readers of this form take such layers for causal ones otherwise; some read the one key, some the other.
    """
    if draft.window is None:
        return config
    return {**config, "is_causal": False, "dflash_config": {**config.get("dflash_config", {}), "causal": False}}


def check_both_ways(config: Json) -> None:
    """Check that layers with a window are not read as causal ones.

    Raises:
        CheckpointError: they would be.
    """
    told = (config.get("is_causal"), config.get("dflash_config", {}).get("causal"))
    if "sliding_attention" in config.get("layer_types", ()) and told != (False, False):
        raise CheckpointError(
            f"is_causal and dflash_config.causal are {told}: layers with a window would read a block from left to "
            "right; wanted false for both"
        )
