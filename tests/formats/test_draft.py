"""Drafts on disk: written and read again, in every shape; bad ones are refused by name."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deepspec.checkpoint import options
from deepspec.checkpoint.checks import check_mask_token, check_target
from deepspec.checkpoint.config import read_draft_config, write_draft_config
from deepspec.checkpoint.draft import adopt_target, choose_vocabulary, describe, load_config, load_draft, save_draft
from deepspec.checkpoint.files import checkpoint_folder
from deepspec.checkpoint.new import new_draft_config
from deepspec.errors import CheckpointError, SpecError
from deepspec.families import read
from deepspec.formats.recipe import TRAITS, AlgorithmName, DraftRecipe, Objective
from deepspec.models.config import WindowForm
from deepspec.models.draft import build_draft
from deepspec.plan.rules.published import apart
from tests.given import golden
from tests.given.drafts.learning import HEADS, LAYERS, MASK, SIZE, TARGETS, VOCAB, tiny
from tests.given.some import some
from tests.given.targets.tiny import IM_END, IM_START, tokenizer

SHAPES = [
    *({"algorithm": "dspark", **heads} for heads in HEADS.values()),
    {"algorithm": "dflash"},
    {"algorithm": "dflash", "layout": "fill_in"},
    {"algorithm": "dflash2"},
    {"algorithm": "dflash2", "layout": "shift", "conv_kernel_size": 3},
    {"algorithm": "xpress"},
    {"algorithm": "xpress", "layout": "shift", "xpress_mlp_ratio": 3, "draft_vocab_size": 8},
    {"algorithm": "eagle3"},
    {"algorithm": "eagle3", "norms": "eagle3.1"},
    {"algorithm": "peagle"},
    {"algorithm": "peagle", "num_layers": 3, "train_embedding": True},
    *({"algorithm": algorithm, "draft_vocab_size": 8} for algorithm in ("dspark", "dflash", "eagle3")),
    *({"algorithm": "dspark", "target": target} for target in TARGETS),
    *({"algorithm": "eagle3", "target": target, "shape": "target"} for target in ("qwen3", "gemma4", "llama")),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_draft_written_is_read_again(shape: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(**shape)
    if model.config.reduced_vocabulary:
        choose_vocabulary(model, torch.arange(float(VOCAB)))
    save_draft(model, tmp_path)
    again = load_draft(tmp_path)
    for name in ("block", "algorithm", "embedding_scale", "logit_softcap", "block_size", "mask_token_id", "markov_head",
                 "markov_rank", "confidence_head", "confidence_with_markov", "style", "target_layer_ids",
                 "layout", "norms", "conv_kernel_size", "conv_group_size", "selector_rank",
                 "selector_top_k", "xpress_rank", "xpress_mlp_ratio", "window_form"):  # fmt: skip
        assert getattr(again.config, name) == getattr(model.config, name), name
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert not again.lm_head.weight.requires_grad
    assert describe(tmp_path)[0] == {"what": "algorithm", "value": model.config.algorithm}


GOLDEN = golden.cases("train", "draft/config.json") + golden.cases("eval", "draft/config.json")


@pytest.mark.parametrize("case", GOLDEN)
def test_public_draft_survives_without_loss(case: Path, tmp_path: Path) -> None:
    config = json.loads((case / "draft/config.json").read_text())
    save_draft(load_draft(case / "draft", getattr(torch, config["dtype"])), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == config
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(case / "draft/model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_draft(tiny(), tmp_path)
    return tmp_path


def _change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "gone"}))


BAD_CONFIGS = [
    ({"architectures": ["LlamaForCausalLM"]}, "is no draft in DeepSpec's form"),
    ({"target_layer_ids": [1, 5]}, "include the last layer, 5"),
    ({"target_layer_ids": [1, 9]}, "9 is not in −1 … 4"),
    ({"target_layer_ids": [1, -2]}, "-2 is not in −1 … 4"),
    ({"target_layer_ids": [1, 1]}, "one or more different layers"),
    ({"target_layer_ids": "gone"}, "no 'target_layer_ids'"),
    ({"mask_token_id": 40}, "mask_token_id 40 is not in the vocabulary of 40"),
    ({"markov_head_type": "transformer"}, "markov_head_type 'transformer' is unknown"),
    ({"attention_bias": True}, "attention_bias"),
    ({"layer_types": ["linear_attention"]}, "draft blocks attend in full or in a sliding window"),
    ({"layer_types": ["sliding_attention"] * 7}, "layer_types names 7 layers"),
    ({"layer_types": ["sliding_attention"] * 2, "num_hidden_layers": 2, "sliding_window": None}, "no 'sliding_window'"),
    ({"layer_types": ["sliding_attention"] * 2, "num_hidden_layers": 2, "sliding_window": 2}, "is shorter than the"),
    ({"intermediate_size": 25}, "asks for"),
    ({"num_hidden_layers": 1}, "which config.json does not ask for"),
    ({"num_hidden_layers": 3}, "lack layers.2"),
    ({"block_size": 0}, "block_size or ttt_length is 0, wanted at least 1"),
    ({"block_size": "7"}, "block_size is '7' in config.json, wanted a whole number"),
    ({"markov_rank": -4}, "markov_rank is -4"),
    ({"target_layer_ids": "1, 3"}, "target_layer_ids is '1, 3' in config.json, wanted a list"),
    ({"target_layer_ids": [1, 2.5]}, "one of target_layer_ids is 2.5"),
    ({"hidden_size": "wide"}, "a value of a wrong type"),
    ({"vocab_size": 41}, "asks for"),
    ({"architectures": 7}, "architectures is 7 in config.json, wanted a list"),
    ({"layer_types": True}, "layer_types is True in config.json, wanted a list"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_CONFIGS)
def test_bad_config_is_refused(saved: Path, changes: dict[str, Any], message: str) -> None:
    _change_config(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_draft(saved)


def test_minus_one_is_the_embedding(saved: Path) -> None:
    _change_config(saved, target_layer_ids=[-1, 3])
    assert load_config(saved).target_layer_ids == (-1, 3)


def test_weights_that_are_not_finite_are_refused(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensors["fc.weight"][0, 0] = float("nan")
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"fc\.weight hold NaN"):
        load_draft(saved)


def test_truncated_and_missing_files_are_refused(saved: Path) -> None:
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match=r"is cut off: .* bytes of tensors, its header says"):
        load_draft(saved)
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        load_draft(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        load_draft(saved)


def shard(folder: Path) -> dict[str, Tensor]:
    """Split the weights into two files and their index, as large checkpoints lie on the hub."""
    tensors: dict[str, Tensor] = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    placed = {name: f"model-0000{1 + place % 2}-of-00002.safetensors" for place, name in enumerate(sorted(tensors))}
    for file in set(placed.values()):
        save_file({name: tensors[name] for name in tensors if placed[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return tensors


def test_weights_in_shards_are_read(saved: Path) -> None:
    tensors = shard(saved)
    loaded = load_draft(saved).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    (saved / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names 2 files, of which model-00002-of-00002.safetensors is not there"):
        load_draft(saved)
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"fc.weight": "../other"}}))
    with pytest.raises(CheckpointError, match="only plain names"):
        load_draft(saved)


def test_hub_id_is_found_in_the_local_cache(
    saved: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    home, commit = cache / "models--some--draft", "1" * 40
    shutil.copytree(saved, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    assert load_config(checkpoint_folder("some/draft")).algorithm == "dspark"
    assert checkpoint_folder(str(saved)) == saved
    refused = {
        "other/draft": "hub cannot be reached",
        "./nowhere": "no such folder",
        "": "no such folder",
        str(saved / "config.json"): "is a file; give its folder",
    }
    for name, message in refused.items():
        with pytest.raises(CheckpointError, match=message):
            checkpoint_folder(name)


def test_description_tells_whether_the_weights_are_all_there(saved: Path) -> None:
    rows = {row["what"]: row["value"] for row in describe(saved)}
    assert rows["weights"] == "model.safetensors: all there"
    assert rows["Markov head"] == "vanilla, rank 4"
    _change_config(saved, num_hidden_layers=3)
    rows = {row["what"]: row["value"] for row in describe(saved)}
    assert "lack layers.2" in rows["weights"]
    (saved / "model.safetensors").unlink()
    assert "not here" in {row["what"]: row["value"] for row in describe(saved)}["weights"]


def test_vocabulary_maps_that_disagree_are_refused(tmp_path: Path) -> None:
    model = tiny("eagle3", draft_vocab_size=8)
    choose_vocabulary(model, torch.arange(float(VOCAB)))
    model.t2d[0] = True
    save_draft(model, tmp_path)
    with pytest.raises(CheckpointError, match="d2t and t2d"):
        load_draft(tmp_path)


def test_draft_of_another_target_is_refused(saved: Path) -> None:
    config = load_config(saved)
    check_target(config, read(TARGETS["qwen3"]))
    with pytest.raises(CheckpointError, match="vocab_size 40, the target's is 41"):
        check_target(config, read({**TARGETS["qwen3"], "vocab_size": 41}))


MASKS = {
    259: "",  # the tokenizer's own mask token
    263: "",  # beyond its vocabulary
    64: "mask_token_id 64 is 'a', which text contains",
    IM_START: "is '<|im_start|>', which every conversation contains",
    IM_END: "is '<|im_end|>', which every conversation contains",
}


@pytest.mark.parametrize("mask", MASKS)
def test_mask_token_that_text_contains_is_refused(mask: int) -> None:
    config = replace(tiny().config, vocab_size=264, mask_token_id=mask)
    if not MASKS[mask]:
        check_mask_token(config, tokenizer())
        return
    with pytest.raises(CheckpointError, match=re.escape(MASKS[mask])):
        check_mask_token(config, tokenizer())


def test_embedding_of_another_size_is_refused() -> None:
    with pytest.raises(CheckpointError, match="the target's LM head is"):
        adopt_target(tiny(), torch.zeros(VOCAB, SIZE), torch.zeros(VOCAB, SIZE + 1))


def test_a_bias_of_the_head_is_the_targets_and_is_written_with_it(tmp_path: Path) -> None:
    plain = tiny(draft_vocab_size=8)
    assert "head_bias" not in write_draft_config(plain.config)
    model = build_draft(replace(plain.config, head_bias=True))
    weight, bias = torch.randn(VOCAB, SIZE), torch.arange(float(VOCAB))
    with pytest.raises(CheckpointError, match="head has no bias, the draft's config says a bias"):
        adopt_target(model, weight, weight)
    with pytest.raises(CheckpointError, match="head has a bias, the draft's config says no bias"):
        adopt_target(plain, weight, weight, bias)
    choose_vocabulary(model, torch.arange(float(VOCAB)))
    adopt_target(model, weight, weight, bias, keep_head=True)
    assert model.lm_head.bias.tolist() == list(range(VOCAB - 8, VOCAB))
    assert torch.equal(some(model.target_head_bias), bias)
    assert not model.lm_head.bias.requires_grad
    save_draft(model, tmp_path)
    again = load_draft(tmp_path)
    assert again.config.head_bias
    assert torch.equal(again.lm_head.bias, model.lm_head.bias)


def test_recipe_that_contradicts_itself_is_refused() -> None:
    recipe = DraftRecipe(algorithm="eagle3", num_layers=2)
    with pytest.raises(SpecError, match="an eagle3 draft has one"):
        new_draft_config(read(TARGETS["qwen3"]), recipe, LAYERS, MASK, Objective())


def test_shape_that_no_draft_has_is_refused() -> None:
    with pytest.raises(SpecError, match="no draft has the shape of a gemma3 block; use shape: qwen3"):
        tiny(target="gemma3", shape="target")


def test_foreign_checkpoint_is_described(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TARGETS["llama"]))
    rows = {row["what"]: row["value"] for row in describe(tmp_path)}
    assert rows["model_type"] == "llama"
    assert "is no draft in DeepSpec's form" in rows["why it is no draft in DeepSpec's form"]


@pytest.mark.parametrize(
    ("recipe", "objective", "message"),
    [
        ({"algorithm": "dflash", "selector_rank": 8}, {}, "selector_rank 8: a dflash draft has none"),
        ({"algorithm": "dflash2", "xpress_rank": 8}, {}, "xpress_rank 8: a dflash2 draft has none"),
        ({"algorithm": "xpress", "selector_rank": 8}, {}, "selector_rank 8: an xpress draft has none"),
        ({"algorithm": "dflash"}, {"base_anchor": 1.0}, "base_anchor 1.0: a dflash draft has no refiner"),
        ({"algorithm": "eagle3", "layout": "fill_in"}, {}, "layout fill_in: an eagle3 draft has no blocks"),
        ({"algorithm": "dspark", "norms": "eagle3.1"}, {}, "norms eagle3.1: a dspark draft has none of these"),
        ({"algorithm": "peagle", "norms": "eagle3.1"}, {}, "norms eagle3.1: a peagle draft has none of these"),
        ({"algorithm": "peagle", "layout": "shift"}, {}, "layout shift: a peagle draft has no blocks"),
        (
            {"algorithm": "eagle3", "train_embedding": True},
            {},
            "train_embedding True: an eagle3 draft keeps",
        ),
        ({"algorithm": "eagle3"}, {"slot_weights": "dpace"}, "slot_weights dpace: an eagle3 draft has no slots"),
        ({"algorithm": "dspark"}, {"ttt_length": 4}, "ttt_length 4: a dspark draft is trained in one step"),
        (
            {"algorithm": "eagle3"},
            {"depth_ratio": 0.5},
            "depth_ratio 0.5: an eagle3 draft has no chains",
        ),
        ({"algorithm": "dflash", "markov_head": "gated"}, {}, "markov_head gated: a dflash draft has none"),
        ({"algorithm": "dflash", "markov_rank": 8}, {}, "markov_rank 8: a dflash draft has no Markov head"),
        ({"algorithm": "eagle3", "block_size": 4}, {}, "block_size 4: an eagle3 draft proposes token by token, train"),
        ({"algorithm": "mtp", "block_size": 4}, {}, "block_size 4: an mtp draft proposes token by token, train"),
        ({"algorithm": "eagle3", "num_layers": 2}, {}, "num_layers 2: an eagle3 draft has one"),
        ({"algorithm": "eagle3"}, {"num_anchors": 8}, "num_anchors 8: an eagle3 draft is trained at every position"),
        (
            {"algorithm": "dflash2", "draft_vocab_size": 20},
            {},
            "draft_vocab_size 20: a dflash2 draft knows the whole vocabulary only",
        ),
    ],
)
def test_what_an_algorithm_has_not_is_refused(recipe: dict[str, Any], objective: dict[str, Any], message: str) -> None:
    def asked() -> None:
        options.check_objective(recipe["algorithm"], Objective(**objective))
        new_draft_config(read(TARGETS["qwen3"]), DraftRecipe(**recipe), LAYERS, MASK, Objective())

    with pytest.raises(SpecError, match=message):
        asked()


def test_every_option_is_one_that_all_algorithms_have_or_says_which_have_it() -> None:
    every_draft = {"algorithm", "window", "window_layers"}
    every_loss = {"convention", "cross_entropy", "total_variation", "soft_cross_entropy", "forward_kl"}
    every_loss |= {"reverse_kl", "jensen_shannon", "log_acceptance", "lk_hybrid", "lk_sharpness"}
    assert set(DraftRecipe.model_fields) == every_draft | set(options.RECIPE)
    assert set(Objective.model_fields) == every_loss | set(options.OBJECTIVE)
    for name, (has, _) in {**options.RECIPE, **options.OBJECTIVE}.items():
        assert any(has(traits) for traits in TRAITS.values()), name


@pytest.mark.parametrize("algorithm", ["dflash2", "mtp"])
def test_a_checkpoint_of_a_reduced_vocabulary_that_its_kind_has_not_is_refused(algorithm: AlgorithmName) -> None:
    config = write_draft_config(tiny(algorithm).config)
    with pytest.raises(CheckpointError, match=f"draft_vocab_size 20: {algorithm}.* the whole vocabulary only"):
        read_draft_config({**config, "draft_vocab_size": 20})


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"conv_group_size": 5}, "conv_group_size 5 does not divide the hidden size 16"),
        ({"selector_top_k": 41}, r"selector_top_k 41 is not in 2 … 40"),
        ({"block_size": 1}, "block_size 1 proposes nothing"),
        ({"target": "gemma4", "shape": "target"}, "a gemma4 block has norms behind its sublayers"),
    ],
)
def test_a_dflash2_that_cannot_be_is_refused(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        tiny("dflash2", **recipe)


def test_a_window_is_written_as_the_type_of_its_layers_and_read_again(tmp_path: Path) -> None:
    model = tiny("dspark", num_layers=3, window=64, window_layers=(0, 2))
    save_draft(model, tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    assert told["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]
    assert (told["sliding_window"], told["use_sliding_window"]) == (64, True)
    assert load_draft(tmp_path).config.windows == (64, None, 64)
    rows = {row["what"]: row["value"] for row in describe(tmp_path)}
    assert rows["window"] == "64, layers [0, 2]"


def test_drafts_of_other_parts_are_no_beginning_of_each_other() -> None:
    """Their weights have other shapes; a refiner mixes the slots of a block, so theirs hang on that, too."""
    old = tiny("xpress").config
    assert apart(old, replace(old, xpress_rank=5, block_size=3)) == [
        "xpress_rank is 4, wanted 5", "block_size is 4, wanted 3",
    ]  # fmt: skip
    other = tiny("dflash2").config
    assert apart(other, replace(other, block_size=3)) == []
    assert apart(other, replace(other, selector_rank=2)) == ["selector_rank is 3, wanted 2"]


@pytest.mark.parametrize("form", ["anchor", "causal"])
def test_a_window_of_another_form_is_told_and_may_be_shorter_than_a_block(form: WindowForm, tmp_path: Path) -> None:
    model = tiny("xpress", window=64, window_layers=(1,))
    config = replace(model.config, window=3, window_form=form)
    again = read_draft_config(write_draft_config(config))
    save_draft(build_draft(config), tmp_path)
    rows = {row["what"]: row["value"] for row in describe(tmp_path)}
    assert rows["window"] == f"3, layers [1], counted from the anchor ({form})"
    assert rows["xpress_rank"] == "4"
    assert (again.window_form, again.windows, again.reaches) == (form, (None, 3), (None, 4))
    with pytest.raises(CheckpointError, match="window_form 'near' is unknown; known: slot, anchor, causal"):
        read_draft_config({**write_draft_config(config), "window_form": "near"})


def test_a_draft_without_a_window_says_nothing_new(tmp_path: Path) -> None:
    """A target's own window, of layers that the draft has not, is no window of the draft."""
    config = {**write_draft_config(tiny("dspark").config), "sliding_window": 16}
    assert read_draft_config(config).windows == (None,) * config["num_hidden_layers"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"window": 1 << 20}, "window 1048576 is larger than the context: the target reads"),
        ({"window": 64, "window_layers": (1, 5)}, r"window_layers \[5\]: the draft has 5 layers, from 0 to 4"),
    ],
)
def test_a_window_that_cannot_be_is_refused(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        new_draft_config(read(TARGETS["qwen3"]), DraftRecipe(**recipe), LAYERS, MASK, Objective())


def test_layers_of_a_window_without_a_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"window_layers \[1\] have no size; set window"):
        DraftRecipe(window_layers=(1,))
