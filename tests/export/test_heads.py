"""MTP heads go back into the files of the target that ships them: nothing else in these changes."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepspec.checkpoint.config import read_draft_config
from deepspec.checkpoint.draft import adopt_target, load_draft, save_draft
from deepspec.checkpoint.foreign import public_config
from deepspec.checkpoint.new import new_draft_config
from deepspec.checkpoint.shipped import load_heads
from deepspec.errors import CheckpointError, SpecError, TargetError
from deepspec.export.proof import draft_with, output_difference, read_back
from deepspec.export.run import FORMS, read_source
from deepspec.families import read_folder
from deepspec.families.shipped import check_names
from deepspec.formats.recipe import DraftRecipe, Objective
from deepspec.forms.form import FormSource
from deepspec.forms.gguf_file import TensorPlace, places, read_gguf
from deepspec.models.draft import BlockDraft, EagleDraft, build_draft
from tests.given.some import some
from tests.given.targets import shipped
from tests.given.targets.gguf_qwen35 import write_gguf

KINDS = ["qwen3", "qwen3_5"]
ROUNDING = 2e-6
"""What the same weights may differ by: kernels round otherwise where tensors lie otherwise in memory."""
LAST = 4
"""The state behind the final norm of a target of four layers."""


def draft_of(target: Path, layers: tuple[int, ...] = (LAST,), **recipe: Any) -> BlockDraft | EagleDraft:
    config = new_draft_config(read_folder(target), DraftRecipe(algorithm="mtp", **recipe), layers, None, Objective())
    model = build_draft(config)
    tensors = load_file(target / shipped.FIRST)
    adopt_target(model, tensors["model.embed_tokens.weight"], tensors["lm_head.weight"])
    load_heads(model, target)
    return model


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Return a kind of target."""
    chosen: str = request.param
    return chosen


@pytest.fixture
def tuned(kind: str, tmp_path: Path) -> tuple[FormSource, Path]:
    """Return heads that were moved, their target, and they as what is exported."""
    target = shipped.write_target(tmp_path / "target", kind, torch.bfloat16)
    model = draft_of(target)
    with torch.no_grad():
        for _, parameter in model.trainable():
            parameter.add_(0.5)
    save_draft(model.bfloat16(), tmp_path / "draft")
    return read_source(tmp_path / "draft", "ORG/target", target), target


def written(form: str, source: FormSource, folder: Path) -> tuple[Path, list[str]]:
    folder.mkdir()
    return folder, FORMS[form].write(source, folder)


def test_heads_start_as_the_target_ships_them_and_are_read_again(kind: str, tmp_path: Path) -> None:
    target = shipped.write_target(tmp_path / "target", kind)
    model = draft_of(target)
    own = dict(model.trainable())
    assert {f"mtp.{name}" for name in own} == shipped.heads(kind).keys()
    for name, wanted in shipped.heads(kind).items():
        assert torch.equal(own[name.removeprefix("mtp.")], wanted)
    save_draft(model, tmp_path / "draft")
    again = load_draft(tmp_path / "draft")
    assert again.config.block == model.config.block
    assert (again.config.block.gated_attention, again.config.target_layer_ids) == (kind == "qwen3_5", (LAST,))
    assert output_difference(again, model.eval()) <= ROUNDING


@pytest.mark.parametrize("form", ["vllm", "sglang"])
def test_heads_of_a_multimodal_target_are_read_again_from_its_files(form: str, tmp_path: Path) -> None:
    """As Qwen3.5 is released: the text's config lies within another, which is served as it is."""
    target = shipped.write_target(tmp_path / "target", "qwen3_5", torch.bfloat16)
    text = json.loads((target / "config.json").read_text())
    whole = {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "text_config": text}
    (target / "config.json").write_text(json.dumps(whole))
    save_draft(draft_of(target).bfloat16(), tmp_path / "draft")
    source = read_source(tmp_path / "draft", "ORG/target", target)
    folder, _ = written(form, source, tmp_path / form)
    assert json.loads((folder / "config.json").read_text()) == whole
    again = read_back(source, *FORMS[form].read(folder))
    assert output_difference(again, draft_with(source.draft, source.tensors)) <= ROUNDING


@pytest.mark.parametrize("form", ["vllm", "sglang"])
def test_nothing_of_the_target_changes_but_the_heads(tuned: tuple[FormSource, Path], form: str, tmp_path: Path) -> None:
    source, target = tuned
    folder, notes = written(form, source, tmp_path / "form")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", shipped.SECOND]
    before, after = load_file(target / shipped.SECOND), load_file(folder / shipped.SECOND)
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].dtype == torch.bfloat16
        assert torch.equal(after[name], tensor) is not name.startswith("mtp."), name
    assert (folder / "config.json").read_bytes() == (target / "config.json").read_bytes()
    assert notes[0].startswith(f"lay {shipped.SECOND} over a copy of the target's folder")
    again = read_back(source, *FORMS[form].read(folder))
    assert output_difference(again, draft_with(source.draft, source.tensors)) <= ROUNDING


@pytest.mark.parametrize("form", ["deepspec", "huggingface", "speculators"])
def test_other_forms_give_the_heads_back(tuned: tuple[FormSource, Path], form: str, tmp_path: Path) -> None:
    source, _ = tuned
    folder, _ = written(form, source, tmp_path / "form")
    again = read_back(source, *FORMS[form].read(folder))
    assert output_difference(again, draft_with(source.draft, source.tensors)) <= ROUNDING


def test_speculators_has_its_own_names_and_leaves_what_is_the_targets(
    tuned: tuple[FormSource, Path], tmp_path: Path
) -> None:
    folder, _ = written("speculators", tuned[0], tmp_path / "form")
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    assert (config["speculators_model_type"], config["num_nextn_predict_layers"]) == ("mtp", 1)
    assert all(name.startswith("mtp_layers.0.") for name in tensors)
    assert {"mtp_layers.0.input_proj.weight", "mtp_layers.0.self_attn.q_proj.weight"} <= tensors.keys()
    assert len(tensors) == len(shipped.heads("qwen3"))


def test_what_cannot_hold_heads_says_so(tuned: tuple[FormSource, Path], tmp_path: Path) -> None:
    source, _ = tuned
    assert some(FORMS["llama.cpp"].refuse(source)).startswith("a target without one GGUF file beside its weights")
    away = read_source(tmp_path / "draft", "ORG/target", None)
    assert some(FORMS["vllm"].refuse(away)).startswith("mtp heads without the target's files")
    assert FORMS["deepspec"].refuse(away) is None


@pytest.mark.parametrize("form", ["vllm", "sglang"])
def test_engines_hand_heads_the_state_behind_the_final_norm(kind: str, form: str, tmp_path: Path) -> None:
    target = shipped.write_target(tmp_path / "target", kind)
    save_draft(draft_of(target, (LAST - 1,)), tmp_path / "draft")
    refused = FORMS[form].refuse(read_source(tmp_path / "draft", "ORG/target", target))
    assert refused is not None
    assert refused.startswith("mtp heads that read the state before the target's final norm")


@pytest.mark.parametrize("layer", [LAST - 1, LAST])
def test_speculators_has_heads_that_read_before_the_norm_unless_a_key_of_ours_says_otherwise(
    kind: str, layer: int, tmp_path: Path
) -> None:
    target = shipped.write_target(tmp_path / "target", kind)
    save_draft(draft_of(target, (layer,)), tmp_path / "draft")
    source = read_source(tmp_path / "draft", "ORG/target", target)
    folder, notes = written("speculators", source, tmp_path / "form")
    told = json.loads((folder / "config.json").read_text())
    assert (told.get("target_layer_ids"), len(notes)) == ((None, 0) if layer < LAST else ([LAST], 1))
    assert read_draft_config(public_config(told, LAST)).target_layer_ids == (layer,)
    assert read_back(source, *FORMS["speculators"].read(folder)).config.reads_normed == (layer == LAST)


def test_heads_of_several_layers_are_not_read(tmp_path: Path) -> None:
    target = shipped.write_target(tmp_path / "target", "qwen3_5")
    save_draft(draft_of(target), tmp_path / "draft")
    written("speculators", read_source(tmp_path / "draft", "ORG/target", target), tmp_path / "form")
    told = json.loads((tmp_path / "form" / "config.json").read_text())
    told["transformer_layer_config"]["mtp_num_hidden_layers"] = 2
    with pytest.raises(CheckpointError, match="transformer_layer_config has mtp_num_hidden_layers: 2, a variant"):
        public_config(told, LAST)


def test_that_key_is_of_heads_alone() -> None:
    eagle = {"speculators_model_type": "eagle3", "transformer_layer_config": {"model_type": "qwen3"}}
    with pytest.raises(CheckpointError, match=r"config\.json has target_layer_ids: \[4\], a variant that is not read"):
        public_config({**eagle, "target_layer_ids": [4]}, 4)


def test_heads_are_not_rounded_in_silence(kind: str, tmp_path: Path) -> None:
    target = shipped.write_target(tmp_path / "target", kind, torch.bfloat16)
    save_draft(draft_of(target).float(), tmp_path / "draft")
    refused = FORMS["vllm"].refuse(read_source(tmp_path / "draft", "ORG/target", target))
    assert refused == "heads in fp32, of which the target's files keep BF16; train.precision=bf16 does"


def test_heads_of_another_target_are_not_written_into_this_one(tuned: tuple[FormSource, Path], tmp_path: Path) -> None:
    source, target = tuned
    for name in (shipped.FIRST, shipped.SECOND):
        tensors = {key: value for key, value in load_file(target / name).items() if not key.startswith("mtp.fc")}
        save_file(tensors, target / name)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    del index["weight_map"]["mtp.fc.weight"]
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "form").mkdir()
    with pytest.raises(CheckpointError, match=r"has no mtp\.fc\.weight"):
        FORMS["vllm"].write(source, tmp_path / "form")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["model.embed_tokens.weight"], "ships no MTP heads: none of its tensors is named mtp"),
        (["model.mtp_layers.0.input_proj.weight"], r"model\.mtp_layers\.0\.input_proj\.weight is of a layout"),
        (["model.layers.61.eh_proj.weight"], r"model\.layers\.61\.eh_proj\.weight is of a layout"),
        (["mtp.fc.weight", "mtp.layers.1.mlp.up_proj.weight"], "ships several layers of heads"),
        (["mtp.layers.0.mlp.experts.0.up_proj.weight"], "ships heads with experts"),
        (["mtp.layers.0.mlp.experts.gate_up_proj"], "ships heads with experts"),
    ],
)
def test_a_target_whose_heads_are_not_read_is_named(names: list[str], told: str) -> None:
    with pytest.raises(TargetError, match=told):
        check_names(names, "some/target")


def test_heads_that_are_not_those_of_the_config_are_named(tmp_path: Path) -> None:
    target = shipped.write_target(tmp_path / "target", "qwen3")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(TargetError, match=r"mtp\.layers\.0\.mlp\.down_proj\.weight \(32, 64\), wanted \(32, 48\)"):
        draft_of(target)


@pytest.mark.parametrize(
    ("layers", "recipe", "told"),
    [
        (
            (1, 2),
            {},
            "mtp heads read the target's last state alone, behind its final norm as engines do: cache.layers=\\[4\\]",
        ),
        ((LAST,), {"draft_vocab_size": 20}, "an mtp draft knows the whole vocabulary only"),
        ((LAST,), {"shape": "target"}, "an mtp draft has the shape of the target's heads"),
        ((LAST,), {"num_layers": 2}, "num_layers 2: an mtp draft has one"),
        ((LAST,), {"norms": "eagle3.1"}, "an mtp draft has none of these"),
    ],
)
def test_what_heads_have_not_is_refused(
    layers: tuple[int, ...], recipe: dict[str, Any], told: str, tmp_path: Path
) -> None:
    target = shipped.write_target(tmp_path / "target", "qwen3")
    with pytest.raises((SpecError, CheckpointError), match=told):
        draft_of(target, layers, **recipe)


def beside_gguf(folder: Path, **changes: Any) -> tuple[FormSource, Path]:
    """Return heads of a target that lies in a GGUF file, too, and that file."""
    target = shipped.write_target(folder / "target", "qwen3_5", torch.bfloat16)
    save_draft(draft_of(target).bfloat16(), folder / "draft")
    file = write_gguf(target, **changes)
    return read_source(folder / "draft", "ORG/target", target), file


@pytest.mark.parametrize("own_heads", [False, True])
def test_llama_cpp_has_heads_in_a_file_of_their_own(own_heads: bool, tmp_path: Path) -> None:
    source, file = beside_gguf(tmp_path, own_heads=own_heads)
    assert FORMS["llama.cpp"].refuse(source) is None
    folder, notes = written("llama.cpp", source, tmp_path / "form")
    assert notes == ["serve with --spec-type draft-mtp; needs the target's own GGUF file"]
    again = read_back(source, *FORMS["llama.cpp"].read(folder))
    assert output_difference(again, draft_with(source.draft, source.tensors)) <= ROUNDING
    found, target = read_gguf(folder / "draft.gguf", tensors=False), read_gguf(file, tensors=False)
    assert (found.value("qwen35.block_count"), found.value("qwen35.nextn_predict_layers")) == (LAST + 1, 1)
    kept = {name for name in target.fields if name.startswith(("tokenizer.", "qwen35."))}
    same = kept - {"qwen35.block_count", "qwen35.nextn_predict_layers"}
    assert {name: found.fields[name] for name in same} == {name: target.fields[name] for name in same}


def test_what_heads_share_with_the_target_is_copied_as_it_is_quantised(tmp_path: Path) -> None:
    source, file = beside_gguf(tmp_path, quantized=("token_embd.weight", "output.weight"))
    folder, _ = written("llama.cpp", source, tmp_path / "form")
    here, there = places(folder / "draft.gguf"), places(file)
    names = ("token_embd.weight", "output.weight", "output_norm.weight")
    assert [there[name].kind for name in names] == [8, 8, 0]
    for name in names:
        assert (here[name].shape, here[name].kind) == (there[name].shape, there[name].kind)
        assert bytes_of(folder / "draft.gguf", here[name]) == bytes_of(file, there[name])
    assert output_difference(
        read_back(source, *FORMS["llama.cpp"].read(folder)), draft_with(source.draft, source.tensors)
    ) <= ROUNDING  # fmt: skip


def bytes_of(path: Path, place: TensorPlace) -> bytes:
    values = math.prod(place.shape)
    return path.read_bytes()[place.at :][: values // 32 * 34 if place.kind == 8 else 4 * values]


def test_llama_cpp_names_what_it_has_not_of_heads(tmp_path: Path) -> None:
    source, file = beside_gguf(tmp_path, listed=True)
    told = "mtp heads beside target.gguf, which tells attention.head_count_kv of each layer and has none for them"
    assert FORMS["llama.cpp"].refuse(source) == told
    other = replace(source, draft=replace(source.draft, style="qwen3"))
    assert FORMS["llama.cpp"].refuse(other) == "mtp heads of a qwen3 block; it drafts with those of qwen3_5"
    before = replace(source, draft=replace(source.draft, target_layer_ids=(LAST - 1,)))
    assert some(FORMS["llama.cpp"].refuse(before)).startswith("mtp heads that read the state before")
    write_gguf(file.parent, arch="qwen3next")
    told = "mtp heads beside target.gguf, a GGUF file of architecture qwen3next; it drafts with those of qwen35"
    assert FORMS["llama.cpp"].refuse(source) == told


def test_llama_cpp_wants_all_that_heads_share_in_one_file(tmp_path: Path) -> None:
    """Of a head that lies in another piece it would take the embedding."""
    source, file = beside_gguf(tmp_path, pieces=3, without=("output.weight",))
    told = some(FORMS["llama.cpp"].refuse(source))
    assert told.startswith("mtp heads beside target.gguf, one of 3 pieces")
    assert "llama-gguf-split --merge" in told
    write_gguf(file.parent, without=("output_norm.weight",))
    told = "mtp heads beside target.gguf, which has no output_norm.weight; name the target's whole file"
    assert FORMS["llama.cpp"].refuse(source) == told
