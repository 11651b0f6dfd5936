"""The speculators library, where it is installed, loads our form of its drafts and computes our logits with it.

It wants other versions than ours: `make soak` gives it an environment of its own, beside ours.
"""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from deepspec.export.proof import draft_with
from deepspec.export.run import FORMS, read_source
from deepspec.forms.form import FormSource
from deepspec.parity.forms import training_form
from tests.given.drafts.written import LLAMA, write_draft

speculators = pytest.importorskip("speculators", reason="pip install speculators to load this form with it")

KINDS = ["dspark", "dspark_gated", "dspark_rnn", "dflash", "eagle3", "eagle3_llama"]
PARALLEL = ["peagle", "xpress"]
"""Their forward passes draw entries of their own, or return a loss alone: tests/parity replays them."""
LENGTH = 128
"""Blocks of its masks are so long, and not padded where it decodes step by step."""


def exported(kind: str, folder: Path) -> FormSource:
    """Write a draft's form and the target that it names, and return what was written."""
    target = LlamaForCausalLM(LlamaConfig(**{key: value for key, value in LLAMA.items() if key != "model_type"}))
    target.save_pretrained(folder / "target")
    source = read_source(write_draft(folder / "draft", kind), str(folder / "target"), folder / "target")
    (folder / "form").mkdir()
    FORMS["speculators"].write(source, folder / "form")
    weights = {"model.embed_tokens.weight": "embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
    state = target.state_dict() | {theirs: source.tensors[ours] for theirs, ours in weights.items()}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "target" / "model.safetensors")
    return source


@pytest.mark.parametrize("kind", [*KINDS, *PARALLEL])
def test_speculators_loads_every_tensor(kind: str, tmp_path: Path) -> None:
    source = exported(kind, tmp_path)
    model = speculators.SpeculatorModel.from_pretrained(str(tmp_path / "form"))
    found = model.state_dict()
    for name, tensor in source.tensors.items():
        torch.testing.assert_close(found[name], tensor)
    layers = [layer + 1 for layer in source.draft.target_layer_ids]
    told = model.config.to_dict()
    assert told.get("aux_hidden_state_layer_ids", told.get("eagle_aux_hidden_state_layer_ids")) == layers


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_pass_of_speculators_gives_our_logits(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = exported(kind, tmp_path)
    model = speculators.SpeculatorModel.from_pretrained(str(tmp_path / "form")).eval()
    torch.manual_seed(5)
    ids = torch.randint(47, (LENGTH,))
    hidden = torch.randn(LENGTH, source.draft.num_captured * source.draft.block.hidden_size)
    wanted, anchors = training_form(draft_with(source.draft, source.tensors), ids, hidden)
    torch.testing.assert_close(theirs(model, ids, hidden, anchors, monkeypatch), wanted, rtol=1e-4, atol=1e-4)


def theirs(model: Any, ids: Tensor, hidden: Tensor, anchors: list[int], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Return the logits `(N, K, V)` behind anchors that the library's forward pass hands to its loss."""
    seen: list[torch.Tensor] = []

    def remember(logits: Tensor, *_: object, **__: object) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(logits[0])
        return torch.zeros(()), {}

    monkeypatch.setattr(importlib.import_module(type(model).__module__), "compute_metrics", remember)
    told = {"document_ids": torch.zeros_like(ids)[None], "hidden_states": hidden[None]}
    last = torch.zeros(1, len(ids), LLAMA["hidden_size"])
    size = model.config.speculators_config.proposal_methods[0].speculative_tokens
    with torch.no_grad():
        if type(model).__name__.startswith("Eagle3"):
            shifted = ids.roll(-1)[None]  # the token after each position
            model(input_ids=shifted, verifier_last_hidden_states=last, ttt_steps=size, **told)
            return torch.stack([step[[anchor - 1 for anchor in anchors]] for step in seen], 1)
        mask = torch.zeros_like(ids).index_fill_(0, torch.tensor(anchors), 1)[None]
        known = {"loss_mask": mask, "max_anchors": len(anchors), "verifier_last_hidden_states": last}
        model(input_ids=ids[None], **known, **told)
    return seen[0].view(len(anchors), size, -1)
