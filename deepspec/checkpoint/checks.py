"""What has to hold of a draft: by itself, of its target, and of the tokens that it reads."""

from collections.abc import Sequence
from typing import Any

from deepspec.errors import CheckpointError
from deepspec.families import TargetShape
from deepspec.formats.recipe import TRAITS, Traits
from deepspec.models.config import DraftConfig

CONVOLVED = ("conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k")
"""Sizes of a convolved draft, as its config.json and its fields name them."""
REFINED = ("xpress_rank", "xpress_mlp_ratio")
"""The same of a refined one."""


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
    if traits.refined:
        _check_parts(draft, REFINED)
    if draft.window is not None and draft.window_form == "slot" and draft.window < draft.block_size:
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


def parts_of(traits: Traits) -> tuple[str, ...]:
    """Return the sizes that a draft has beside its blocks', as its config.json and its fields name them."""
    return CONVOLVED * traits.convolved + REFINED * traits.refined


def _check_parts(draft: DraftConfig, names: Sequence[str]) -> None:
    for name in names:
        if getattr(draft, name) < 1:
            raise CheckpointError(f"{name} is {getattr(draft, name)}, wanted at least 1")


def _check_convolved(draft: DraftConfig) -> None:
    size, shape = draft.block.hidden_size, draft.block
    _check_parts(draft, CONVOLVED)
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
        if layers not in ((last,), (last + 1,)):
            raise CheckpointError(
                f"target_layer_ids {list(layers)}: {draft.algorithm} heads read the target's last state alone, behind "
                f"its final norm as engines do: cache.layers=[{last + 1}]; or before it: [{last}]"
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
