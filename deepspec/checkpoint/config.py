"""A draft's config.json in the public DeepSpec form, read and written.

The file is the target's text config with the draft's keys written over it, so keys that mean nothing here survive.
"""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from deepspec.checkpoint.checks import check, parts_of
from deepspec.errors import CheckpointError, TargetError
from deepspec.families import TargetShape, read
from deepspec.families.rope import Config
from deepspec.families.shipped import with_heads
from deepspec.formats.recipe import TRAITS, AlgorithmName, MarkovHeadKind
from deepspec.models.config import DraftConfig, EagleNorms, WindowForm

STYLES: Mapping[str, str] = {"qwen3": "Qwen3", "llama": "Llama", "gemma4": "Gemma4"}
"""Style of the block -> beginning of the architecture's name."""
HEAD_STYLES: Mapping[str, str] = {"qwen3": "Qwen3", "qwen3_5": "Qwen3_5"}
"""The same of heads that targets ship."""
KINDS: Mapping[AlgorithmName, str] = {
    "dspark": "DSparkModel",
    "dflash": "DSparkModel",
    "dflash2": "DFlash2Model",
    "xpress": "XPressModel",
    "eagle3": "Eagle3Model",
    "peagle": "PEagleModel",
    "mtp": "MtpModel",
}
"""Algorithm -> its end."""
ARCHITECTURES: Mapping[str, tuple[str, str]] = {
    prefix + kind: (style, kind)
    for name, kind in KINDS.items()
    for style, prefix in (HEAD_STYLES if TRAITS[name].shipped else STYLES).items()
}
"""Name of an architecture -> style and kind."""

_HEAD_BIAS = "head_bias"
"""Key of a head with a bias, the target's: only where it has one."""
_EMBEDDING = "embed_requires_grad"
"""Key of a draft's own embedding, as speculators names it."""
_NORMS = ("norm_before_fc", "fc_norm", "norm_before_residual", "norm_output")

_FULL, _SLIDING = "full_attention", "sliding_attention"


def read_draft_config(config: Config) -> DraftConfig:
    """Return the draft that a config.json describes.

    Raises:
        CheckpointError: the architecture is not one of ours, a key is missing, or a value makes no sense.
        UnknownNameError: unknown model_type or rope type.
    """
    style, kind = _architecture(config)
    traits = TRAITS[next(name for name, known in KINDS.items() if known == kind)]
    shape = _read_shape(config, shipped=traits.shipped)
    _refuse_what_blocks_lack(config)
    window, window_layers = _read_window(config, shape.num_layers)
    eagle = not traits.blocks
    rank = 0 if eagle else _whole(config.get("markov_rank") or 0, "markov_rank")
    confident = bool(not eagle and config.get("enable_confidence_head"))
    parts = {key: _need_whole(config, key) for key in parts_of(traits)}
    draft = DraftConfig(
        algorithm=_algorithm(kind, rank, confident),
        block=shape.block,
        num_layers=shape.num_layers,
        vocab_size=shape.vocab_size,
        draft_vocab_size=_whole(config.get("draft_vocab_size") or shape.vocab_size, "draft_vocab_size"),
        embedding_scale=shape.embedding_scale,
        logit_softcap=shape.logit_softcap,
        head_bias=bool(config.get(_HEAD_BIAS)),
        num_target_layers=_need_whole(config, "num_target_layers"),
        target_layer_ids=_target_layers(config, shipped=traits.shipped),
        block_size=_need_whole(config, "block_size" if traits.masked else "ttt_length"),
        mask_token_id=_need_whole(config, "mask_token_id") if traits.masked else None,
        markov_rank=rank,
        markov_head=_markov_head(config) if rank else "vanilla",
        confidence_head=confident,
        confidence_with_markov=bool(confident and rank and config.get("confidence_head_with_markov")),
        layout="shift" if eagle or config.get("sample_from_anchor", True) else "fill_in",
        norms=EagleNorms(**{key: bool(config.get(key)) for key in _NORMS}) if eagle else EagleNorms(),
        train_embedding=bool(traits.parallel and config.get(_EMBEDDING)),
        window=window,
        window_layers=window_layers,
        window_form=_one_of(config, "window_form", "slot", get_args(WindowForm)) if window else "slot",
        style=style,
        source=dict(config),
        **parts,
    )
    check(draft)
    return draft


def write_draft_config(draft: DraftConfig) -> dict[str, Any]:
    """Return the config.json of a draft; `read_draft_config` reads the same again."""
    traits = TRAITS[draft.algorithm]
    written = {
        **draft.source,
        "architectures": [(HEAD_STYLES if traits.shipped else STYLES)[draft.style] + KINDS[draft.algorithm]],
        "num_hidden_layers": draft.num_layers,
        **_attention_keys(draft),
        "num_target_layers": draft.num_target_layers,
        "target_layer_ids": list(draft.target_layer_ids),
        "tie_word_embeddings": False,
        **({_HEAD_BIAS: True} if draft.head_bias else {}),
        **(_block_keys(draft) if traits.blocks else _eagle_keys(draft)),
    }
    if draft.reduced_vocabulary:
        written["draft_vocab_size"] = draft.draft_vocab_size
    return written


def _architecture(config: Config) -> tuple[str, str]:
    names = _list(config.get("architectures") or [], "architectures")
    if len(names) != 1 or names[0] not in ARCHITECTURES:
        target = ", it looks like a target" if str(names[:1]).endswith("ForCausalLM']") else ""
        raise CheckpointError(
            f"architectures {names} is no draft in DeepSpec's form{target}; wanted a draft of a class such as "
            "Qwen3DSparkModel or LlamaEagle3Model, or one that speculators or SpecForge wrote (docs/formats/draft.md)"
        )
    return ARCHITECTURES[names[0]]


def _algorithm(kind: str, rank: int, confident: bool) -> AlgorithmName:
    """Return the algorithm of a kind of class: DSpark's without heads is DFlash's."""
    of_kind = [name for name, known in KINDS.items() if known == kind]
    return next(name for name in of_kind if not TRAITS[name].heads or rank or confident)


def _markov_head(config: Config) -> MarkovHeadKind:
    head: MarkovHeadKind = _one_of(config, "markov_head_type", "vanilla", get_args(MarkovHeadKind))
    return head


def _one_of(config: Config, key: str, usual: str, known: Sequence[str]) -> Any:
    """Return the value of a key that has one of some words for one, or the usual one where it says nothing."""
    name = config.get(key) or usual
    if name not in known:
        raise CheckpointError(f"{key} {name!r} is unknown; known: {', '.join(known)}")
    return name


def _need(config: Config, key: str) -> Any:
    if config.get(key) is None:
        raise CheckpointError(f"config.json has no {key!r}; is it a draft in DeepSpec's form?")
    return config[key]


def _need_whole(config: Config, key: str) -> int:
    return _whole(_need(config, key), key)


def _whole(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise CheckpointError(f"{key} is {value!r} in config.json, wanted a whole number")
    return value


def _target_layers(config: Config, *, shipped: bool) -> tuple[int, ...]:
    """Return the captured layers; of heads that a target ships the last one where nothing is said, as older drafts."""
    told = config.get("target_layer_ids")
    if shipped and told is None:
        return (_need_whole(config, "num_target_layers") - 1,)
    return _layers(_need(config, "target_layer_ids"))


def _layers(value: Any) -> tuple[int, ...]:
    return tuple(_whole(layer, "one of target_layer_ids") for layer in _list(value, "target_layer_ids"))


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise CheckpointError(f"{key} is {value!r} in config.json, wanted a list")
    return value


def _read_shape(config: Config, *, shipped: bool) -> TargetShape:
    try:
        return with_heads(read(config)) if shipped else read(config)
    except TargetError as error:
        raise CheckpointError(str(error)) from error


def _refuse_what_blocks_lack(config: Config) -> None:
    for key in ("attention_bias", "mlp_bias", "enable_moe_block", "hidden_size_per_layer_input", "use_double_wide_mlp"):
        if config.get(key):
            raise CheckpointError(f"config.json has {key}: {config[key]}; draft blocks have none")


def _read_window(config: Config, num_layers: int) -> tuple[int | None, frozenset[int]]:
    """Return the window of a draft's layers, and which of them have it; None where none has."""
    types = [str(kind) for kind in _list(config.get("layer_types") or [_FULL] * num_layers, "layer_types")]
    if unknown := set(types) - {_FULL, _SLIDING}:
        raise CheckpointError(f"layer_types {sorted(unknown)}: draft blocks attend in full or in a sliding window")
    if _SLIDING not in types:
        return None, frozenset()
    if len(types) != num_layers:
        raise CheckpointError(f"layer_types names {len(types)} layers, num_hidden_layers is {num_layers}")
    window = _need_whole(config, "sliding_window")
    if window < 1:
        raise CheckpointError(f"sliding_window is {window}, wanted at least 1")
    return window, frozenset(layer for layer, kind in enumerate(types) if kind == _SLIDING)


def _attention_keys(draft: DraftConfig) -> dict[str, Any]:
    """Return how each layer attends, and what says so to engines where some have a window."""
    keys: dict[str, Any] = {"layer_types": [_SLIDING if window else _FULL for window in draft.windows]}
    if draft.window is None:
        return keys
    form = {} if draft.window_form == "slot" else {"window_form": draft.window_form}
    return {**keys, "sliding_window": draft.window, "use_sliding_window": True, **form}


def _block_keys(draft: DraftConfig) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "block_size": draft.block_size,
        "mask_token_id": draft.mask_token_id,
        "markov_rank": draft.markov_rank,
        "enable_confidence_head": draft.confidence_head,
    }
    if draft.layout == "fill_in":
        keys["sample_from_anchor"] = False
    if parts := parts_of(TRAITS[draft.algorithm]):
        return {**keys, **{key: getattr(draft, key) for key in parts}}
    if draft.markov_rank:
        keys["markov_head_type"] = draft.markov_head
    if draft.confidence_head and (draft.markov_rank or "confidence_head_with_markov" not in draft.source):
        keys["confidence_head_with_markov"] = draft.confidence_with_markov  # it says nothing without a Markov head
    return keys


def _eagle_keys(draft: DraftConfig) -> dict[str, Any]:
    set_norms = {key: True for key in _NORMS if getattr(draft.norms, key)}
    keys: dict[str, Any] = {"draft_num_hidden_layers": draft.num_layers, **set_norms}
    if not TRAITS[draft.algorithm].parallel:
        return {"ttt_length": draft.block_size, **keys}
    trained = {_EMBEDDING: True} if draft.train_embedding else {}
    return {"block_size": draft.block_size, "mask_token_id": draft.mask_token_id, **keys, **trained}
