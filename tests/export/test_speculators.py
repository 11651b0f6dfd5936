"""The speculators library, where it is installed, loads our form of its drafts with every tensor in place.

It wants other versions than ours: `make soak` gives it an environment of its own, beside ours.
"""

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from deepspec.export.run import FORMS, read_source
from tests.export.drafts import LLAMA, write_draft

speculators = pytest.importorskip("speculators", reason="pip install speculators to load this form with it")


@pytest.mark.parametrize("kind", ["dspark", "dspark_gated", "dspark_rnn", "dflash", "eagle3", "eagle3_llama"])
def test_speculators_loads_every_tensor(kind, tmp_path):
    target = LlamaForCausalLM(LlamaConfig(**{key: value for key, value in LLAMA.items() if key != "model_type"}))
    target.save_pretrained(tmp_path / "target")
    source = read_source(write_draft(tmp_path / "draft", kind), str(tmp_path / "target"), tmp_path / "target")
    (tmp_path / "form").mkdir()
    FORMS["speculators"].write(source, tmp_path / "form")
    weights = {"model.embed_tokens.weight": "embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
    state = target.state_dict() | {theirs: source.tensors[ours] for theirs, ours in weights.items()}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "target" / "model.safetensors")
    model = speculators.SpeculatorModel.from_pretrained(str(tmp_path / "form"))
    found = model.state_dict()
    for name, tensor in source.tensors.items():
        torch.testing.assert_close(found[name], tensor)
    layers = [layer + 1 for layer in source.draft.target_layer_ids]
    told = model.config.to_dict()
    assert told.get("aux_hidden_state_layer_ids", told.get("eagle_aux_hidden_state_layer_ids")) == layers
