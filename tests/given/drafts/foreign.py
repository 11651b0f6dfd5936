"""Drafts as other libraries write them, and their target."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.given.drafts.written import LLAMA

LAYERS: int = LLAMA["num_hidden_layers"]


def write_target(folder: Path, source: Any) -> Path:
    """Write a target whose embedding and head are those of a draft of the whole vocabulary."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    vectors = {"model.embed_tokens.weight": source.tensors["embed_tokens.weight"]}
    head = source.tensors["lm_head.weight"]
    vectors["lm_head.weight"] = head if len(head) == LLAMA["vocab_size"] else torch.zeros(48, 32)
    blocks = {f"model.layers.{layer}.input_layernorm.weight": torch.ones(32) for layer in range(LAYERS)}
    save_file(vectors | blocks, folder / "model.safetensors")
    return folder


def specforge(source: Any, folder: Path, **changes: Any) -> Path:
    """Write a draft as SpecForge does: `midlayer`, maps of the vocabulary always, the embedding kept."""
    folder.mkdir()
    kept = {key: value for key, value in LLAMA.items() if key not in ("architectures", "num_hidden_layers")}
    config = {
        **kept, "architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1, "pretraining_tp": 1,
        "draft_vocab_size": source.draft.draft_vocab_size, "tie_word_embeddings": False,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 5], "use_aux_hidden_state": True}, **changes,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    maps = {"d2t": torch.zeros(48, dtype=torch.int64), "t2d": torch.ones(48, dtype=torch.bool)}
    named = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in source.tensors.items()}
    save_file(maps | named, folder / "model.safetensors")
    return folder
