"""Every family as a target: read, captured at any layer, drafted for, and decoded without loss."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from deepspec.checkpoint.checks import check_target
from deepspec.checkpoint.draft import adopt_target
from deepspec.checkpoint.new import new_draft_config
from deepspec.decoding.decode import Decoder
from deepspec.decoding.target_rows import TargetRows
from deepspec.families import read
from deepspec.formats.recipe import DraftRecipe, Objective
from deepspec.models.draft import build_draft
from deepspec.proposers.propose import proposer_for
from deepspec.rounds.decoded import Prompt, Settings
from deepspec.start.initial import initialize
from deepspec.target.load import Target, load_target
from tests.given.drafts.recipes import sized
from tests.given.targets.tiny import IM_END, VOCAB, tokenizer

WINDOWED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
TARGETS: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, **WINDOWED},
    "gemma3_text": {"query_pre_attn_scalar": 8, **WINDOWED},
    "gemma4_text": {
        "global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0, **WINDOWED},
}  # fmt: skip
LAYERS = [-1, 1, 2]


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    sizes = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "eos_token_id": IM_END,
        "initializer_range": 0.2, "pad_token_id": 0}  # fmt: skip
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **{**sizes, **TARGETS[request.param]})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    return load_target(tmp_path)


def test_target_is_captured_drafted_for_and_decoded_without_loss(target: Any) -> None:
    ids = torch.arange(3, 24)[None]
    states, last = target.capture(ids, LAYERS)
    with torch.no_grad():
        told = target.model(ids, output_hidden_states=True)
        torch.testing.assert_close(states, torch.cat([told.hidden_states[layer + 1] for layer in LAYERS], -1))
        torch.testing.assert_close(last, told.hidden_states[-1])
    shape = read(target.model.config.to_dict())
    for algorithm in ("dspark", "eagle3"):
        recipe = DraftRecipe(**sized(algorithm, markov_rank=4, block_size=3))
        draft = build_draft(new_draft_config(shape, recipe, LAYERS, VOCAB - 1, Objective(ttt_length=3)))
        adopt_target(draft, target.embed_weight, target.head_weight)
        initialize(draft, seed=0)
        check_target(draft.config, shape)
        proposer = proposer_for(draft.eval())
        decoder = Decoder(TargetRows(target, LAYERS), proposer, Settings(max_new_tokens=16), target.stop_ids, batch=2)
        prompts = [Prompt(sample_id=str(size), ids=list(range(3, size))) for size in (9, 24)]
        for decoded in decoder.decode(prompts):
            prompt = torch.arange(3, int(decoded.sample_id))[None]
            wanted = target.model.generate(prompt, do_sample=False, max_new_tokens=16)[0, prompt.shape[1] :]
            assert list(decoded.tokens) == wanted.tolist()
