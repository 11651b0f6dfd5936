"""Steps of speculators 0.9.0 with the settings it recommends, a bf16 autocast over fp32 weights; samples in one row."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from speculators.config import SpeculatorsConfig, VerifierConfig
from speculators.losses import resolve_loss_config
from speculators.proposals.greedy import GreedyTokenProposalConfig
from torch import Tensor
from transformers import Qwen3Config

from tests.given.step.shapes import RANK, SLOTS, Shape, loss_mask, shape_of, states
from tests.given.step.worker import Steps, fill

warnings.filterwarnings("ignore")
NOT_OF_A_LAYER = ("model_type", "rope_theta", "num_hidden_layers")


def model_of(algorithm: str, shape: Shape, device: str) -> tuple[Any, Callable[..., Tensor]]:
    """Return a draft, and what makes a loss of a batch."""
    layers = [layer + 1 for layer in shape.layers]
    told = {name: value for name, value in shape.target.items() if name not in NOT_OF_A_LAYER}
    config = Qwen3Config(
        **told, num_hidden_layers=1 if algorithm == "eagle3" else 5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    config._attn_implementation = "simple_flex_attention" if device == "cuda" else "sdpa"
    common = {
        "transformer_layer_config": config, "draft_vocab_size": shape.vocab,
        "speculators_config": SpeculatorsConfig(
            algorithm=algorithm, proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=SLOTS)],
            default_proposal_method="greedy",
            verifier=VerifierConfig(name_or_path=None, architectures=["Qwen3ForCausalLM"])),
    }  # fmt: skip
    if algorithm == "eagle3":
        return _eagle(common, layers)
    return _blocks(algorithm, common, layers, shape)


def _eagle(common: dict[str, Any], layers: list[int]) -> tuple[Any, Callable[..., Tensor]]:
    from speculators.models.eagle3 import Eagle3SpeculatorConfig
    from speculators.models.eagle3.core import Eagle3DraftModel

    made = Eagle3DraftModel(
        Eagle3SpeculatorConfig(**common, eagle_aux_hidden_state_layer_ids=layers, norm_before_residual=False)
    )
    loss = resolve_loss_config("kl_div", "eager")

    def forward(rows: int, hidden: Tensor, ids: Tensor, docs: Tensor, mask: Tensor, last: Tensor, at: Tensor) -> Tensor:
        del rows
        found: Tensor = made(
            hidden_states=hidden, input_ids=ids, document_ids=docs, loss_mask=mask.bool(), position_ids=at,
            verifier_last_hidden_states=last, ttt_steps=SLOTS, ttt_step_loss_decay=0.8, loss_config=loss,
        )[1]  # fmt: skip
        return found

    return made, forward


def _blocks(
    algorithm: str, common: dict[str, Any], layers: list[int], shape: Shape
) -> tuple[Any, Callable[..., Tensor]]:
    more = {"block_size": SLOTS, "aux_hidden_state_layer_ids": layers, "mask_token_id": shape.vocab - 1}
    asked: dict[str, Any] = {}
    if algorithm == "dspark":
        from speculators.losses.eager import tv_loss
        from speculators.models.dspark.config import DSparkSpeculatorConfig
        from speculators.models.dspark.core import DSparkDraftModel

        made = DSparkDraftModel(DSparkSpeculatorConfig(**common, **more, markov_rank=RANK))
        loss = resolve_loss_config('{"ce":0.1,"tv":0.9}', "eager")
        asked = {"tv_loss_fn": tv_loss, "confidence_head_alpha": 1.0}
    else:
        from speculators.models.dflash.config import DFlashSpeculatorConfig
        from speculators.models.dflash.core import DFlashDraftModel

        made = DFlashDraftModel(DFlashSpeculatorConfig(**common, **more, sample_from_anchor=True))
        loss = resolve_loss_config("ce", "eager")

    def forward(rows: int, hidden: Tensor, ids: Tensor, docs: Tensor, mask: Tensor, last: Tensor, at: Tensor) -> Tensor:
        found: Tensor = made(
            hidden_states=hidden, input_ids=ids, loss_mask=mask, document_ids=docs, position_ids=at, loss_config=loss,
            verifier_last_hidden_states=last, gamma=4.0, max_anchors=shape.anchors * rows, **asked,
        )[1]  # fmt: skip
        return found

    return made, forward


def batch_of(shape: Shape, rows: int) -> list[Tensor]:
    """Return samples in one row: states, ids, which sample a token is of, mask, last states, positions."""
    made = [states(shape, seed) for seed in range(rows)]
    return [
        torch.cat([hidden for _, hidden, _ in made])[None],
        torch.cat([ids for ids, _, _ in made])[None],
        torch.arange(rows).repeat_interleave(shape.length)[None],
        loss_mask(shape).float().repeat(rows)[None],
        torch.cat([last for _, _, last in made])[None],
        torch.arange(shape.length).repeat(rows)[None],
    ]


def stepper(algorithm: str, *flags: str) -> Steps:
    """Return what makes steps."""
    shape, device = shape_of(algorithm, small="small" in flags), "cuda" if torch.cuda.is_available() else "cpu"
    model, forward = model_of(algorithm, shape, device)
    model = model.to(device).train()
    fill(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=device == "cuda")
    batches: dict[int, list[Tensor]] = {}

    def steps(rows: int, count: int) -> dict[str, float]:
        if rows not in batches:
            batches[rows] = batch_of(shape, rows)
        for _ in range(count):
            batch = [tensor.to(device, non_blocking=True) for tensor in batches[rows]]
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = forward(rows, *batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            float(loss.detach())
        return {}

    return steps
