"""Drafts in the forms of other libraries, read as drafts in DeepSpec's: those of speculators, and Eagle3 of SpecForge.

A key that is not known may change what a draft computes, so it is refused by its name: nothing is guessed.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from deepspec.checkpoint.checks import CONVOLVED, REFINED, parts_of
from deepspec.checkpoint.config import HEAD_STYLES, KINDS
from deepspec.errors import CheckpointError, UnknownNameError
from deepspec.families.installed import defaults_of
from deepspec.families.rope import Config
from deepspec.families.shipped import head_style
from deepspec.formats.recipe import TRAITS, AlgorithmName, Objective

_Value = TypeVar("_Value")
"""What is named: tensors, or their shapes where a plan reads headers and does without torch."""

SPECFORGE = "LlamaForCausalLMEagle3"
"""Architecture of SpecForge's Eagle3, and of SGLang's."""
HEADS = ("markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov")
NORMS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
"""Keys of speculators that are ours, too."""
JACOBI = "num_jacobi_passes"
"""Key of speculators: how often an engine refines a whole block."""
WINDOW_FORM = "window_form"
"""Our key of what a window is, where it is not the reader's own."""
COUNT_OF_HEADS = "mtp_num_hidden_layers"
"""Key of a target's config: how many layers its heads have."""
HEADS_READ = "target_layer_ids"
"""Our key of the state that MTP heads read, where it is not the one before the target's final norm."""
STYLES: Mapping[str, str] = {"llama": "Llama", "qwen3": "Qwen3"}
"""`model_type` of a block -> how the architecture of a draft with such blocks begins."""

_ANYWHERE = frozenset(
    {
        "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "model_type", "pad_token_id",
        "bos_token_id", "eos_token_id", "tie_word_embeddings", "target_hidden_size", "draft_vocab_size", "use_cache",
        "rope_theta", "rope_scaling", "rope_parameters", "head_dim", "_name_or_path", "partial_rotary_factor",
        "layer_types", "initializer_range",
    }
)  # fmt: skip
_SPECULATORS = _ANYWHERE | {
    "speculators_model_type", "speculators_version", "speculators_config", "transformer_layer_config", "block_size",
    "aux_hidden_state_layer_ids", "eagle_aux_hidden_state_layer_ids", "mask_token_id", "sample_from_anchor",
    "sliding_window_non_causal", "embed_requires_grad", "num_nextn_predict_layers", *HEADS, *CONVOLVED,
    *REFINED, *NORMS, JACOBI, WINDOW_FORM,
}  # fmt: skip
_SPECFORGE = _ANYWHERE | {"eagle_config", "fc_norm", "norm_output"}
_EAGLE_CONFIG = ("eagle_aux_hidden_state_layer_ids", "use_aux_hidden_state")


def is_foreign(config: Config) -> bool:
    """Return whether a config.json is of another library's draft that is read."""
    return "speculators_model_type" in config or config.get("architectures") == [SPECFORGE]


def public_config(config: Config, num_target_layers: int) -> dict[str, Any]:
    """Return the config.json in DeepSpec's form of a draft in any that is read; its own form is left as it is.

    Args:
        config: as the library wrote it.
        num_target_layers: of the target, which the other forms do not tell.

    Raises:
        CheckpointError: a key is missing, has a value that makes no sense, or names a variant that is not read.
        UnknownNameError: a kind of draft that is not read.
    """
    if not is_foreign(config):
        return dict(config)
    read = _read_speculators if "speculators_model_type" in config else _read_specforge
    try:
        found = read(config, num_target_layers)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"config.json lacks {error}, or has it in another form; is it complete?") from error
    return {**found, "num_target_layers": num_target_layers}


def public_tensors(config: Config, tensors: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return the tensors of such a draft under DeepSpec's names; what it leaves to the target is missing."""
    if config.get("speculators_model_type") == "mtp":
        return _heads_of_speculators(tensors)
    if "speculators_model_type" in config or not is_foreign(config):
        return dict(tensors)
    named = {name.replace("midlayer.", "layers.0.", 1): tensor for name, tensor in tensors.items()}
    whole = config["draft_vocab_size"] == config["vocab_size"]
    return {name: tensor for name, tensor in named.items() if not whole or name not in ("d2t", "t2d")}


def decode_speculators(config: Config) -> dict[str, Any]:
    """Return a config of speculators in DeepSpec's form, but for `num_target_layers`."""
    block = config["transformer_layer_config"]
    kind: AlgorithmName = config["speculators_model_type"]
    count = config["speculators_config"]["proposal_methods"][0]["speculative_tokens"]
    if TRAITS[kind].shipped:
        own = {"num_hidden_layers": 1, "layer_types": ["full_attention"], "ttt_length": count}
        own |= {key: config[key] for key in (HEADS_READ,) if key in config}
        return {**block, **own, "architectures": [HEAD_STYLES[head_style(block["model_type"])] + KINDS[kind]]}
    eagle = not TRAITS[kind].blocks
    layers = config["eagle_aux_hidden_state_layer_ids" if eagle else "aux_hidden_state_layer_ids"]
    public = {
        **block,
        "architectures": [STYLES[block["model_type"]] + KINDS[kind]],
        "draft_vocab_size": config["draft_vocab_size"],
        "target_layer_ids": [layer - 1 for layer in layers],
    }
    if eagle:
        public |= {key: config.get(key, False) for key in NORMS}
        if not TRAITS[kind].parallel:
            return {**public, "ttt_length": count}
        masked = {"mask_token_id": config["mask_token_id"], "block_size": count}
        return {**public, **masked, "embed_requires_grad": config.get("embed_requires_grad", False)}
    kept = ("block_size", "mask_token_id", "sample_from_anchor", *HEADS, *parts_of(TRAITS[kind]))
    public["sample_from_anchor"] = kind == "dspark"
    if "sliding_attention" in (block.get("layer_types") or ()):
        public[WINDOW_FORM] = _window_form(config)
    return public | {key: config[key] for key in kept if key in config}


def _window_form(config: Config) -> str:
    """Return what a window of blocks is: that library's own, unless another was told."""
    own = "anchor" if config.get("sliding_window_non_causal") else "causal"
    return str(config.get(WINDOW_FORM) or own)


THEIR_PARTS: Mapping[str, str] = {
    "fc": "input_proj",
    "norm": "final_layernorm",
    "pre_fc_norm_hidden": "hidden_layernorm",
    "pre_fc_norm_embedding": "token_layernorm",
}
"""Part of MTP heads -> its name in speculators, within `mtp_layers.0`, where the layer's own parts lie, too."""
OUR_LAYER, THEIR_LAYER = "layers.0.", "mtp_layers.0."


def _heads_of_speculators(tensors: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return MTP heads of speculators under our names; a head of the target's beside them means nothing."""
    ours = {f"{THEIR_LAYER}{theirs}.weight": f"{name}.weight" for name, theirs in THEIR_PARTS.items()}
    return {
        ours.get(name, OUR_LAYER + name.removeprefix(THEIR_LAYER)): tensor
        for name, tensor in tensors.items()
        if name.startswith(THEIR_LAYER)
    }


def _read_speculators(config: Config, num_target_layers: int) -> dict[str, Any]:
    del num_target_layers  # this form tells its layers
    kind, block = config["speculators_model_type"], config["transformer_layer_config"]
    if kind not in KINDS:
        raise UnknownNameError("speculators_model_type", str(kind), KINDS)
    of_heads = TRAITS[kind].shipped
    _refuse_unknown(config, _SPECULATORS | ({HEADS_READ} if of_heads else set()), "config.json")
    if not TRAITS[kind].shipped and block["model_type"] not in STYLES:
        raise UnknownNameError("model_type of transformer_layer_config", str(block["model_type"]), STYLES)
    counted = {COUNT_OF_HEADS} if of_heads and block.get(COUNT_OF_HEADS) == 1 else set()
    _refuse_unknown(block, _ANYWHERE | _keys_of(block) | counted, "transformer_layer_config")
    _refuse_other_sizes(config, block)
    return decode_speculators(config)


def _read_specforge(config: Config, num_target_layers: int) -> dict[str, Any]:
    """Return SpecForge's Eagle3; its `norm_output` says whether the head reads normed states: they always are here."""
    _refuse_unknown(config, _SPECFORGE | _keys_of(config), "config.json")
    _refuse_other_sizes(config, config)
    if config.get("norm_output") is False:
        raise CheckpointError("config.json has norm_output: false, a head that reads states before the final norm")
    eagle = config.get("eagle_config") or {}
    _refuse_unknown(eagle, frozenset(_EAGLE_CONFIG), "eagle_config")
    if eagle.get("use_aux_hidden_state") is False:
        raise CheckpointError("config.json has use_aux_hidden_state: false, a draft that reads the last state alone")
    layers = eagle.get("eagle_aux_hidden_state_layer_ids") or [1, num_target_layers // 2 - 1, num_target_layers - 4]
    left = ("eagle_config", "norm_output", "fc_norm")
    return {
        **{key: value for key, value in config.items() if key not in left},
        "architectures": [STYLES["llama"] + KINDS["eagle3"]],
        "target_layer_ids": list(layers),
        "ttt_length": Objective().ttt_length,
        "fc_norm": bool(config.get("fc_norm")),
    }


def _keys_of(block: Config) -> frozenset[str]:
    """Return the keys of a block's config class as installed."""
    return frozenset(defaults_of(str(block["model_type"])))


def _refuse_unknown(config: Config, known: frozenset[str], where: str) -> None:
    """Refuse keys that are not known, but for those that are off."""
    unknown = sorted(key for key, value in config.items() if key not in known and value not in (None, False))
    if unknown:
        raise CheckpointError(
            f"{where} has {unknown[0]}: {config[unknown[0]]!r}, a variant that is not read; wanted a draft without it"
        )


def _refuse_other_sizes(config: Config, block: Config) -> None:
    if config.get("tie_word_embeddings"):
        raise CheckpointError("config.json has tie_word_embeddings: true; drafts have a head of their own")
    size = config.get("target_hidden_size")
    if size is not None and size != block["hidden_size"]:
        raise CheckpointError(
            f"config.json has target_hidden_size: {size}, the draft's is {block['hidden_size']}; drafts here are as "
            "wide as their target"
        )
