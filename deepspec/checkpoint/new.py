"""The config of a draft that does not exist yet, from a target and a recipe."""

from collections.abc import Sequence
from typing import Any

from deepspec.checkpoint.checks import check, parts_of
from deepspec.checkpoint.options import check_recipe
from deepspec.errors import SpecError
from deepspec.families import TargetShape, family_named, qwen3_block
from deepspec.families.rope import is_dynamic, rope_keys, rope_parameters
from deepspec.families.shipped import head_style, with_heads
from deepspec.formats.recipe import TRAITS, DraftRecipe, Objective, layout_of
from deepspec.models.config import DraftConfig, EagleNorms

_KEPT_FROM_OTHER_FAMILIES = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range")


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
    check_recipe(recipe)
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
        head_bias=target.head_bias,
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
        **{key: getattr(recipe, key) for key in parts_of(traits)},
        style=style,
        source=source,
    )
    check(draft)
    return draft


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
