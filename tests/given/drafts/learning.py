"""Tiny drafts and batches that several tests share."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, overload

import torch

from deepspec.checkpoint.draft import adopt_target
from deepspec.checkpoint.new import new_draft_config
from deepspec.families import read
from deepspec.formats.recipe import TRAITS, AlgorithmName, DraftRecipe, Objective
from deepspec.models.draft import BlockDraft, EagleDraft, build_draft
from deepspec.records.batch import Record, supervises
from deepspec.start.initial import initialize
from tests.given.drafts.kinds import OfBlocks, OfSteps
from tests.given.drafts.recipes import sized

VOCAB, SIZE, LAYERS = 40, 16, [1, 3]
MASK = 39
TARGETS: dict[str, dict[str, Any]] = {
    "qwen3": {
        "model_type": "qwen3", "hidden_size": SIZE, "intermediate_size": 24, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCAB, "num_hidden_layers": 6,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
    },
    "gemma4": {
        "model_type": "gemma4_text", "hidden_size": SIZE, "intermediate_size": 24, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16, "num_global_key_value_heads": 1,
        "attention_k_eq_v": True, "vocab_size": VOCAB, "num_hidden_layers": 6, "final_logit_softcapping": 8.0,
    },
}  # fmt: skip
TARGETS["qwen3_5"] = {
    **TARGETS["qwen3"], "model_type": "qwen3_5_text", "layer_types": ["linear_attention", "full_attention"] * 3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
}  # fmt: skip
TARGETS["llama"] = {**TARGETS["qwen3"], "model_type": "llama"}
TARGETS["gemma3"] = {**TARGETS["qwen3"], "model_type": "gemma3_text", "query_pre_attn_scalar": 8}

REDUCIBLE = [name for name, traits in TRAITS.items() if not traits.convolved and not traits.shipped]
"""Algorithms whose drafts may know a part of the target's vocabulary."""

HEADS: dict[str, dict[str, Any]] = {
    "vanilla": {"markov_head": "vanilla"},
    "gated": {"markov_head": "gated"},
    "rnn": {"markov_head": "rnn"},
    "confidence without Markov feature": {"confidence_with_markov": False},
    "confidence without Markov head": {"markov_rank": 0},
    "Markov head alone": {"confidence_head": False},
}


SMALL = {"conv_group_size": 8, "selector_rank": 3, "selector_top_k": 5}
REFINER = {"xpress_rank": 4}


@overload
def tiny(
    algorithm: OfBlocks = ..., target: str = ..., objective: Objective | None = ..., **recipe: Any
) -> BlockDraft: ...
@overload
def tiny(algorithm: OfSteps, target: str = ..., objective: Objective | None = ..., **recipe: Any) -> EagleDraft: ...
@overload
def tiny(
    algorithm: AlgorithmName, target: str = ..., objective: Objective | None = ..., **recipe: Any
) -> BlockDraft | EagleDraft: ...
def tiny(
    algorithm: AlgorithmName = "dspark", target: str = "qwen3", objective: Objective | None = None, **recipe: Any
) -> BlockDraft | EagleDraft:
    """Return a tiny draft with random weights, heads included."""
    traits = TRAITS[algorithm]
    small = SMALL if traits.convolved else REFINER if traits.refined else {}
    chosen = {**sized(algorithm, num_layers=2, markov_rank=4, block_size=4), **small, **recipe}
    layers = [TARGETS[target]["num_hidden_layers"] - 1] if traits.shipped else LAYERS
    objective = objective or Objective(num_anchors=5, ttt_length=3)
    config = new_draft_config(read(TARGETS[target]), DraftRecipe(**chosen), layers, MASK, objective)
    model = build_draft(config)
    generator = torch.Generator().manual_seed(3)
    head = torch.randn(VOCAB, SIZE, generator=generator)
    adopt_target(model, head, head[torch.randperm(VOCAB, generator=generator)])
    initialize(model, seed=4)
    with torch.no_grad():
        for _, parameter in model.trainable():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def seen_by(model: BlockDraft | EagleDraft, records: Sequence[Record]) -> list[Record]:
    """Return samples with as many captured states as a draft reads."""
    width = model.config.num_captured * SIZE
    return [replace(each, hidden=each.hidden[:, :width]) for each in records]


def record(name: str, length: int, supervised: Iterable[int], seed: int = 0) -> Record:
    """Return a sample whose positions in `supervised` the target generated."""
    generator = torch.Generator().manual_seed(seed + length)
    mask = torch.zeros(length, dtype=torch.bool)
    mask[list(supervised)] = True
    return Record(
        sample_id=name,
        input_ids=torch.randint(0, MASK, (length,), generator=generator),
        loss_mask=mask,
        hidden=torch.randn(length, len(LAYERS) * SIZE, generator=generator),
        last_hidden=torch.randn(length, SIZE, generator=generator)[supervises(mask)],
    )


def four_records() -> list[Record]:
    """Return four samples of different lengths and masks."""
    return [
        record("a", 14, range(4, 14)),
        record("b", 9, range(2, 7)),
        record("c", 17, [3, 4, 5, 9, 10, 11, 12]),
        record("d", 6, [3, 4]),
    ]
