"""Tiny random targets and drafts for the tests of decoding."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from deepspec.families import qwen3_block, read
from deepspec.formats.recipe import TRAITS, AlgorithmName
from deepspec.models.config import DraftConfig, EagleNorms
from deepspec.models.draft import BlockDraft, EagleDraft, build_draft
from deepspec.proposers.sampling import Proposal
from deepspec.target.load import Target
from tests.given.drafts.kinds import OfBlocks, OfSteps

STOP = frozenset({1})
DFLASH2 = {"conv_kernel_size": 2, "conv_group_size": 8, "selector_rank": 4, "selector_top_k": 5}
XPRESS = {"xpress_rank": 6, "xpress_mlp_ratio": 2}


def target(vocab: int = 48, *, sliding: bool = False, sharpness: float = 6.0, biased: bool = False) -> Target:
    """Return a random target; `sliding`: Gemma 3 with a window of 8 in two of three layers; `biased`: its head."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    model: Any
    if sliding:
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        config = Gemma3TextConfig(
            **sizes, num_hidden_layers=3, layer_types=kinds, sliding_window=8, query_pre_attn_scalar=8
        )
        model = Gemma3ForCausalLM(config)
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=3, tie_word_embeddings=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.3)
        model.get_output_embeddings().weight.mul_(sharpness / 6)
    if biased:
        model.get_output_embeddings().bias = torch.nn.Parameter(torch.linspace(0.5, -0.5, vocab))
    return Target(folder=Path("tiny"), model=model.eval().requires_grad_(False), tokenizer=None, stop_ids=STOP)


@overload
def draft(target: Target, algorithm: OfBlocks, *, gated: bool = ..., **traits: Any) -> BlockDraft: ...
@overload
def draft(target: Target, algorithm: OfSteps, *, gated: bool = ..., **traits: Any) -> EagleDraft: ...
@overload
def draft(target: Target, algorithm: AlgorithmName, *, gated: bool = ..., **traits: Any) -> BlockDraft | EagleDraft: ...
def draft(target: Target, algorithm: AlgorithmName, *, gated: bool = False, **traits: Any) -> BlockDraft | EagleDraft:
    """Return a random draft for a target, with the target's embedding and head; `gated`: of a block as Qwen3.5's."""
    shape = read(target.model.config.to_dict())
    vocab = shape.vocab_size
    config = DraftConfig(
        **{
            "algorithm": algorithm,
            "block": replace(qwen3_block(shape.block), gated_attention=gated, offset_norms=gated),
            "num_layers": 2 if TRAITS[algorithm].masked else 1,
            "vocab_size": vocab,
            "draft_vocab_size": vocab,
            "head_bias": target.head_bias is not None,
            "num_target_layers": shape.num_layers,
            "target_layer_ids": (shape.num_layers,) if TRAITS[algorithm].shipped else (-1, 1),
            "block_size": 4,
            "mask_token_id": vocab - 1 if TRAITS[algorithm].masked else None,
            **traits,
        }
    )
    torch.manual_seed(1)
    model = build_draft(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.3)
        known = _known(model, vocab)
        model.embed_tokens.weight.copy_(target.embed_weight)
        model.lm_head.weight.copy_(target.head_weight[known])
        if target.head_bias is not None:
            model.lm_head.bias.copy_(target.head_bias[known])
    return model.eval().requires_grad_(False)


def _known(model: BlockDraft | EagleDraft, vocab: int) -> Tensor:
    """Fill in the map of a reduced vocabulary (every other token) and return the known ids."""
    count = model.config.draft_vocab_size
    known = torch.arange(count) * (vocab // count)
    if model.config.reduced_vocabulary:
        model.d2t.copy_(known - torch.arange(count))
        model.t2d[known] = True
    return known


def prompts(count: int, vocab: int = 48) -> list[list[int]]:
    """Return random prompts of different lengths."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, vocab, (2 + 3 * i,), generator=generator).tolist() for i in range(count)]


class Oracle:
    """Proposes the true greedy continuation, with every fifth token wrong: rows accept different numbers."""

    slots = 4
    layers: Sequence[int] = ()

    def __init__(self, answers: dict[int, list[int]]) -> None:
        """Know each prompt's continuation by the prompt's first token... and count how often rows were asked."""
        self.answers = answers

    def rows(self, rows: int, capacity: int, device: torch.device) -> "OracleRows":
        """Return rows that know nothing yet."""
        return OracleRows(self.answers)


class OracleRows:
    """Rows of the oracle: what each has read so far is told by `after`."""

    def __init__(self, answers: dict[int, list[int]]) -> None:
        """Start with no rows."""
        self.answers = answers
        self.seen: list[list[int]] = []

    def commit(self, states: Tensor, tokens: Tensor, counts: Tensor) -> None:
        """Remember the tokens that were accepted."""
        new = [row[:count] for row, count in zip(tokens[:, 1:].tolist(), counts.tolist(), strict=True)]
        self.seen = [old + tokens for old, tokens in zip(self.seen, new, strict=True)] if self.seen else new

    def propose(self, current: Tensor, temperature: float, noise: Tensor | None) -> Proposal:
        """Return the next four tokens, spoiled where the position is a multiple of five."""
        drafted = []
        for row in self.seen:
            answer, done = self.answers[row[0]], len(row)
            ahead = (answer + [0] * 8)[done : done + 4]
            drafted.append([token if (done + i) % 5 else (token + 1) % 48 for i, token in enumerate(ahead)])
        tokens = torch.tensor(drafted, device=current.device)
        return Proposal(tokens=tokens, lengths=torch.full_like(tokens[:, 0], 4), probabilities=None)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self.seen = [self.seen[row] for row in rows]

    def replace(self, rows: Sequence[int], other: "OracleRows") -> None:
        """Put others in the place of these."""
        for row, seen in zip(rows, other.seen, strict=True):
            self.seen[row] = seen

    def fixed(self, rows: int, capacity: int) -> "OracleRows":
        """Refuse: these rows grow."""
        raise NotImplementedError

    def adopt(self, other: "OracleRows") -> None:
        """Refuse: these rows grow."""
        raise NotImplementedError

    def shape(self, rows: int, span: int) -> None:
        """Refuse: these rows grow."""
        raise NotImplementedError


DRAFTS: dict[str, dict[str, Any]] = {
    "dflash": {"algorithm": "dflash"},
    "dspark": {"algorithm": "dspark", "markov_rank": 4, "confidence_head": True},
    "dspark filled in": {"algorithm": "dspark", "layout": "fill_in", "markov_rank": 4, "confidence_head": True},
    "dflash2": {"algorithm": "dflash2", "layout": "fill_in", **DFLASH2},
    "dflash2 shifted": {"algorithm": "dflash2", **DFLASH2},
    "xpress": {
        "algorithm": "xpress",
        "layout": "fill_in",
        **XPRESS,
        "window": 5,
        "window_layers": frozenset({1}),
        "window_form": "causal",
    },
    "eagle3": {"algorithm": "eagle3"},
    "peagle": {"algorithm": "peagle", "norms": EagleNorms(norm_before_fc=True, norm_before_residual=True)},
    "eagle3.1": {"algorithm": "eagle3", "norms": EagleNorms(fc_norm=True, norm_output=True)},
    "mtp": {"algorithm": "mtp"},
    "mtp before the norm": {"algorithm": "mtp", "target_layer_ids": (2,)},
}


def qwen3() -> Target:
    """Return a random Qwen3 target of the sizes of the others."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 3}
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, eos_token_id=1, pad_token_id=0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.3)
    return Target(folder=target().folder, model=model.eval().requires_grad_(False), tokenizer=None, stop_ids=STOP)


TARGETS: dict[str, Callable[[], Target]] = {"llama": target, "qwen3": qwen3, "gemma3": lambda: target(sliding=True)}
