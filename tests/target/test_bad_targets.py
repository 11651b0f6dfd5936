"""What is no target, or no whole one, is refused in one line before anything is spent; what is only odd is told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepspec.checkpoint.ends import read_ends
from deepspec.errors import TargetError
from deepspec.families import read, read_folder
from deepspec.target.heads import read_target
from deepspec.target.load import load_target
from deepspec.target.tokens import check_vocabulary, read_tokenizer
from tests.given.targets import zoo, zoo_images
from tests.given.targets.tiny import VOCAB, tokenizer, write_target

SIZES = {"vocab_size": 264, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("model_type", ["bart", "marian", "pegasus", "trocr_of_its_own"])
def test_an_encoder_decoder_is_refused_whether_its_config_says_so_or_its_class(model_type: str) -> None:
    with pytest.raises(TargetError, match=r"encoder-decoder|no causal language model of the installed transformers"):
        read({"model_type": model_type, **SIZES})


def test_an_encoder_decoder_that_can_be_loaded_as_a_decoder_is_named() -> None:
    with pytest.raises(TargetError, match="'bart' is an encoder-decoder; wanted a decoder-only language model"):
        read({"model_type": "bart", **SIZES})


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [
        ("bert", "BertForMaskedLM"),
        ("roberta", "RobertaModel"),
        ("llama", "LlamaForSequenceClassification"),
        ("llama", "LlamaModel"),
        ("qwen2", "Qwen2ForRewardModel"),
        ("qwen3", "Qwen3ForTokenClassification"),
        ("gpt2", "GPT2Model"),
    ],
)
def test_a_model_that_was_saved_without_a_head_is_refused(model_type: str, architecture: str, tmp_path: Path) -> None:
    config = {"model_type": model_type, "architectures": [architecture], **SIZES}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TargetError, match=f"'{model_type}' was saved as {architecture}: it has no head"):
        read_folder(tmp_path)


def test_a_classifier_whose_head_would_be_tied_is_not_loaded_as_a_language_model(tmp_path: Path) -> None:
    folder = write_target(tmp_path)
    edit(folder, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(TargetError, match="was saved as LlamaForSequenceClassification"):
        load_target(folder)


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "GPT2ForCausalLM", "OwnModelForCausalLM"])
def test_a_language_model_of_any_name_has_one(architecture: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": [architecture], **SIZES}))
    assert read_folder(tmp_path).vocab_size == 264


def test_files_without_a_head_are_refused_unless_the_config_ties_it(tmp_path: Path) -> None:
    folder = write_target(tmp_path)
    assert read_target(folder).ends is not None
    edit(folder, tie_word_embeddings=False)
    with pytest.raises(TargetError, match=r"its files hold no head \(…lm_head\.weight\), and its config does not tie"):
        read_target(folder)


def test_a_text_part_may_leave_it_to_the_whole_to_tie_them(tmp_path: Path) -> None:
    zoo_images.build("mistral3").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["tie_word_embeddings"] is False
    assert read_target(tmp_path).ends is not None


def test_of_a_family_too_what_a_fine_tune_untied_is_read_as_two(tmp_path: Path) -> None:
    folder = write_target(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1.0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    target, (embedding, head, _) = load_target(folder), read_ends(folder)
    assert not torch.equal(embedding, head)
    torch.testing.assert_close(target.head_weight, head)
    torch.testing.assert_close(target.embed_weight, embedding)


def test_a_bias_of_the_head_is_found_in_the_files_and_one_of_zeros_is_none(tmp_path: Path) -> None:
    model = zoo.build("phi")
    model.save_pretrained(tmp_path)
    assert read_target(tmp_path).shape.head_bias
    torch.testing.assert_close(read_ends(tmp_path).bias, model.lm_head.bias.detach())
    torch.nn.init.zeros_(model.lm_head.bias)
    model.save_pretrained(tmp_path)
    assert not read_target(tmp_path).shape.head_bias
    assert read_ends(tmp_path).bias is None


def test_of_a_family_a_bias_of_the_head_is_refused_by_its_name_before_the_weights_are_loaded(tmp_path: Path) -> None:
    folder = write_target(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.bias"] = torch.ones(VOCAB)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(TargetError, match=r"lm_head\.bias: a llama head has no bias; is its config its own\?"):
        read_target(folder)


def test_a_vocabulary_that_is_padded_beyond_the_tokenizer_is_told() -> None:
    assert check_vocabulary(tokenizer(), VOCAB + 40, "tiny") == "260 tokens, 304 rows in the embedding"


def test_a_tokenizer_that_knows_more_than_the_embedding_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    folder = write_target(tmp_path)
    larger = tokenizer()
    larger.add_tokens([f"<{number}>" for number in range(9)])
    larger.save_pretrained(folder)
    with pytest.raises(TargetError, match="the tokenizer knows 269 tokens, the embedding has 264 rows"):
        check_vocabulary(read_tokenizer(folder), read_target(folder).rows, str(folder))


def test_code_of_its_own_is_named_and_never_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "modeling_own.Own"}, **SIZES}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TargetError, match=r"'own' needs code of its own \(trust_remote_code\), which is never run"):
        read_target(tmp_path)
    with pytest.raises(TargetError):
        load_target(tmp_path)
    assert not ran.exists()
