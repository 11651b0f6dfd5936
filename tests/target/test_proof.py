"""The general reading is proven, not believed: misreadings that look right are caught, each by what differs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deepspec.checkpoint.ends import read_ends
from deepspec.errors import TargetError
from deepspec.families import read
from deepspec.families.shape import Rope
from deepspec.target import identify
from deepspec.target.capture import capture
from deepspec.target.heads import read_target
from deepspec.target.load import load_target
from deepspec.target.proof import prove, prove_ends
from deepspec.target.reading import Reading, read_model, snapped
from tests.given.targets import zoo
from tests.given.targets.tiny import tokenizer, write_target


def claimed(model_type: str) -> tuple[Any, Reading, Any]:
    """Return a model, its reading and its shape."""
    model = zoo.build(model_type)
    return model, read_model(model), read(model.config.to_dict())


@pytest.mark.parametrize("model_type", ["qwen2", "cohere", "granite", "gpt2", "deepseek_v3", "qwen3_next", "mamba"])
def test_what_is_read_rightly_passes(model_type: str) -> None:
    prove(*claimed(model_type))


def test_scales_come_from_the_model_and_are_those_that_its_config_names() -> None:
    _, reading, _ = claimed("granite")
    assert (reading.embedding_scale, reading.logit_scale) == (12.0, 1 / 8.0)
    _, reading, _ = claimed("minicpm3")
    assert (reading.embedding_scale, reading.logit_scale) == (12.0, 256 / 64)


def test_a_measured_factor_becomes_the_one_that_a_config_names_or_stays() -> None:
    assert snapped(0.1251, [8.0, 1 / 8]) == 0.125
    assert snapped(0.14, [8.0, 1 / 8]) == 0.14


@pytest.mark.parametrize("model_type", ["cohere", "granite", "minicpm3"])
def test_a_logit_scale_that_is_dropped_is_caught(model_type: str) -> None:
    model, reading, shape = claimed(model_type)
    with pytest.raises(TargetError, match="logits: ours are off by"):
        prove(model, replace(reading, logit_scale=1.0), shape)


def test_a_softcap_that_is_dropped_is_caught() -> None:
    model, reading, shape = claimed("gemma2")
    model.lm_head.weight.data.mul_(20)  # a cap of 30 does little to small logits
    with pytest.raises(TargetError, match="logits: ours are off by"):
        prove(model, replace(reading, softcap=None), shape)


def test_a_list_of_blocks_that_is_off_by_one_is_caught() -> None:
    model, reading, shape = claimed("qwen2")
    with pytest.raises(TargetError, match="layers 3, its config says 4"):
        prove(model, replace(reading, blocks=reading.blocks[1:]), shape)
    shifted = [*reading.blocks[1:], reading.blocks[-1]]
    with pytest.raises(TargetError, match=r"states: .* places \[0, 1, 2, 3, 3\]"):
        prove(model, replace(reading, blocks=shifted), shape)


def test_modules_that_are_no_blocks_are_caught_by_their_states() -> None:
    model, reading, shape = claimed("qwen2")
    inner: list[nn.Module] = [block.get_submodule("mlp") for block in reading.blocks]
    with pytest.raises(TargetError, match="states: layer -1 is off by"):
        prove(model, replace(reading, blocks=inner), shape)


@pytest.mark.parametrize("wrong", [Rope(theta=5e5), Rope(kind="linear", factor=4.0), Rope(kind="proportional")])
def test_a_rope_of_the_wrong_kind_is_caught(wrong: Rope) -> None:
    model, reading, shape = claimed("qwen2")
    if wrong.kind == "proportional":
        wrong = replace(wrong, rotary_share=0.25)
    with pytest.raises(TargetError, match=r"rope: .* as read, is off by"):
        prove(model, reading, replace(shape, block=replace(shape.block, rope=wrong)))


def test_a_rope_that_is_no_rope_of_the_target_needs_no_proof() -> None:
    model, reading, shape = claimed("bloom")
    assert not shape.rope_inherited
    prove(model, reading, replace(shape, block=replace(shape.block, rope=Rope(theta=7.0))))


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("bert", "a position sees what stands to its right"),
        ("gemma3n_text", "several residual streams"),
        ("modernbert-decoder", "its logits are no multiple of its head's product with its last state"),
        ("rembert", "embedding and head are"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(model_type: str, message: str) -> None:
    with pytest.raises(TargetError, match=f"'{model_type}'.*{message}"):
        claimed(model_type)


def test_a_model_without_a_head_is_refused() -> None:
    model = zoo.build("qwen2")
    model.get_output_embeddings = lambda: None
    with pytest.raises(TargetError, match="'qwen2' has no head"):
        read_model(model)


def written(model_type: str, folder: Path) -> Path:
    zoo.build(model_type).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_loading_proves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written("cohere", tmp_path)
    assert load_target(folder).reading.logit_scale == 0.0625
    monkeypatch.setattr("deepspec.target.load.read_model", lambda model: replace(read_model(model), logit_scale=1.0))
    with pytest.raises(TargetError, match="'cohere' is not what the general reading takes it for: logits"):
        load_target(folder)


def test_an_embedding_that_the_files_hold_in_another_form_is_caught(tmp_path: Path) -> None:
    folder = written("qwen2", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    target = load_target(folder)
    tensors["model.embed_tokens.weight"] *= 2
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(TargetError, match=r"embed_tokens\.weight in its files is not what the loaded model has"):
        prove_ends(target.model, folder, target.shape)


def test_a_bias_of_the_head_is_added_and_the_files_hold_the_models_own(tmp_path: Path) -> None:
    folder = written("phi", tmp_path)
    target = load_target(folder)
    ids = torch.arange(3, 20)[None]
    _, last = target.capture(ids, (0,))
    assert target.head_bias is not None
    logits = last @ target.head_weight.T + target.head_bias
    torch.testing.assert_close(logits, target.model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "lm_head.bias": tensors["lm_head.bias"] + 1}, folder / "model.safetensors")
    with pytest.raises(TargetError, match=r"lm_head\.bias in its files is not what the loaded model has"):
        prove_ends(target.model, folder, target.shape)
    save_file({**tensors, "lm_head.bias": 0 * tensors["lm_head.bias"]}, folder / "model.safetensors")
    with pytest.raises(TargetError, match="over the vocabulary in its files is none, the loaded model's head has one"):
        prove_ends(target.model, folder, target.shape)


def test_a_factor_behind_a_head_with_a_bias_is_refused() -> None:
    model = zoo.build("cohere")
    model.lm_head.bias = nn.Parameter(torch.ones(len(model.lm_head.weight)))
    with pytest.raises(TargetError, match=r"its logits are 0\.0625 times what its head with a bias gives"):
        read_model(model)


def test_the_proof_is_part_of_the_identity_where_it_is_needed_and_nowhere_else(tmp_path: Path) -> None:
    general = identify(written("qwen2", tmp_path / "general"))
    assert general.proof == "general 1"
    known = identify(write_target(tmp_path / "family"))
    assert known.proof == ""
    assert "proof" not in known.model_dump()
    assert general.but(proof="general 2").digest != general.digest


def test_captured_states_times_the_head_are_the_logits() -> None:
    model, reading, _ = claimed("cohere")
    ids = torch.arange(3, 20)[None]
    _, last = capture(reading, ids, (0,))
    torch.testing.assert_close(last @ model.lm_head.weight.T, model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


def test_tied_weights_that_a_fine_tune_untied_are_both_read(tmp_path: Path) -> None:
    """The config still says that they are tied; the files hold two, and two are what the draft gets."""
    folder = written("gemma2", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1.0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    target, (embedding, head, _) = load_target(folder), read_ends(folder)
    assert not torch.equal(embedding, head)
    torch.testing.assert_close(target.head_weight, head)


def test_a_tokenizer_that_is_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = written("mistral", tmp_path)
    larger = tokenizer()
    larger.add_tokens([f"<{number}>" for number in range(9)])
    larger.save_pretrained(folder)
    with pytest.raises(TargetError, match="the tokenizer knows 269 tokens, the embedding has 264 rows"):
        load_target(folder)


def test_a_type_that_needs_code_of_its_own_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    config = {"model_type": "own_kind", "auto_map": {"AutoModelForCausalLM": "modeling.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TargetError, match=r"'own_kind' needs code of its own \(trust_remote_code\)"):
        read_target(tmp_path)
