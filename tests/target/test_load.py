"""The target in memory and the states captured from it."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model

from deepspec.errors import CaptureError, TargetError
from deepspec.target.capture import capture
from deepspec.target.layers import check_layers, default_layers
from deepspec.target.load import Target, load_target
from tests.target.tiny import END_OF_TEXT, HIDDEN, IM_END, LAYERS, VOCAB, write_target


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return load_target(write_target(tmp_path_factory.mktemp("target")))


def test_sizes_and_stop_tokens_come_from_the_checkpoint(target: Target):
    assert (target.num_layers, target.hidden_size, target.vocab_size) == (LAYERS, HIDDEN, VOCAB)
    assert target.stop_ids == {IM_END, END_OF_TEXT}


def test_captured_layers_are_the_models_own_hidden_states(target: Target):
    ids = torch.arange(20)[None]
    hidden, last = target.capture(ids, [-1, 0, 3])
    expected = target.model(input_ids=ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(hidden, torch.cat([expected[0], expected[1], expected[4]], dim=-1), rtol=0, atol=0)
    torch.testing.assert_close(last, expected[-1], rtol=0, atol=0)


def test_states_after_the_final_norm_give_the_models_logits(target: Target):
    ids = torch.arange(20)[None]
    _, last = target.capture(ids, [0])
    torch.testing.assert_close(last @ target.head_weight.T, target.model(input_ids=ids).logits)


def test_padding_on_the_right_changes_no_value(target: Target):
    ids = torch.arange(12)[None]
    alone, last_alone = target.capture(ids, [1, 3])
    batch = torch.randint(VOCAB, (16, 40), generator=torch.Generator().manual_seed(0))
    batch[5, :12] = ids
    together, last_together = target.capture(batch, [1, 3])
    torch.testing.assert_close(together[5, :12], alone[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last_together[5, :12], last_alone[0], rtol=1e-5, atol=1e-5)


def test_a_target_spread_over_devices_gives_the_same_states(target: Target, tmp_path: Path):
    """Here layers 2 and 3 lie on disk and come when they are needed, through the same hooks as between devices."""
    ids = torch.arange(20)[None]
    alone = target.capture(ids, [-1, 1, 3])
    spread = load_target(target.folder)
    places = {f"model.layers.{n}": "disk" if n in (2, 3) else "cpu" for n in range(LAYERS)}
    rest = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    dispatch_model(spread.model, {**rest, **places}, main_device="cpu", offload_dir=str(tmp_path))
    assert spread.decoder.layers[2].mlp.up_proj.weight.is_meta  # type: ignore[index, union-attr]
    for one, other in zip(alone, spread.capture(ids, [-1, 1, 3]), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_quantisation_is_what_the_checkpoint_says(target: Target):
    assert target.quantization is None
    quantised = load_target(target.folder)
    quantised.model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert quantised.quantization == "gptq"


def test_no_hook_stays_behind(target: Target):
    def hooks() -> list[int]:
        modules = target.decoder.layers.modules()  # type: ignore[union-attr, operator]
        return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]

    before = hooks()
    with pytest.raises(IndexError):
        capture(target.reading, torch.tensor([[VOCAB + 5]]), [-1, 1])
    assert hooks() == before


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_a_token_outside_the_embedding_never_reaches_the_target(target: Target, token: int):
    with pytest.raises(CaptureError, match=f"token id {token} is outside the embedding of {VOCAB} rows"):
        target.capture(torch.tensor([[3, token]]), [1])


@pytest.mark.parametrize(
    ("num_layers", "expected"),
    [(30, (1, 7, 14, 20, 26)), (18, (1, 4, 8, 11, 14)), (7, (1, 2, 3)), (3, (1,)), (2, (0,)), (1, (-1,))],
)
def test_default_layers_are_spread_evenly_and_never_the_last(num_layers: int, expected: tuple[int, ...]):
    assert default_layers(num_layers) == expected


@pytest.mark.parametrize("layers", [[], [1, 1], [3, 1], [-2], [0, 5]])
def test_layers_that_cannot_be_captured_are_refused(layers: list[int]):
    with pytest.raises(TargetError, match="wanted ascending ids from -1"):
        check_layers(layers, num_layers=6)


def test_folder_that_is_no_model_is_a_one_line_error(tmp_path: Path):
    with pytest.raises(TargetError, match="cannot load it"):
        load_target(tmp_path)


def test_weights_that_are_not_there_are_never_made_up(tmp_path: Path):
    """A Llama whose config says Qwen3 has no norms of queries and keys: transformers would begin them anew."""
    folder = write_target(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]})
    )
    with pytest.raises(TargetError, match=r"its files lack model\.layers\.0\.self_attn\.k_norm\.weight, .* and 7 more"):
        load_target(folder)
