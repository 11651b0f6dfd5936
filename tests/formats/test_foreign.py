"""Drafts of speculators and SpecForge are read as ours, and a variant that is not read is refused by its key."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deepspec.artifacts import open_artifact
from deepspec.brought.draft import lines
from deepspec.checkpoint.config import read_draft_config
from deepspec.checkpoint.draft import load_draft
from deepspec.checkpoint.foreign import is_foreign, public_config
from deepspec.errors import InputError
from deepspec.export.proof import draft_with, outputs
from deepspec.export.run import FORMS, read_source
from deepspec.specs import TargetId
from deepspec.store import Store
from tests.given.drafts.foreign import LAYERS, specforge, write_target
from tests.given.drafts.written import KINDS, write_draft
from tests.given.heard import Heard
from tests.given.published.brought import adopt

TARGET = TargetId(config="0" * 64, weights="1" * 64, tokenizer="2" * 64, template="3" * 64)
BROUGHT = [
    "eagle3",
    "eagle31",
    "eagle31_llama",
    "eagle3_llama",
    "eagle3_reduced",
    "peagle",
    "dspark",
    "dflash2",
    "xpress",
    "xpress_reduced",
]
"""Kinds of drafts that are brought in the form of speculators."""
ROUNDING = 2e-6


def brought(folder: Path, source: Any, tmp_path: Path) -> Any:
    """Publish a checkpoint as a draft and return it as it is read again."""
    store, target = Store(tmp_path / "store"), write_target(tmp_path / "target", source)
    ref = adopt(str(folder), target, TARGET, store, tmp_path / "scratch", Heard())
    assert adopt(str(folder), target, TARGET, store, tmp_path / "scratch", Heard()) == ref
    draft = open_artifact(store, ref, tmp_path / "scratch")
    assert "embedding 0" in lines(draft.counts)[0]
    return load_draft(draft.path("config.json").parent)


def same(found: Any, source: Any) -> None:
    wanted = outputs(draft_with(source.draft, source.tensors))
    for name, tensor in outputs(found).items():
        torch.testing.assert_close(tensor, wanted[name], atol=ROUNDING, rtol=1e-5)


@pytest.mark.parametrize(
    ("left", "causal", "form"),
    [({}, False, "slot"), ({"window_form"}, False, "anchor"), ({"window_form"}, True, "causal")],
)
def test_a_window_of_speculators_is_that_librarys_unless_told_otherwise(
    left: dict[str, Any] | set[str], causal: bool, form: str, tmp_path: Path
) -> None:
    source = read_source(write_draft(tmp_path / "draft", "xpress_reduced"), "ORG/target", None)
    (tmp_path / "form").mkdir()
    FORMS["speculators"].write(source, tmp_path / "form")
    told = json.loads((tmp_path / "form" / "config.json").read_text())
    assert (told["num_jacobi_passes"], told["sliding_window_non_causal"]) == (6, True)
    told = {key: value for key, value in told.items() if key not in left} | {"sliding_window_non_causal": not causal}
    config = read_draft_config(public_config(told, LAYERS))
    assert (config.window_form, config.window) == (form, 64)


@pytest.mark.parametrize("kind", BROUGHT)
def test_a_draft_of_speculators_is_brought_as_it_is(kind: str, tmp_path: Path) -> None:
    assert kind in KINDS
    source = read_source(write_draft(tmp_path / "draft", kind), "ORG/target", None)
    (tmp_path / "form").mkdir()
    FORMS["speculators"].write(source, tmp_path / "form")
    found = brought(tmp_path / "form", source, tmp_path)
    assert (found.config.algorithm, found.config.norms) == (source.draft.algorithm, source.draft.norms)
    assert found.config.target_layer_ids == source.draft.target_layer_ids
    same(found, source)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("eagle3_llama", {}), ("eagle3_reduced", {"norm_output": True}),
        ("eagle31_llama", {"fc_norm": True}),
    ],
)  # fmt: skip
def test_a_draft_of_specforge_is_brought_as_it_is(kind: str, told: dict[str, bool], tmp_path: Path) -> None:
    """Its `norm_output` is the norm before the head, which every draft has: not the norm of what a step hands on."""
    source = read_source(write_draft(tmp_path / "draft", kind), "ORG/target", None)
    if told.get("fc_norm"):
        config = json.loads((tmp_path / "draft" / "config.json").read_text())
        del config["norm_output"]
        (tmp_path / "draft" / "config.json").write_text(json.dumps(config))
        source = read_source(tmp_path / "draft", "ORG/target", None)
    found = brought(specforge(source, tmp_path / "form", **told), source, tmp_path)
    assert found.config.target_layer_ids == (1, 3, 5)
    assert not found.config.norms.norm_output
    assert found.config.norms.fc_norm is bool(told.get("fc_norm"))
    same(found, source)


def test_specforge_captures_three_layers_where_nothing_is_said(tmp_path: Path) -> None:
    source = read_source(write_draft(tmp_path / "draft", "eagle3_llama"), "ORG/target", None)
    config = json.loads((specforge(source, tmp_path / "form", eagle_config=None) / "config.json").read_text())
    assert public_config(config, 36)["target_layer_ids"] == [1, 17, 32]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"norm_output": False}, "norm_output: false"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state: false"),
        ({"eagle_config": {"fuse": "sum"}}, "eagle_config has fuse: 'sum'"),
        ({"target_hidden_size": 64}, "target_hidden_size: 64"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: true"),
        ({"qk_norm": True}, "config.json has qk_norm: True, a variant that is not read"),
        ({"attention_bias": True}, "attention_bias: True"),
    ],
)
def test_a_variant_of_specforge_is_refused_by_its_key(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    source = read_source(write_draft(tmp_path / "draft", "eagle3_llama"), "ORG/target", None)
    config = json.loads((specforge(source, tmp_path / "form", **changes) / "config.json").read_text())
    with pytest.raises(InputError, match=told):
        read_draft_config(public_config(config, LAYERS))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"speculators_model_type": "medusa"}, "unknown speculators_model_type 'medusa'; known: "),
        ({"has_adapter": 3}, "config.json has has_adapter: 3, a variant that is not read"),
        ({"norm_before_fc": True, "fc_norm": True}, "norm_before_fc and fc_norm are both set"),
        ({"target_hidden_size": 64}, "target_hidden_size: 64"),
        ({"speculators_config": {}}, "config.json lacks 'proposal_methods'"),
        ({"layer": {"attention_bias": True}}, "attention_bias: True"),
        ({"layer": {"num_experts": 4}}, "transformer_layer_config has num_experts: 4, a variant that is not read"),
        ({"layer": {"model_type": "gemma3_text"}}, "unknown model_type of transformer_layer_config 'gemma3_text'"),
    ],
)
def test_a_variant_of_speculators_is_refused_by_its_key(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    source = read_source(write_draft(tmp_path / "draft", "eagle31"), "ORG/target", None)
    (tmp_path / "form").mkdir()
    FORMS["speculators"].write(source, tmp_path / "form")
    config = json.loads((tmp_path / "form" / "config.json").read_text())
    config["transformer_layer_config"] |= changes.pop("layer", {})
    assert is_foreign(config)
    with pytest.raises(InputError, match=told):
        read_draft_config(public_config({**config, **changes}, LAYERS))


def test_our_own_form_is_left_as_it_is(tmp_path: Path) -> None:
    config = json.loads((write_draft(tmp_path / "draft", "eagle3") / "config.json").read_text())
    assert not is_foreign(config)
    assert public_config(config, LAYERS) == config
    assert load_file(tmp_path / "draft" / "model.safetensors")
