"""The native form of DFlash's authors: blocks that are filled in, for DFlash and DFlash 2, in vLLM and SGLang.

The block's config lies at top level, what is DFlash's own in `dflash_config`; layers count from the first decoder
layer, as ours do. Embedding and head are the target's and stay out.
"""

from collections.abc import Mapping

from deepspec.checkpoint.config import KINDS
from deepspec.errors import CheckpointError
from deepspec.formats.recipe import TRAITS, AlgorithmName
from deepspec.forms.form import BORROWED, Json, Source, Tensors, not_style, with_rope, without
from deepspec.models.config import DraftConfig

_CLASSES: Mapping[AlgorithmName, str] = {"dflash": "DFlashDraftModel", "dflash2": "DFlash2DraftModel"}
_OWN = ("target_layer_ids", "mask_token_id", "block_size")
_CONVOLVED = ("conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k")
_SCALES = {"embedding_scale": "input_embedding_scale", "final_logit_softcapping": "final_logit_softcapping"}
"""Our key -> its key of `dflash_config`; the class of DFlash 2 alone knows them."""
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
    if draft.reduced_vocabulary:
        return f"a reduced vocabulary for {draft.algorithm}; it knows the target's whole one only"
    return not_style(draft, "qwen3")


def encode(source: Source) -> tuple[Json, Tensors, list[str]]:
    """Return config, tensors and notes of a draft whose blocks are filled in."""
    draft = source.draft
    own = {key: source.config[key] for key in _OWN}
    if TRAITS[draft.algorithm].convolved:
        own |= {key: source.config[key] for key in _CONVOLVED}
    own |= {theirs: source.config[ours] for ours, theirs in _SCALES.items() if source.config.get(ours) is not None}
    left = {*_OURS, *_OWN, *_CONVOLVED, *_SCALES} - {"block_size"}
    config = {key: value for key, value in source.config.items() if key not in left}
    config |= {"architectures": [_CLASSES[draft.algorithm]], "dflash_config": own}
    return (
        both_ways(with_rope(config, draft), draft),
        without(source.tensors, *BORROWED),
        ["read back, not run: hold its acceptance against ours first"],
    )


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
    return {**public, "sample_from_anchor": False, "markov_rank": 0, "enable_confidence_head": False}, tensors


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
