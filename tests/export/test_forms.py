"""Every form gives back the draft it was made from, or says what it cannot express."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from deepspec.errors import CheckpointError, ParityError
from deepspec.export import proof
from deepspec.export.proof import draft_with, output_difference, outputs, read_back
from deepspec.export.run import FORMS, read_source
from deepspec.forms.form import FormSource
from deepspec.forms.gguf_file import end_file
from deepspec.models.config import EagleNorms
from tests.given.drafts.written import KINDS, write_draft, write_target
from tests.given.some import some

ROPES = {"dspark_linear", "dspark_yarn", "dspark_llama3", "dflash2_dynamic", "eagle3_yarn", "eagle3_dynamic"}

WRITTEN = {
    "deepspec": set(KINDS),
    "huggingface": set(KINDS),
    "vllm": {
        "dspark", "dspark_blind", "dspark_embedded", "dspark_reduced", "dflash", "dflash_reduced", "dflash_filled",
        "dflash2", "dflash2_wide", "dflash2_gemma", "eagle3", "eagle3_four", "eagle3_llama", "eagle3_reduced",
        "eagle31", "eagle31_llama", "peagle", "peagle_llama", *ROPES, "dspark_near", "dflash2_near",
        "eagle3_llama_near",
        "xpress",
    },
    "speculators": set(KINDS)
    - {"dspark_llama", "dspark_gemma", "dflash2_gemma", "eagle3_near", "eagle3_llama_near"}
    - {"dspark_biased", "dflash2_biased", "eagle3_biased"},
    "sglang": {
        "dspark", "dspark_gated", "dspark_rnn", "dspark_blind", "dflash", "dflash_filled", "dflash2", "dflash2_wide",
        "dflash2_gemma", "eagle3_llama", "eagle3_four", "eagle3_reduced", "eagle31_llama", *ROPES, "dspark_near",
        "dflash2_near", "eagle3_llama_near",
    },
    "llama.cpp": {
        "dspark", "dspark_blind", "dspark_embedded", "dspark_gemma", "dflash", "dflash_filled", "dflash2",
        "dflash2_gemma", "eagle3_llama", "eagle3_reduced", "dspark_near", "dflash2_near", *ROPES - {"dspark_llama3"},
    },
}  # fmt: skip


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path: Path) -> FormSource:
    """Return a draft of the kind that a test asks for, with its target."""
    return read_source(write_draft(tmp_path / "draft", request.param), "ORG/target", write_target(tmp_path / "target"))


def written(form: str, source: FormSource, folder: Path) -> tuple[Path, list[str]]:
    """Write a form and return its folder and the notes."""
    folder.mkdir()
    return folder, FORMS[form].write(source, folder)


ROUNDING = 2e-6
"""What the same weights may differ by: kernels round otherwise where tensors lie otherwise in memory."""


def apart(source: FormSource, config: dict[str, Any], tensors: dict[str, Tensor]) -> float:
    """Return how far a form that was read back is from its draft."""
    return output_difference(read_back(source, config, tensors), draft_with(source.draft, source.tensors))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("source", "kind"), [(kind, kind) for kind in KINDS], indirect=["source"])
def test_a_form_gives_back_the_draft_or_refuses_it_by_name(
    source: FormSource, kind: str, form: str, tmp_path: Path
) -> None:
    reason = FORMS[form].refuse(source)
    assert (reason is None) == (kind in WRITTEN[form]), reason
    if reason is None:
        folder, _ = written(form, source, tmp_path / "form")
        assert apart(source, *FORMS[form].read(folder)) <= ROUNDING


def config_of(form: str, source: FormSource, tmp_path: Path) -> Any:
    folder, _ = written(form, source, tmp_path / "form")
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("source", ["eagle3"], indirect=True)
def test_vllm_eagle3_counts_layers_from_the_embedding_and_says_where_the_norm_is(
    source: FormSource, tmp_path: Path
) -> None:
    config = config_of("vllm", source, tmp_path)
    assert config["architectures"] == ["Eagle3Qwen3ForCausalLM"]
    assert config["eagle_aux_hidden_state_layer_ids"] == [0, 2, 4, 6]  # ours: -1, 1, 3, 5
    assert config["norm_before_residual"] is False
    assert config["draft_vocab_size"] == 48
    assert "target_layer_ids" not in config


@pytest.mark.parametrize("source", ["dflash"], indirect=True)
def test_dflash_is_served_as_dspark_with_a_markov_head_of_zeros(source: FormSource, tmp_path: Path) -> None:
    folder, notes = written("vllm", source, tmp_path / "form")
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    assert config["architectures"] == ["Qwen3DSparkModel"]
    assert config["markov_head_type"] == "vanilla"
    assert tensors["markov_head.markov_w1.weight"].shape == (48, config["markov_rank"])
    assert not tensors["markov_head.markov_w2.weight"].any()
    assert "serve it as DSpark" in notes[0]


@pytest.mark.parametrize("form", ["vllm", "sglang"])
@pytest.mark.parametrize("source", ["dflash2"], indirect=True)
def test_dflash2_is_written_as_its_authors_have_it(source: FormSource, form: str, tmp_path: Path) -> None:
    folder, notes = written(form, source, tmp_path / "form")
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    assert config["architectures"] == ["DFlash2DraftModel"]
    assert config["dflash_config"] == {
        "block_size": 7, "mask_token_id": 47, "target_layer_ids": [0, 1, 3, 5], "conv_kernel_size": 2,
        "conv_group_size": 16, "selector_rank": 6, "selector_top_k": 4,
    }  # fmt: skip
    assert not {"sample_from_anchor", "target_layer_ids", "mask_token_id", "markov_rank"} & config.keys()
    assert "candidate_selector.successor_codebook" in tensors
    assert notes == ([] if form == "sglang" else ["read back, not run: hold its acceptance against ours first"])
    assert not {"embed_tokens.weight", "lm_head.weight"} & tensors.keys()


@pytest.mark.parametrize("source", ["xpress"], indirect=True)
def test_xpress_is_written_as_its_authors_have_it_with_as_many_passes_as_drafts(
    source: FormSource, tmp_path: Path
) -> None:
    folder, notes = written("vllm", source, tmp_path / "form")
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    assert config["architectures"] == ["Qwen3XPressModel"]
    assert config["dflash_config"] == {"block_size": 7, "mask_token_id": 47, "target_layer_ids": [0, 1, 3, 5]}
    sizes = {key: value for key, value in config.items() if key.startswith("xpress_")}
    assert sizes == {"xpress_rank": 6, "xpress_mlp_hidden": 18, "xpress_block_size": 7, "xpress_num_passes": 6}
    parts = {name.removeprefix("xpress_head.") for name in tensors if name.startswith("xpress_head.")}
    assert parts == {
        "w1.weight", "w2.weight", "down_h.weight", "down_g.weight", "in_proj.weight", "mix.L", "mlp.gate_proj.weight",
        "mlp.up_proj.weight", "mlp.down_proj.weight",
    }  # fmt: skip
    assert "may take the anchor for the token before it" in notes[1]
    for form in ("sglang", "llama.cpp"):
        assert FORMS[form].refuse(source) == "the refiner of xpress; it has no class for it"
    anchored = replace(
        source, draft=replace(source.draft, window=64, window_layers=frozenset({0}), window_form="causal")
    )
    assert some(FORMS["vllm"].refuse(anchored)).startswith("a window of 64 positions before a block's anchor")


@pytest.mark.parametrize("source", ["eagle31_llama"], indirect=True)
def test_the_norms_of_eagle31_are_written_out_and_the_flag_that_vllm_takes_for_true(
    source: FormSource, tmp_path: Path
) -> None:
    config = config_of("vllm", source, tmp_path)
    told = {key: config[key] for key in ("fc_norm", "norm_output", "norm_before_residual")}
    assert told == {"fc_norm": True, "norm_output": True, "norm_before_residual": False}
    assert FORMS["sglang"].refuse(source) is None
    assert FORMS["llama.cpp"].refuse(source) == "an eagle3 draft with fc_norm and norm_output"


@pytest.mark.parametrize("source", ["dspark"], indirect=True)
def test_speculators_nests_the_block_and_samples_from_the_anchor(source: FormSource, tmp_path: Path) -> None:
    folder, notes = written("speculators", source, tmp_path / "form")
    config = json.loads((folder / "config.json").read_text())
    assert config["aux_hidden_state_layer_ids"] == [1, 2, 4, 6]
    assert config["sample_from_anchor"] is True
    assert config["transformer_layer_config"]["model_type"] == "qwen3"
    assert config["transformer_layer_config"]["num_hidden_layers"] == 1
    assert "markov_rank" not in config["transformer_layer_config"]
    proposal = config["speculators_config"]
    assert proposal["proposal_methods"][0]["speculative_tokens"] == 7
    assert proposal["verifier"] == {"name_or_path": "ORG/target", "architectures": ["LlamaForCausalLM"]}
    assert not {"embed_tokens.weight", "lm_head.weight"} & load_file(folder / "model.safetensors").keys()
    assert "ignore sample_from_anchor" in notes[0]


@pytest.mark.parametrize("source", ["peagle"], indirect=True)
def test_p_eagle_is_vllms_eagle3_with_a_mask_token_and_no_other_engines(source: FormSource, tmp_path: Path) -> None:
    config, notes = config_of("vllm", source, tmp_path), FORMS["vllm"].write(source, tmp_path / "form")
    assert config["architectures"] == ["Eagle3Qwen3ForCausalLM"]
    assert (config["pard_token"], config["num_hidden_layers"]) == (47, 2)
    assert config["norm_before_residual"] is False
    assert notes == ['all tokens come of one pass: serve it with "parallel_drafting": true, and at most 7 tokens']
    assert load_file(tmp_path / "form" / "model.safetensors")["mask_hidden"].shape == (1, 1, 4 * 32)
    for form in ("sglang", "llama.cpp"):
        assert FORMS[form].refuse(source) == "peagle, which drafts all tokens in a pass; it has eagle3, token by token"
    normed = replace(source, draft=replace(source.draft, norms=EagleNorms(fc_norm=True)))
    assert FORMS["vllm"].refuse(normed) == "a peagle draft with fc_norm"


@pytest.mark.parametrize("source", ["peagle"], indirect=True)
def test_p_eagle_in_the_form_of_speculators_has_its_keys(source: FormSource, tmp_path: Path) -> None:
    config = config_of("speculators", source, tmp_path)
    assert config["speculators_model_type"] == "peagle"
    assert config["architectures"] == ["PEagleDraftModel"]
    assert (config["mask_token_id"], config["embed_requires_grad"]) == (47, True)
    assert config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == 7
    assert "mask_token_id" not in config["transformer_layer_config"]


@pytest.mark.parametrize("source", ["eagle3_llama"], indirect=True)
def test_sglang_eagle3_has_its_own_names_and_whole_vocabulary_maps(source: FormSource, tmp_path: Path) -> None:
    folder, _ = written("sglang", source, tmp_path / "form")
    tensors = load_file(folder / "model.safetensors")
    assert "midlayer.self_attn.q_proj.weight" in tensors
    assert tensors["t2d"].all()
    assert not tensors["d2t"].any()
    assert "embed_tokens.weight" not in tensors


@pytest.mark.parametrize("source", ["dspark_blind"], indirect=True)
def test_llama_cpp_leaves_out_a_confidence_head_it_cannot_feed(source: FormSource, tmp_path: Path) -> None:
    _, notes = written("llama.cpp", source, tmp_path / "form")
    assert "without the confidence head" in notes[0]


CONFIGS = ["vllm", "sglang", "speculators"]


def block_of(told: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a form's config.json that tells of the block."""
    block: dict[str, Any] = told.get("transformer_layer_config", told)
    return block


@pytest.mark.parametrize("form", CONFIGS)
@pytest.mark.parametrize("source", ["dspark_yarn", "dspark_llama3"], indirect=True)
def test_old_and_new_readers_of_a_form_see_one_rope(source: FormSource, form: str, tmp_path: Path) -> None:
    told = block_of(config_of(form, source, tmp_path))
    new, old = told["rope_parameters"], {"rope_theta": told["rope_theta"], **told["rope_scaling"]}
    assert new == old
    assert new["factor"] == 4.0
    assert told["max_position_embeddings"] == 128


@pytest.mark.parametrize("source", ["dspark_yarn"], indirect=True)
def test_the_factor_of_a_yarn_is_told_as_engines_count_it(source: FormSource, tmp_path: Path) -> None:
    """They multiply 0.1·ln 4 + 1 = 1.1386 by what is told."""
    told = config_of("vllm", source, tmp_path)["rope_scaling"]
    assert told["attention_factor"] == 1.5
    assert told["attn_factor"] == pytest.approx(1.5 / 1.138629)


@pytest.mark.parametrize("source", ["eagle3_dynamic", "dflash2_dynamic"], indirect=True)
def test_a_dynamic_rope_is_told_as_the_plain_one_that_the_draft_has(source: FormSource, tmp_path: Path) -> None:
    """Readers differ in what a dynamic rope is below the positions of its config; of a plain one they do not."""
    told = config_of("vllm", source, tmp_path)
    assert told["rope_parameters"] == {"rope_type": "default", "rope_theta": 20000.0}
    assert (told["rope_theta"], told["rope_scaling"]) == (20000.0, None)


WRONG_ROPES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "of another theta": lambda told: {
        "rope_theta": 7.0, "rope_parameters": {**told["rope_parameters"], "rope_theta": 7.0}
    },
    "of old readers missing": lambda told: {"rope_scaling": "gone"},
    "of old readers plain": lambda told: {"rope_scaling": None},
    "of new readers plain": lambda told: {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "of engines without its factor": lambda told: {
        key: {name: value for name, value in told[key].items() if name != "attn_factor"}
        for key in ("rope_parameters", "rope_scaling")
    },
    "of all readers plain": lambda told: {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "rope_scaling": None
    },
    "of no reader": lambda told: dict.fromkeys(("rope_parameters", "rope_theta", "rope_scaling"), "gone"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_ROPES)
@pytest.mark.parametrize("form", CONFIGS)
@pytest.mark.parametrize("source", ["dspark_yarn"], indirect=True)
def test_a_wrong_rope_in_a_form_is_caught(source: FormSource, form: str, wrong: str, tmp_path: Path) -> None:
    folder, _ = written(form, source, tmp_path / "form")
    told = json.loads((folder / "config.json").read_text())
    spoiled = {**block_of(told), **WRONG_ROPES[wrong](block_of(told))}
    spoiled = {key: value for key, value in spoiled.items() if value != "gone"}
    nested = "transformer_layer_config" in told
    (folder / "config.json").write_text(
        json.dumps({**told, "transformer_layer_config": spoiled} if nested else spoiled)
    )
    with pytest.raises((ParityError, CheckpointError), match=r"rope"):
        read_back(source, *FORMS[form].read(folder))


@pytest.mark.parametrize("key", ["type", "factor", "original_context_length", "attn_factor", "yarn_beta_fast"])
@pytest.mark.parametrize("source", ["dspark_yarn"], indirect=True)
def test_a_wrong_rope_in_gguf_is_caught(
    source: FormSource, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = gguf.GGUFWriter.add_key_value

    def other(writer: Any, name: str, value: Any, *rest: Any, **named: Any) -> None:
        if name == f"dflash.rope.scaling.{key}":
            name, value = (f"{name}_", value) if key == "type" else (name, 2 * value)
        add(writer, name, value, *rest, **named)

    monkeypatch.setattr(gguf.GGUFWriter, "add_key_value", other)
    folder, _ = written("llama.cpp", source, tmp_path / "form")
    with pytest.raises(ParityError, match=r"rope\."):
        read_back(source, *FORMS["llama.cpp"].read(folder))


@pytest.mark.parametrize("source", ["dspark_yarn"], indirect=True)
def test_a_rope_that_differs_far_away_only_is_caught_by_what_the_draft_says(source: FormSource) -> None:
    """Nothing is known here of how the form tells its rope: the pairs that yarn stretches turn a little each step."""
    rope = source.draft.block.rope
    draft = draft_with(source.draft, source.tensors)
    other = replace(source.draft, block=replace(source.draft.block, rope=replace(rope, factor=rope.factor * 1.0001)))
    with pytest.raises(ParityError, match=r"between positions 7919 apart: is its rope the draft's\?"):
        output_difference(draft_with(other, source.tensors), draft)


@pytest.mark.parametrize(
    ("source", "reason"),
    [("dspark_llama3", "rope of kind llama3; it has default, linear, yarn")],
    indirect=["source"],
)
def test_llama_cpp_names_the_rope_that_it_has_not(source: FormSource, reason: str) -> None:
    assert FORMS["llama.cpp"].refuse(source) == reason
    rope = replace(source.draft.block.rope, kind="yarn", truncate=False)
    other = replace(source, draft=replace(source.draft, block=replace(source.draft.block, rope=rope)))
    assert FORMS["llama.cpp"].refuse(other) == "rope of kind yarn whose ramp does not begin and end at whole sizes"


def test_a_rope_that_turns_a_part_of_each_head_is_refused_where_all_of_it_is_turned(tmp_path: Path) -> None:
    source = read_source(write_draft(tmp_path / "draft", "dspark"), "t", write_target(tmp_path / "target"))
    rope = replace(source.draft.block.rope, rotary_share=0.5)
    other = replace(source, draft=replace(source.draft, block=replace(source.draft.block, rope=rope)))
    for form in ("sglang", "llama.cpp"):
        assert FORMS[form].refuse(other) == "a rope that turns 50% of each head; its class turns all"


@pytest.mark.parametrize("form", ["vllm", "sglang", "llama.cpp", "speculators"])
@pytest.mark.parametrize("source", ["dspark_near"], indirect=True)
def test_a_window_is_of_the_layers_that_have_it_in_every_form(source: FormSource, form: str, tmp_path: Path) -> None:
    folder, _ = written(form, source, tmp_path / "form")
    found = read_back(source, *FORMS[form].read(folder)).config
    assert (found.window, found.windows) == (64, (None, 64))


@pytest.mark.parametrize(
    ("source", "form", "reason"),
    [
        ("eagle3_near", "vllm", "a window of 64 positions; its class for this block attends in full"),
        ("eagle3_llama_near", "llama.cpp", "a window of 64 positions; its eagle3 attends in full"),
        ("eagle3_near", "speculators", "a window of 64 positions; its class for this kind of draft attends in full"),
    ],
    indirect=["source"],
)
def test_a_form_that_has_no_windows_says_so(source: FormSource, form: str, reason: str) -> None:
    assert FORMS[form].refuse(source) == reason


@pytest.mark.parametrize("source", ["eagle3_llama_near"], indirect=True)
def test_sglang_is_told_an_eagle3_window_by_the_command_and_the_folder_keeps_it_for_its_readers(
    source: FormSource, tmp_path: Path
) -> None:
    folder, notes = written("sglang", source, tmp_path / "form")
    told = json.loads((folder / "config.json").read_text())
    assert (told["sliding_window"], told["layer_types"]) == (64, ["sliding_attention"])
    found = read_back(source, *FORMS["sglang"].read(folder)).config
    assert (found.window, found.windows) == (64, (64,))
    assert FORMS["sglang"].options(source) == ("--speculative-draft-window-size 63",)  # and its own: 64
    assert "without --speculative-draft-window-size 63" in notes[0]
    assert FORMS["vllm"].options(source) == ()
    (folder / "config.json").write_text(json.dumps({**told, "sliding_window": 63}))
    with pytest.raises(ParityError, match="window"):
        read_back(source, *FORMS["sglang"].read(folder))
    alone = replace(source, draft=replace(source.draft, window=1))
    assert some(FORMS["sglang"].refuse(alone)).startswith("a window of 1 position; --speculative-draft-window-size")


@pytest.mark.parametrize("source", ["dspark_near", "dflash2_near", "eagle3_llama"], indirect=True)
def test_sglang_is_told_no_window_that_its_config_says_or_that_is_not_there(source: FormSource, tmp_path: Path) -> None:
    assert FORMS["sglang"].options(source) == ()
    assert not [note for note in written("sglang", source, tmp_path / "form")[1] if "window" in note]


@pytest.mark.parametrize("form", ["vllm", "sglang"])
@pytest.mark.parametrize("source", ["dspark_near", "dflash2_near"], indirect=True)
@pytest.mark.parametrize(
    "spoil", [{"is_causal": None}, {"layer_types": ["full_attention"] * 2}, {"sliding_window": 32}]
)
def test_a_window_that_its_reader_would_take_otherwise_fails_the_proof(
    source: FormSource, form: str, spoil: dict[str, Any], tmp_path: Path
) -> None:
    folder, _ = written(form, source, tmp_path / "form")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, **spoil}))
    with pytest.raises((ParityError, CheckpointError), match=r"windows|from left to right"):
        read_back(source, *FORMS[form].read(folder))


@pytest.mark.parametrize("source", ["dspark_embedded"], indirect=True)
def test_a_block_that_reads_the_embedding_is_refused_where_blocks_read_layers_alone(source: FormSource) -> None:
    reason = some(FORMS["sglang"].refuse(source))
    assert reason == "a dspark draft that reads the embedding (layer -1); its blocks read decoder layers alone"


def test_bf16_weights_stay_bf16_in_gguf(tmp_path: Path) -> None:
    folder = write_draft(tmp_path / "draft", "dspark", torch.bfloat16)
    source = read_source(folder, "t", write_target(tmp_path / "target"))
    form, _ = written("llama.cpp", source, tmp_path / "form")
    tensors = FORMS["llama.cpp"].read(form)[1]
    assert tensors["fc.weight"].dtype == torch.bfloat16
    torch.testing.assert_close(tensors["fc.weight"], source.tensors["fc.weight"], rtol=0, atol=0)


def test_llama_cpp_needs_the_gguf_of_the_target(tmp_path: Path) -> None:
    source = read_source(write_draft(tmp_path / "draft", "dspark"), "t", None)
    assert "export.gguf=FILE names one" in some(FORMS["llama.cpp"].refuse(source))
    (file,) = write_target(tmp_path / "target").glob("*.gguf")
    named = replace(source, gguf=file)
    assert FORMS["llama.cpp"].refuse(named) is None
    folder, _ = written("llama.cpp", named, tmp_path / "form")
    assert apart(named, *FORMS["llama.cpp"].read(folder)) <= ROUNDING


def test_llama_cpp_is_not_given_the_file_of_another_target(tmp_path: Path) -> None:
    source = read_source(write_draft(tmp_path / "draft", "dspark"), "t", None)
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", arch="qwen3")
    writer.add_block_count(source.draft.num_target_layers)
    writer.add_embedding_length(5120)
    end_file(writer)
    wanted = f"its embedding_length is 5120, wanted {source.draft.block.hidden_size}"
    refused = some(FORMS["llama.cpp"].refuse(replace(source, gguf=tmp_path / "other.gguf")))
    assert refused == f"other.gguf, a GGUF file of another target: {wanted}"


def test_llama_cpp_is_not_given_a_file_without_a_tokenizer(tmp_path: Path) -> None:
    """A projector's tells nothing of layers, and the draft would have no tokenizer."""
    source = read_source(write_draft(tmp_path / "draft", "dspark"), "t", None)
    end_file(gguf.GGUFWriter(tmp_path / "mmproj.gguf", arch="clip"))
    refused = some(FORMS["llama.cpp"].refuse(replace(source, gguf=tmp_path / "mmproj.gguf")))
    assert refused.startswith("mmproj.gguf, a GGUF file without a tokenizer")


@pytest.mark.parametrize("source", ["dspark"], indirect=True)
def test_transformers_loads_the_hugging_face_form(
    source: FormSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, _ = written("huggingface", source, tmp_path / "form")
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    wanted = outputs(draft_with(source.draft, source.tensors))
    torch.testing.assert_close(outputs(model)["logits"], wanted["logits"])


@pytest.mark.parametrize("source", ["dspark"], indirect=True)
@pytest.mark.parametrize("name", ["fc.weight", "markov_head.markov_w2.weight", "confidence_head.proj.bias"])
def test_a_changed_tensor_fails_the_proof(source: FormSource, name: str, tmp_path: Path) -> None:
    folder, _ = written("vllm", source, tmp_path / "form")
    tensors = load_file(folder / "model.safetensors")
    tensors[name] += 0.01
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ParityError, match="differs from the draft by"):
        apart(source, *FORMS["vllm"].read(folder))


@pytest.mark.parametrize("source", ["dspark"], indirect=True)
@pytest.mark.parametrize(
    ("key", "value"), [("target_layer_ids", [0, 2, 4, 6]), ("mask_token_id", 46), ("block_size", 6)]
)
def test_a_changed_config_fails_the_proof(source: FormSource, key: str, value: object, tmp_path: Path) -> None:
    folder, _ = written("deepspec", source, tmp_path / "form")
    config, tensors = FORMS["deepspec"].read(folder)
    with pytest.raises(ParityError, match=f"says {key}"):
        apart(source, {**config, key: value}, tensors)


@pytest.mark.skipif("DEEPSPEC_GOLDEN" not in os.environ, reason="set DEEPSPEC_GOLDEN to a folder of golden numbers")
def test_golden_drafts_survive_every_form_that_expresses_them(tmp_path: Path) -> None:
    cases = sorted(Path(os.environ["DEEPSPEC_GOLDEN"]).glob("train/*/draft"))
    assert cases
    for case in cases:
        source = read_source(case, "t", None)
        for name, form in FORMS.items():
            if form.refuse(source) is None:
                folder, _ = written(name, source, tmp_path / f"{case.parent.name}-{name}")
                assert apart(source, *form.read(folder)) <= 1e-5


@pytest.mark.parametrize("broken", ["first", "ids", "second"])
def test_an_output_that_is_no_number_fails_the_proof_whatever_the_others_are(broken: str) -> None:
    """In whatever order outputs are looked at: the largest of 0 and NaN may be either."""
    whole = {name: torch.zeros(2) for name in ("first", "ids", "second")}
    with pytest.raises(ParityError, match=f"differs from the draft by nan in {broken}"):
        proof.apart({**whole, broken: torch.tensor([0.0, float("nan")])}, whole)
