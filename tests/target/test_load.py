"""The target in memory and the states captured from it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from safetensors.torch import load_file, save_file

from deepspec.errors import CaptureError, TargetError
from deepspec.placement import Placement
from deepspec.target import identify
from deepspec.target.capture import capture
from deepspec.target.layers import check_layers, default_layers
from deepspec.target.load import Target, _sent, load_placed, load_target
from tests.given.targets.tiny import END_OF_TEXT, HIDDEN, IM_END, LAYERS, VOCAB, write_target


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return load_target(write_target(tmp_path_factory.mktemp("target")))


def test_sizes_and_stop_tokens_come_from_the_checkpoint(target: Target) -> None:
    assert (target.num_layers, target.hidden_size, target.vocab_size) == (LAYERS, HIDDEN, VOCAB)
    assert target.stop_ids == {IM_END, END_OF_TEXT}


def test_captured_layers_are_the_models_own_hidden_states(target: Target) -> None:
    ids = torch.arange(20)[None]
    hidden, last = target.capture(ids, [-1, 0, 3])
    expected = target.model(input_ids=ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(hidden, torch.cat([expected[0], expected[1], expected[4]], dim=-1), rtol=0, atol=0)
    torch.testing.assert_close(last, expected[-1], rtol=0, atol=0)


class Ids:
    """Tokens that say where they are sent, and how."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.told: list[object] = []

    def pin_memory(self) -> "Ids":
        self.told.append("pinned")
        return self

    def to(self, device: torch.device, **how: bool) -> "Ids":
        self.told.append((str(device), how))
        return self


def test_tokens_go_to_a_card_while_the_host_goes_on() -> None:
    for device, wanted in (
        ("cuda:1", ["pinned", ("cuda:1", {"non_blocking": True})]),
        ("cpu", [("cpu", {})]),
    ):
        ids: Any = Ids()
        _sent(ids, torch.device(device))
        assert ids.told == wanted


def test_states_after_the_final_norm_give_the_models_logits(target: Target) -> None:
    ids = torch.arange(20)[None]
    _, last = target.capture(ids, [0])
    torch.testing.assert_close(last @ target.head_weight.T, target.model(input_ids=ids).logits)


def test_padding_on_the_right_changes_no_value(target: Target) -> None:
    ids = torch.arange(12)[None]
    alone, last_alone = target.capture(ids, [1, 3])
    batch = torch.randint(VOCAB, (16, 40), generator=torch.Generator().manual_seed(0))
    batch[5, :12] = ids
    together, last_together = target.capture(batch, [1, 3])
    torch.testing.assert_close(together[5, :12], alone[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last_together[5, :12], last_alone[0], rtol=1e-5, atol=1e-5)


def test_a_target_spread_over_devices_gives_the_same_states(target: Target, tmp_path: Path) -> None:
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


def test_a_target_that_is_spread_when_it_is_loaded_gives_the_same_states(target: Target, tmp_path: Path) -> None:
    """As `--device spread` places it."""
    ids, identity = torch.arange(3, 20)[None], identify(target.folder)
    where = {identity.digest: str(target.folder)}
    spread = load_placed(identity, Placement(device="spread", locations=where, scratch=tmp_path), "float32")
    for one, other in zip(target.capture(ids, [1]), spread.capture(ids, [1]), strict=True):
        torch.testing.assert_close(one, other)


def rounded_to_fp8(folder: Path) -> None:
    """Store the linear layers of a target in FP8, in blocks of 32 with a scale each."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "_proj" in name]:
        weight = tensors[name]
        scale = weight.abs().max() / 448
        tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.full([-(-size // 32) for size in weight.shape], float(scale))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    quantised = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantised}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card for FP8 computes in it")
def test_a_checkpoint_in_fp8_is_read_without_a_card_for_it_and_says_so(tmp_path: Path) -> None:
    folder = write_target(tmp_path)
    plain, before = load_target(folder), identify(folder)
    ids = torch.arange(3, 20)[None]
    states, _ = plain.capture(ids, [1])
    rounded_to_fp8(folder)
    target = load_target(folder)
    assert target.quantization == "fp8 (blocks of 32 × 32, dynamic activations) dequantised"
    again, _ = target.capture(ids, [1])
    assert 0.0 < float((again - states).norm() / states.norm()) < 0.2
    found = identify(folder)
    assert (found.config != before.config, found.weights != before.weights) == (True, True)


def test_no_hook_stays_behind(target: Target) -> None:
    def hooks() -> list[int]:
        modules = target.decoder.layers.modules()  # type: ignore[union-attr]
        return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]

    before = hooks()
    with pytest.raises(IndexError):
        capture(target.reading, torch.tensor([[VOCAB + 5]]), [-1, 1])
    assert hooks() == before


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_a_token_outside_the_embedding_never_reaches_the_target(target: Target, token: int) -> None:
    with pytest.raises(CaptureError, match=f"token id {token} is outside the embedding of {VOCAB} rows"):
        target.capture(torch.tensor([[3, token]]), [1])


@pytest.mark.parametrize(
    ("num_layers", "expected"),
    [(30, (1, 7, 14, 20, 26)), (18, (1, 4, 8, 11, 14)), (7, (1, 2, 3)), (3, (1,)), (2, (0,)), (1, (-1,))],
)
def test_default_layers_are_spread_evenly_and_never_the_last(num_layers: int, expected: tuple[int, ...]) -> None:
    assert default_layers(num_layers) == expected


def test_the_state_behind_the_final_norm_is_one_past_the_last_layer(target: Target) -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    states, last = target.capture(ids, [0, LAYERS - 1, LAYERS])
    first, before, behind = states.chunk(3, dim=-1)
    assert torch.equal(behind, last)
    norm = target.decoder.norm
    assert callable(norm)
    torch.testing.assert_close(norm(before), behind)
    assert torch.equal(first, target.capture(ids, [0])[0])


def test_only_heads_of_a_target_read_its_last_states() -> None:
    check_layers([5], num_layers=6, last=True)
    check_layers([6], num_layers=6, last=True)
    for layers, last in (([5], False), ([6], False), ([7], True)):
        with pytest.raises(TargetError, match="wanted ascending ids from -1"):
            check_layers(layers, num_layers=6, last=last)


@pytest.mark.parametrize("layers", [[], [1, 1], [3, 1], [-2], [0, 5]])
def test_layers_that_cannot_be_captured_are_refused(layers: list[int]) -> None:
    with pytest.raises(TargetError, match="wanted ascending ids from -1"):
        check_layers(layers, num_layers=6)


def test_folder_that_is_no_model_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"config\.json does not exist; is its folder a checkpoint"):
        load_target(tmp_path)


def test_weights_that_are_not_there_are_never_made_up(tmp_path: Path) -> None:
    """A Llama whose config says Qwen3 has no norms of queries and keys: transformers would begin them anew."""
    folder = write_target(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]})
    )
    with pytest.raises(TargetError, match=r"its files lack model\.layers\.0\.self_attn\.k_norm\.weight, .* and 7 more"):
        load_target(folder)
