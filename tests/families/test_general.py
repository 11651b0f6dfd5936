"""The general reading of configs: names and defaults as installed, sizes for a draft, and what is refused."""

import dataclasses
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from deepspec.checkpoint.new import new_draft_config
from deepspec.errors import SpecError, TargetError
from deepspec.families import FAMILIES, is_general, read
from deepspec.families.ends import ends_of
from deepspec.families.installed import causal_types, defaults_of, names_of, theta_of
from deepspec.formats.recipe import DraftRecipe, Objective
from deepspec.formats.tensor_heads import TensorHead
from tests.given.targets import zoo

MISTRAL = {"model_type": "mistral", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}


@pytest.mark.parametrize("model_type", ["gpt2", "bloom", "qwen2", "deepseek_v3", "falcon_h1", "gemma2", "nemotron_h"])
def test_defaults_read_from_source_are_those_of_the_class(model_type: str) -> None:
    kind = CONFIG_MAPPING[model_type]
    wanted = {field.name: field.default for field in dataclasses.fields(kind)}
    found = defaults_of(model_type)
    assert len(found) > 10
    assert {name: wanted[name] for name in found} == found
    assert names_of(model_type) == {**kind.attribute_map}


def test_a_type_that_is_not_installed_has_no_defaults() -> None:
    assert defaults_of("mystery") == {}
    assert names_of("mystery") == {}
    assert {"mistral", "mamba", "gpt2"} <= causal_types().keys()
    assert theta_of("flex_olmo") == 500000.0


def test_plain_heads_and_rope_are_taken_over_and_defaults_filled_in() -> None:
    shape = read({**MISTRAL, "hidden_size": 5120, "num_hidden_layers": 40})
    block = shape.block
    assert (block.hidden_size, block.num_heads, block.num_kv_heads, block.head_dim) == (5120, 32, 8, 160)
    assert (block.intermediate_size, shape.vocab_size, shape.num_layers) == (14336, 32000, 40)
    assert (block.rope.theta, shape.rope_inherited, shape.general, shape.told) == (1e6, True, True, ())


def test_heads_that_mean_something_else_become_heads_of_128() -> None:
    shape = read({"model_type": "deepseek_v3", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})
    assert (shape.block.num_heads, shape.block.num_kv_heads, shape.block.head_dim) == (56, 14, 128)
    assert any("heads are of another kind: the draft has 56 of 128" in line for line in shape.told)
    small = read({"model_type": "mamba", "hidden_size": 320})
    assert (small.block.num_heads, small.block.head_dim) == (5, 64)


def test_experts_that_are_narrow_become_an_mlp_of_three_times_the_hidden_size() -> None:
    shape = read({"model_type": "qwen3_5_moe_text", "hidden_size": 2048})
    assert shape.block.intermediate_size == 6144


def test_names_of_a_types_own_are_read() -> None:
    shape = read({"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25, "n_positions": 512})
    assert (shape.block.hidden_size, shape.num_layers, shape.block.num_heads) == (1600, 48, 25)
    assert (shape.max_positions, shape.rope_inherited) == (512, False)
    assert any("names no rope" in line for line in shape.told)


def test_a_rope_of_a_kind_that_drafts_lack_becomes_a_plain_one_of_its_theta() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 5e4, "short_factor": [1.0], "long_factor": [1.0]}
    shape = read({"model_type": "phi3", "rope_parameters": rope})
    assert (shape.block.rope.kind, shape.block.rope.theta, shape.rope_inherited) == ("default", 5e4, False)
    assert any("longrope" in line for line in shape.told)


def test_a_rotated_part_of_a_head_becomes_the_whole() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    assert read({"model_type": "glm4", "rope_parameters": rope}).block.rope.rotary_share == 1.0


def test_the_text_part_of_an_image_model_is_read() -> None:
    text = {"model_type": "mistral", "hidden_size": 1024, "num_hidden_layers": 8}
    shape = read({"model_type": "mistral3", "text_config": text})
    assert (shape.top_model_type, shape.model_type, shape.num_layers) == ("mistral3", "mistral", 8)
    llama = {**text, "model_type": "llama", "num_attention_heads": 8, "vocab_size": 99, "intermediate_size": 2048}
    assert read({"model_type": "llava", "text_config": llama}).general


@pytest.mark.parametrize("model_type", FAMILIES)
def test_families_of_the_table_are_not_read_so(model_type: Any) -> None:
    assert not is_general({"model_type": model_type})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "'t5' is an encoder-decoder"),
        ({"model_type": "vit"}, "'vit' is no causal language model of the installed transformers"),
        (
            {"model_type": "x", "auto_map": {"AutoModelForCausalLM": "m.M"}},
            "'x' needs code of its own .trust_remote_code",
        ),
        ({"model_type": "mistral", "hidden_size": "big"}, "'mistral' has no whole 'hidden_size' .'big'."),
    ],
)
def test_what_is_no_decoder_is_refused_by_name(config: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        read(config)


def test_a_draft_has_the_qwen3_shape_and_no_other() -> None:
    shape = read({**MISTRAL, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16})
    draft = new_draft_config(shape, DraftRecipe(), [1], 7, Objective())
    assert (draft.style, draft.block.qk_norm, draft.block.num_kv_heads) == ("qwen3", True, 2)
    with pytest.raises(SpecError, match="no draft has the shape of a mistral block; use shape: qwen3"):
        new_draft_config(shape, DraftRecipe(shape="target"), [1], 7, Objective())


@pytest.mark.parametrize(
    ("names", "embedding", "head"),
    [
        (["model.embed_tokens.weight", "lm_head.weight"], "model.embed_tokens.weight", "lm_head.weight"),
        (["transformer.wte.weight", "transformer.wpe.weight"], "transformer.wte.weight", "transformer.wte.weight"),
        (["gpt_neox.embed_in.weight", "embed_out.weight"], "gpt_neox.embed_in.weight", "embed_out.weight"),
        (["llm.unembed.weight", "llm.embed.weight"], "llm.embed.weight", "llm.unembed.weight"),
        (["backbone.embeddings.weight", "h.1.emb.weight"], "backbone.embeddings.weight", "backbone.embeddings.weight"),
    ],
)
def test_embedding_and_head_are_told_by_size_and_name(names: list[str], embedding: str, head: str) -> None:
    found = ends_of({name: TensorHead(dtype="F32", shape=(9, 4)) for name in names}, 9, 4)
    assert found is not None
    assert (found.embedding, found.head) == (embedding, head)


def test_a_checkpoint_without_an_embedding_has_no_ends() -> None:
    assert ends_of({"proj.weight": TensorHead(dtype="F32", shape=(9, 4))}, 9, 4) is None


STATEFUL = {
    "mamba2": "state_size",
    "qwen3_next": "layer_types",
    "lfm2": "layer_types",
    "recurrent_gemma": "block_types",
    "nemotron_h": "layers_block_type",
    "llama4_text": "attention_chunk_size",
    "deepseek_v32": "index_topk",
    "rwkv": "rescale_every",
}


@pytest.mark.parametrize("model_type", STATEFUL)
def test_a_memory_that_gives_no_tokens_back_is_known_from_the_config(model_type: str) -> None:
    shape = read(zoo.config_of(model_type).get_text_config().to_dict())
    assert STATEFUL[model_type] in shape.reads_again


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "minimax_m2", "deepseek_v3", "gemma2", "mistral"])
def test_keys_and_values_and_experts_are_nothing_to_read_again(model_type: str) -> None:
    assert read(zoo.config_of(model_type).to_dict()).reads_again == ()
