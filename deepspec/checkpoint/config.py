"""A draft's config.json in the public DeepSpec form, and the config of a new draft.

The file is the target's text config with the draft's keys written over it, so keys that mean nothing here survive.
"""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from deepspec.errors import CheckpointError, SpecError, TargetError
from deepspec.families import TargetShape, family_named, qwen3_block, read
from deepspec.families.rope import is_dynamic, rope_keys, rope_parameters
from deepspec.families.shipped import head_style, with_heads
from deepspec.formats.recipe import TRAITS, AlgorithmName, DraftRecipe, MarkovHead, Objective, layout_of
from deepspec.models.config import DraftConfig, EagleNorms

Config = Mapping[str, Any]

STYLES: Mapping[str, str] = {"qwen3": "Qwen3", "llama": "Llama", "gemma4": "Gemma4"}
"""Style of the block -> beginning of the architecture's name."""
HEAD_STYLES: Mapping[str, str] = {"qwen3": "Qwen3", "qwen3_5": "Qwen3_5"}
"""The same of heads that targets ship."""
KINDS: Mapping[AlgorithmName, str] = {
    "dspark": "DSparkModel",
    "dflash": "DSparkModel",
    "dflash2": "DFlash2Model",
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

_CONVOLVED = ("conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k")
_EMBEDDING = "embed_requires_grad"
"""Key of a draft's own embedding, as speculators names it."""
_NORMS = ("norm_before_fc", "fc_norm", "norm_before_residual", "norm_output")

_FULL, _SLIDING = "full_attention", "sliding_attention"

_KEPT_FROM_OTHER_FAMILIES = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range")


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
    eagle, convolved = not traits.blocks, traits.convolved
    rank = 0 if eagle else _whole(config.get("markov_rank") or 0, "markov_rank")
    confident = bool(not eagle and config.get("enable_confidence_head"))
    parts = {key: _need_whole(config, key) for key in _CONVOLVED} if convolved else {}
    draft = DraftConfig(
        algorithm=_algorithm(kind, rank, confident),
        block=shape.block,
        num_layers=shape.num_layers,
        vocab_size=shape.vocab_size,
        draft_vocab_size=_whole(config.get("draft_vocab_size") or shape.vocab_size, "draft_vocab_size"),
        embedding_scale=shape.embedding_scale,
        logit_softcap=shape.logit_softcap,
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
        **(_block_keys(draft) if traits.blocks else _eagle_keys(draft)),
    }
    if draft.reduced_vocabulary:
        written["draft_vocab_size"] = draft.draft_vocab_size
    return written


def new_draft_config(
    target: TargetShape,
    recipe: DraftRecipe,
    target_layer_ids: Sequence[int],
    mask_token_id: int | None,
    objective: Objective,
) -> DraftConfig:
    """Return the config of a draft that is to be trained.

    Args:
        target: what the draft shall propose for.
        recipe: its shape.
        target_layer_ids: captured layers, in the order of the cache.
        mask_token_id: a token that text never holds; None where none is needed.
        objective: num_anchors and ttt_length are written into config.json, as the public drafts have them.

    Raises:
        SpecError: the recipe contradicts itself, or the target's own shape is not one that drafts can have.
        CheckpointError: layers or mask token do not fit the target.
    """
    traits = TRAITS[recipe.algorithm]
    _check_recipe(recipe, objective)
    target = with_heads(target) if traits.shipped else target
    style, source = _style_and_source(target, recipe, objective)
    rank = recipe.markov_rank if traits.heads else 0
    confident = traits.heads and recipe.confidence_head
    newer = recipe.norms == "eagle3.1"
    num_layers = recipe.num_layers or traits.num_layers
    draft = DraftConfig(
        algorithm=recipe.algorithm,
        block=target.block if traits.shipped or recipe.shape == "target" else qwen3_block(target.block),
        num_layers=num_layers,
        vocab_size=target.vocab_size,
        draft_vocab_size=recipe.draft_vocab_size or target.vocab_size,
        embedding_scale=target.embedding_scale,
        logit_softcap=target.logit_softcap,
        num_target_layers=target.num_layers,
        target_layer_ids=tuple(target_layer_ids),
        block_size=recipe.block_size if traits.masked else objective.ttt_length,
        layout=layout_of(recipe),
        mask_token_id=mask_token_id if traits.masked else None,
        markov_rank=rank,
        markov_head=recipe.markov_head if rank else "vanilla",
        confidence_head=confident,
        confidence_with_markov=bool(confident and rank and recipe.confidence_with_markov),
        norms=EagleNorms(fc_norm=newer, norm_output=newer),
        train_embedding=recipe.train_embedding,
        window=recipe.window,
        window_layers=_window_layers(recipe, num_layers, target.max_positions),
        **{key: getattr(recipe, key) for key in _CONVOLVED if traits.convolved},
        style=style,
        source=source,
    )
    check(draft)
    return draft


def check(draft: DraftConfig) -> None:
    """Check that captured layers, mask token, vocabulary and window make sense.

    Raises:
        CheckpointError: they do not.
    """
    _check_sizes(draft)
    _check_layers(draft)
    traits = TRAITS[draft.algorithm]
    if traits.masked and (draft.mask_token_id is None or not 0 <= draft.mask_token_id < draft.vocab_size):
        raise CheckpointError(f"mask_token_id {draft.mask_token_id} is not in the vocabulary of {draft.vocab_size}")
    if not 0 < draft.draft_vocab_size <= draft.vocab_size:
        raise CheckpointError(f"draft_vocab_size {draft.draft_vocab_size} is not in 1 … {draft.vocab_size}")
    if not traits.masked and draft.num_layers != 1:
        raise CheckpointError(f"an {draft.algorithm} draft has one layer, this one {draft.num_layers}")
    if draft.norms.norm_before_fc and draft.norms.fc_norm:
        raise CheckpointError("norm_before_fc and fc_norm are both set: the captured states are normed once")
    if traits.shipped and draft.reduced_vocabulary:
        raise CheckpointError(f"draft_vocab_size {draft.draft_vocab_size}: mtp heads know the whole vocabulary only")
    if traits.convolved:
        _check_convolved(draft)
    if draft.window is not None and draft.window < draft.block_size:
        raise CheckpointError(
            f"a window of {draft.window} positions is shorter than the {draft.block_size} that a round drafts; "
            "wanted at least as many"
        )


def _check_sizes(draft: DraftConfig) -> None:
    sizes = {"block_size or ttt_length": draft.block_size, "num_hidden_layers": draft.num_layers}
    for name, size in sizes.items():
        if size < 1:
            raise CheckpointError(f"{name} is {size}, wanted at least 1")
    if draft.drafts < 1:
        raise CheckpointError("block_size 1 proposes nothing where the first slot holds the anchor; wanted at least 2")
    if draft.markov_rank < 0:
        raise CheckpointError(f"markov_rank is {draft.markov_rank}, wanted 0 (no Markov head) or more")


def _check_convolved(draft: DraftConfig) -> None:
    size, shape = draft.block.hidden_size, draft.block
    for name in _CONVOLVED:
        if getattr(draft, name) < 1:
            raise CheckpointError(f"{name} is {getattr(draft, name)}, wanted at least 1")
    if size % draft.conv_group_size:
        raise CheckpointError(f"conv_group_size {draft.conv_group_size} does not divide the hidden size {size}")
    if not 1 < draft.selector_top_k <= draft.vocab_size:
        raise CheckpointError(f"selector_top_k {draft.selector_top_k} is not in 2 … {draft.vocab_size}")
    if draft.reduced_vocabulary:
        raise CheckpointError(f"draft_vocab_size {draft.draft_vocab_size}: dflash2 knows the whole vocabulary only")
    if shape.sandwich_norms or shape.layer_scalar:
        raise CheckpointError(f"a {draft.style} block has norms behind its sublayers, dflash2 none; use shape: qwen3")


def _check_layers(draft: DraftConfig) -> None:
    layers, last = draft.target_layer_ids, draft.num_target_layers - 1
    if TRAITS[draft.algorithm].shipped:
        if layers != (last,):
            raise CheckpointError(
                f"target_layer_ids {list(layers)}: {draft.algorithm} heads read the target's last layer alone; "
                f"capture that: cache.layers=[{last}]"
            )
        return
    if not layers or len(set(layers)) != len(layers):
        raise CheckpointError(f"target_layer_ids {list(layers)}: wanted one or more different layers")
    for layer in layers:
        if layer == last:
            raise CheckpointError(
                f"target_layer_ids {list(layers)} include the last layer, {last}; capture earlier ones"
            )
        if not -1 <= layer < last:
            raise CheckpointError(f"target_layer_ids {list(layers)}: {layer} is not in −1 … {last - 1}")


def check_target(draft: DraftConfig, target: TargetShape) -> None:
    """Check that a draft was made for a target of this shape.

    Raises:
        CheckpointError: vocabulary, hidden size or number of layers differ.
    """
    pairs = {
        "vocab_size": (draft.vocab_size, target.vocab_size),
        "hidden_size": (draft.block.hidden_size, target.block.hidden_size),
        "num_target_layers": (draft.num_target_layers, target.num_layers),
        "final_logit_softcapping": (draft.logit_softcap, target.logit_softcap),
    }
    wrong = [
        f"{name} {of_draft}, the target's is {wanted}"
        for name, (of_draft, wanted) in pairs.items()
        if of_draft != wanted
    ]
    if wrong:
        raise CheckpointError(f"the draft is for another target: {'; '.join(wrong)}")


def check_mask_token(draft: DraftConfig, tokenizer: Any) -> None:
    """Check that conversations never hold the draft's mask token.

    Args:
        draft: the draft.
        tokenizer: the target's, of transformers.

    Raises:
        CheckpointError: the tokenizer makes the mask token from text, or its chat template or end of turn needs it.
    """
    token_id = draft.mask_token_id
    token = None if token_id is None else {index: name for name, index in tokenizer.get_vocab().items()}.get(token_id)
    if token is None:
        return
    advice = "train with a reserved token, or one beyond the tokenizer's vocabulary"
    if token_id not in tokenizer.added_tokens_decoder:
        raise CheckpointError(f"mask_token_id {token_id} is {token!r}, which text contains; {advice}")
    if token in (tokenizer.bos_token, tokenizer.eos_token) or token in str(tokenizer.chat_template or ""):
        raise CheckpointError(f"mask_token_id {token_id} is {token!r}, which every conversation contains; {advice}")


def _architecture(config: Config) -> tuple[str, str]:
    names = _list(config.get("architectures") or [], "architectures")
    if len(names) != 1 or names[0] not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"architectures {names} is no draft in DeepSpec's form; wanted one of {known}")
    return ARCHITECTURES[names[0]]


def _algorithm(kind: str, rank: int, confident: bool) -> AlgorithmName:
    """Return the algorithm of a kind of class: DSpark's without heads is DFlash's."""
    of_kind = [name for name, known in KINDS.items() if known == kind]
    return next(name for name in of_kind if not TRAITS[name].heads or rank or confident)


def _markov_head(config: Config) -> MarkovHead:
    name = config.get("markov_head_type") or "vanilla"
    for known in get_args(MarkovHead):
        if name == known:
            head: MarkovHead = known
            return head
    raise CheckpointError(f"markov_head_type {name!r} is unknown; known: {', '.join(get_args(MarkovHead))}")


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
    """Return the captured layers; heads that a target ships read its last one, told or not."""
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
    return keys if draft.window is None else {**keys, "sliding_window": draft.window, "use_sliding_window": True}


def _block_keys(draft: DraftConfig) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "block_size": draft.block_size,
        "mask_token_id": draft.mask_token_id,
        "markov_rank": draft.markov_rank,
        "enable_confidence_head": draft.confidence_head,
    }
    if draft.layout == "fill_in":
        keys["sample_from_anchor"] = False
    if TRAITS[draft.algorithm].convolved:
        return {**keys, **{key: getattr(draft, key) for key in _CONVOLVED}}
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


def _check_recipe(recipe: DraftRecipe, objective: Objective) -> None:
    """Refuse what the algorithm has not, so that nobody takes it for chosen."""
    traits = TRAITS[recipe.algorithm]
    kind = f"{'an' if recipe.algorithm[0] in 'aeiou' else 'a'} {recipe.algorithm} draft"
    chosen = [key for key in _CONVOLVED if getattr(recipe, key) != DraftRecipe.model_fields[key].default]
    if chosen and not traits.convolved:
        raise SpecError(f"{chosen[0]} {getattr(recipe, chosen[0])}: {kind} has none; leave it out")
    if not traits.blocks and objective.slot_weights != "decay":
        raise SpecError(f"slot_weights {objective.slot_weights}: {kind} has no slots; leave it out")
    if not traits.masked and recipe.num_layers not in (None, 1):
        raise SpecError(f"num_layers {recipe.num_layers}: {kind} has one; leave it out")
    if traits.shipped and recipe.shape != "qwen3":
        raise SpecError(f"shape {recipe.shape}: {kind} has the shape of the target's heads; leave it out")
    if not traits.parallel and recipe.train_embedding:
        raise SpecError(f"train_embedding: {kind} keeps its target's; leave it out")
    if not traits.blocks and recipe.layout is not None:
        raise SpecError(f"layout {recipe.layout}: {kind} has no blocks; leave it out")
    if (traits.masked or traits.shipped) and recipe.norms != "eagle3":
        raise SpecError(f"norms {recipe.norms}: {kind} has none of these; leave it out")


def _window_layers(recipe: DraftRecipe, num_layers: int, positions: int) -> frozenset[int]:
    """Return which layers have the window of a recipe.

    Raises:
        SpecError: it is larger than the context, or a layer is named that is not there.
    """
    if recipe.window is None:
        return frozenset()
    if recipe.window > positions:
        raise SpecError(
            f"window {recipe.window} is larger than the context: the target reads {positions} positions; lower "
            "train.draft.window, or leave it out"
        )
    named = range(num_layers) if recipe.window_layers is None else recipe.window_layers
    if missing := sorted(set(named) - set(range(num_layers))):
        raise SpecError(f"window_layers {missing}: the draft has {num_layers} layers, from 0 to {num_layers - 1}")
    return frozenset(named)


def _style_and_source(target: TargetShape, recipe: DraftRecipe, objective: Objective) -> tuple[str, dict[str, Any]]:
    """Return the name of the block's style, and the target's keys that the draft's config.json is built on."""
    if TRAITS[recipe.algorithm].shipped:
        return head_style(target.model_type), dict(target.text_config) | _steps(objective)
    known = None if target.general else family_named(target.model_type).draft_style
    own = recipe.shape == "target"
    if own and known is None:
        kind = target.model_type if target.general else target.family
        raise SpecError(f"no draft has the shape of a {kind} block; use shape: qwen3")
    style = known if own and known else "qwen3"
    kept = dict(target.text_config) if known == style else _qwen3_config(target)
    if is_dynamic(kept):
        kept |= rope_keys(target.block.rope)
    if style == "gemma4":
        kept |= {"target_model_type": target.top_model_type, "target_text_model_type": target.model_type}
    extra = {"num_anchors": objective.num_anchors} if TRAITS[recipe.algorithm].masked else _steps(objective)
    return style, kept | extra


def _steps(objective: Objective) -> dict[str, Any]:
    return {"ttt_length": objective.ttt_length, "step_loss_decay": objective.step_decay}


def _qwen3_config(target: TargetShape) -> dict[str, Any]:
    """Return a Qwen3 text config with the sizes and rope of a target of another family."""
    block = target.block
    kept = {key: target.text_config[key] for key in _KEPT_FROM_OTHER_FAMILIES if key in target.text_config}
    config: dict[str, Any] = {
        **kept,
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": block.head_dim,
        "hidden_act": "silu",
        "hidden_size": block.hidden_size,
        "intermediate_size": block.intermediate_size,
        "max_position_embeddings": target.max_positions,
        "num_attention_heads": block.num_heads,
        "num_key_value_heads": block.num_kv_heads,
        "rms_norm_eps": block.norm_eps,
        "rope_parameters": rope_parameters(block.rope),
        "sliding_window": None,
        "use_sliding_window": False,
        "use_cache": True,
        "vocab_size": target.vocab_size,
    }
    if target.embedding_scale != 1.0:
        config["embedding_scale"] = target.embedding_scale
    if target.logit_softcap is not None:
        config["final_logit_softcapping"] = target.logit_softcap
    return config
