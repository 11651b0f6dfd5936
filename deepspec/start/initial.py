"""Weights of a fresh draft."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from deepspec.models.convolution import SlotConvolution
from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.models.heads import MarkovHead

STD = 0.02


def initialize(model: BlockDraft | EagleDraft, seed: int) -> None:
    """Fill in everything but embedding and head, which must be the target's already.

    Projections are normal with deviation 0.02, those that end a residual branch smaller by √(2·layers), the state that
    stands for unknown ones with deviation 1. The Markov bias and what a selector adds start at 0, convolutions let
    everything pass, and a refiner mixes no slots. The final norm starts where the logits have deviation 1: with rows as
    long as those of a target's head, a weight of 1 would make a confident, wrong draft (a loss near 50 instead of
    ln V).

    Args:
        model: on the CPU, so that a seed means the same weights on every machine.
        seed: of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    small = STD / (2 * model.config.num_layers) ** 0.5
    with torch.no_grad():
        for name, parameter in model.trainable():
            if name == "embed_tokens.weight":
                continue
            if name == "mask_hidden":
                parameter.normal_(generator=generator)
            elif parameter.dim() == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                ends_a_branch = name.endswith(("o_proj.weight", "down_proj.weight"))
                parameter.normal_(0.0, small if ends_a_branch else STD, generator=generator)
        model.norm.weight.fill_(_unit_logits(model.lm_head.weight))
        markov = model.markov_head if isinstance(model, BlockDraft) else None
        if isinstance(markov, MarkovHead):
            markov.markov_w2.weight.zero_()
            markov.markov_w1.weight.normal_(0.0, markov.markov_w1.embedding_dim**-0.5, generator=generator)
        for part in model.modules():
            if isinstance(part, SlotConvolution):
                _let_pass(part)
        if isinstance(model, BlockDraft) and model.refiner_head is not None:
            model.refiner_head.mix_l.zero_()
        selector = model.candidate_selector if isinstance(model, BlockDraft) else None
        if selector is not None:
            rank = selector.predecessor_codebook.shape[1]
            selector.successor_codebook.zero_()
            selector.predecessor_codebook.normal_(0.0, rank**-0.5, generator=generator)


def _let_pass(convolution: SlotConvolution) -> None:
    """Let a convolution begin as none: every slot reads itself."""
    convolution.kernel_projection.weight.zero_()
    convolution.base_kernel.zero_()
    convolution.base_kernel[:, 0] = 1.0


def _unit_logits(head_VD: Tensor) -> float:
    """Return the norm weight for which a head's logits have deviation 1, at most 1."""
    length = float(head_VD.float().pow(2).sum(-1).mean().sqrt())
    return min(1.0, 1.0 / length) if length > 0 else 1.0


def start_from_blocks(
    model: BlockDraft | EagleDraft, blocks: Sequence[Mapping[str, Tensor]], final_norm_D: Tensor
) -> None:
    """Let an initialised draft start from a target's blocks.

    The context becomes the deepest captured layer and a little of the others; queries and keys get a norm as large as
    the target's weights make them where the target has none; the final norm is scaled so that the first logits are
    small. An Eagle3 block reads its state as the target's block reads its input.

    Args:
        model: after `initialize`.
        blocks: one per layer of the draft, tensors named as in the draft's blocks.
        final_norm_D: the target's.
    """
    size = model.config.block.hidden_size
    deepest = model.config.target_layer_ids.index(max(model.config.target_layer_ids))
    with torch.no_grad():
        model.fc.weight.mul_(0.1)
        model.fc.weight[:, deepest * size : (deepest + 1) * size] += torch.eye(size)
        for layer, block in zip(model.layers, blocks, strict=True):
            _start_block(dict(layer.named_parameters()), block)
        if isinstance(model, BlockDraft):
            norms = [block["input_layernorm.weight"] for block in blocks]
            model.hidden_norm.weight.copy_(torch.stack(norms).mean(0))
        length = float(final_norm_D.float().pow(2).mean().sqrt())
        model.norm.weight.copy_(final_norm_D * (_unit_logits(model.lm_head.weight) / length))


def _start_block(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    with_state = "hidden_norm.weight" in own
    given = {**_query_key_norms(given, own), **given}
    for name, parameter in own.items():
        if name == "hidden_norm.weight":
            parameter.copy_(given["input_layernorm.weight"])
        elif name in given and parameter.shape == given[name].shape and not (with_state and "input_layer" in name):
            parameter.copy_(given[name])
        elif name in given and parameter.dim() == 2:
            parameter[:, parameter.shape[1] // 2 :] = given[name]


def _query_key_norms(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return norm weights as large as normed inputs make queries and keys, per size of a head."""
    norms = {}
    for kind in ("q", "k"):
        name = f"self_attn.{kind}_norm.weight"
        if name in own:
            weight = given[f"self_attn.{kind}_proj.weight"] * given["input_layernorm.weight"]
            heads = weight.view(-1, len(own[name]), weight.shape[1])
            norms[name] = heads.pow(2).sum(-1).mean(0).sqrt()
    return norms
