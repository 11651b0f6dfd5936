"""Steps of speculators 0.9.0 for the drafts that the peers' script does not train; run by `peer_worker.py`.

Shapes, sizes and objectives are those of `train_step_worker.py`: hidden 576, 49,152 tokens, a sample of 512, 64
anchors, blocks of 7. P-EAGLE trains its token embedding there; here it is frozen, as ours keeps the target's.
"""

import warnings
from typing import Any

import torch
from speculators.config import SpeculatorsConfig, VerifierConfig
from speculators.losses import resolve_loss_config
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import Qwen3Config

warnings.filterwarnings("ignore")

VOCAB, SIZE, LENGTH, ANCHORS, SLOTS, STEPS, PROMPT = 49152, 576, 512, 64, 7, 3, 32
LAYERS = [2, 8, 14, 20, 27]
BLOCKS = {"dflash2": 5, "xpress": 5, "peagle": 4, "mtp": 1}


def layer_config(layers: int) -> Any:
    """Return the config of the draft's blocks."""
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=SIZE, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, max_position_embeddings=4096, rms_norm_eps=1e-6, tie_word_embeddings=False,
        attention_bias=False, rope_parameters={"rope_type": "default", "rope_theta": 1e5},
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return config


def draft_of(algorithm: str) -> tuple[Any, dict[str, Any]]:
    """Return a draft, and what a step of it is called with."""
    count = STEPS if algorithm == "mtp" else SLOTS
    told = SpeculatorsConfig(
        algorithm=algorithm, proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=count)],
        default_proposal_method="greedy",
        verifier=VerifierConfig(name_or_path=None, architectures=["Qwen3ForCausalLM"]),
    )  # fmt: skip
    common = {"transformer_layer_config": layer_config(BLOCKS[algorithm]), "speculators_config": told}
    blocks: dict[str, Any] = {"draft_vocab_size": VOCAB, "block_size": SLOTS, "mask_token_id": VOCAB - 1}
    blocks |= {"aux_hidden_state_layer_ids": LAYERS}
    if algorithm == "dflash2":
        from speculators.losses.eager import tv_loss  # the fused one wants a card
        from speculators.models.dflash2.config import DFlash2SpeculatorConfig
        from speculators.models.dflash2.core import DFlash2DraftModel

        asked = {"loss_config": resolve_loss_config("ce", "eager"), "tv_loss_fn": tv_loss, "max_anchors": ANCHORS}
        return DFlash2DraftModel(DFlash2SpeculatorConfig(**common, **blocks)), asked
    if algorithm == "xpress":
        from speculators.models.xpress import XPressDraftModel, XPressSpeculatorConfig

        asked = {"loss_config": resolve_loss_config('{"ce":0.1,"tv":0.9}', "eager")}
        return XPressDraftModel(XPressSpeculatorConfig(**common, **blocks)), {**asked, "max_anchors": ANCHORS}
    if algorithm == "peagle":
        from speculators.models.peagle.config import PEagleSpeculatorConfig
        from speculators.models.peagle.core import PEagleDraftModel

        config = PEagleSpeculatorConfig(
            **common, draft_vocab_size=VOCAB, mask_token_id=VOCAB - 1, eagle_aux_hidden_state_layer_ids=LAYERS
        )
        asked = {"loss_config": resolve_loss_config("kl_div", "eager"), "max_anchors": ANCHORS, "num_depths": SLOTS}
        return PEagleDraftModel(config), asked
    from speculators.models.mtp.config import MTPSpeculatorConfig
    from speculators.models.mtp.core import MTPDraftModel

    weights = [0.8**step for step in range(STEPS)]
    return MTPDraftModel(MTPSpeculatorConfig(**common)), {"step_weights": [each / sum(weights) for each in weights]}


def worker(library: str, algorithm: str, dtype: str, steps: int, threads: int) -> None:
    """Train for so many steps; `peer_worker.py` looks at each."""
    del library
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model, asked = draft_of(algorithm)
    with torch.no_grad():
        for parameter in model.parameters():
            if torch.isnan(parameter).any() or not parameter.abs().sum().isfinite():
                parameter.normal_(0, 0.02)
    model = model.to(kind).train()
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name or "lm_head" in name:
            parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(1, LENGTH)
    mask[:, :PROMPT] = 0
    states = 1 if algorithm == "mtp" else len(LAYERS)
    batch = {
        "input_ids": torch.randint(0, VOCAB - 10, (1, LENGTH), generator=generator),
        "hidden_states": torch.randn(1, LENGTH, states * SIZE, generator=generator).to(kind),
        "verifier_last_hidden_states": torch.randn(1, LENGTH, SIZE, generator=generator).to(kind),
        "loss_mask": mask, "document_ids": torch.zeros(1, LENGTH, dtype=torch.int64),
        "position_ids": torch.arange(LENGTH)[None],
    }  # fmt: skip
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
    for _ in range(steps):
        model(**batch, **asked)[1].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
