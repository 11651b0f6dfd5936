"""MTP heads in llama.cpp: a GGUF file of the target's architecture that holds no layer but theirs, beside the target.

llama.cpp's architecture of Qwen3.5 drafts with such a file (`--spec-type draft-mtp`), and hands heads the state behind
the target's final norm. Shape, rope, tokenizer, embedding, head and final norm are copied from the target's own GGUF
file, in the types that they have there; only the heads are ours.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
from torch import Tensor

from deepspec.checkpoint.config import HEAD_STYLES, KINDS
from deepspec.checkpoint.draft import BORROWED
from deepspec.families.shipped import STYLES
from deepspec.forms.form import FormSource, Json, Tensors, not_normed, without
from deepspec.forms.gguf_file import GgufFile, add_tensor, copy_field, copy_tensor, end_file, places, read_gguf
from deepspec.forms.gguf_rope import read_rope

ARCH = "qwen35"
"""Architecture that drafts with heads of a style that is read here."""
_STYLE = "qwen3_5"
_ENDS = ("token_embd.weight", "output_norm.weight", "output.weight")
"""Copied from the target; a tied one has no `output.weight`."""
_BLOCKS, _HEADS = f"{ARCH}.block_count", f"{ARCH}.nextn_predict_layers"
_PIECES = "split.count"
_BY_LAYER = ("attention.head_count", "attention.head_count_kv", "attention.recurrent_layers", "feed_forward_length")
"""What a file may tell for each layer: then it has no value for one more."""

_NAMES: Mapping[str, str] = {
    "fc": "nextn.eh_proj",
    "pre_fc_norm_embedding": "nextn.enorm",
    "pre_fc_norm_hidden": "nextn.hnorm",
    "norm": "nextn.shared_head_norm",
    "layers.0.input_layernorm": "attn_norm",
    "layers.0.post_attention_layernorm": "post_attention_norm",
    "layers.0.self_attn.q_proj": "attn_q",
    "layers.0.self_attn.k_proj": "attn_k",
    "layers.0.self_attn.v_proj": "attn_v",
    "layers.0.self_attn.o_proj": "attn_output",
    "layers.0.self_attn.q_norm": "attn_q_norm",
    "layers.0.self_attn.k_norm": "attn_k_norm",
    "layers.0.mlp.gate_proj": "ffn_gate",
    "layers.0.mlp.up_proj": "ffn_up",
    "layers.0.mlp.down_proj": "ffn_down",
}
"""Our name -> its name in the layer of the heads, the one behind the target's last; each with `.weight` behind it."""


def refuse_heads(source: FormSource, target: Path) -> str | None:
    """Return what llama.cpp has not of heads, or None.

    Args:
        source: heads that a target ships.
        target: its GGUF file.
    """
    draft = source.draft
    if draft.style != _STYLE:
        return f"mtp heads of a {draft.style} block; it drafts with those of {_STYLE}"
    if unread := not_normed(draft):
        return unread
    found = read_gguf(target, tensors=False)
    arch = found.value("general.architecture")
    if arch != ARCH:
        return f"mtp heads beside {target.name}, a GGUF file of architecture {arch}; it drafts with those of {ARCH}"
    return _refuse_file(found, target)


def _refuse_file(found: GgufFile, target: Path) -> str | None:
    """Return what a file lacks that heads have of it: all pieces but one, a tensor, or a value for one more layer."""
    if (pieces := _told(found, _PIECES) or 1) > 1:
        return (
            f"mtp heads beside {target.name}, one of {pieces} pieces, of which others hold what heads share with the "
            "target; merge them (llama-gguf-split --merge)"
        )
    placed = places(target)
    if lacking := [name for name in _ENDS[:2] if name not in placed]:
        return f"mtp heads beside {target.name}, which has no {lacking[0]}; name the target's whole file"
    listed = [key for key in _BY_LAYER if isinstance(_told(found, f"{ARCH}.{key}"), list)]
    if listed and _own_heads(found) != 1:
        return f"mtp heads beside {target.name}, which tells {listed[0]} of each layer and has none for them"
    return None


def _told(found: GgufFile, name: str) -> Any:
    field = found.fields.get(name)
    return None if field is None else field.value


def _own_heads(found: GgufFile) -> int:
    """Return how many of a target's layers are heads of its own."""
    return int(_told(found, _HEADS) or 0)


def write_heads(source: FormSource, target: Path, path: Path) -> list[str]:
    """Write heads beside a target's GGUF file, and return notes.

    Raises:
        CheckpointError: the target's file is not whole.
    """
    writer = gguf.GGUFWriter(path, arch=ARCH)
    writer.add_name(f"{source.target} {source.draft.algorithm}")
    found, placed = read_gguf(target, tensors=False), places(target)
    for name, field in found.fields.items():
        if name.startswith(("tokenizer.", f"{ARCH}.")) and name not in (_BLOCKS, _HEADS):
            copy_field(writer, name, field)
    layer = found.value(_BLOCKS) - _own_heads(found)
    writer.add_block_count(layer + 1)
    writer.add_uint32(_HEADS, 1)
    for name in _ENDS:
        if name in placed:
            copy_tensor(writer, target, name, placed[name])
    for name, tensor in _translated(without(dict(source.tensors), *BORROWED), layer):
        add_tensor(writer, name, tensor)
    end_file(writer)
    return ["serve with --spec-type draft-mtp; needs the target's own GGUF file"]


def _translated(tensors: Tensors, layer: int) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in sorted(tensors.items()):
        told = _NAMES[name.removesuffix(".weight")]
        yield f"blk.{layer}.{told}.weight", tensor.float() + 1 if tensor.ndim == 1 else tensor  # norms of 1 + weight


def read_written_heads(path: Path) -> tuple[Json, Tensors]:
    """Return the heads of a file, in public keys and names.

    Raises:
        CheckpointError: it is not whole.
    """
    found, placed = read_gguf(path, tensors=True, but=_ENDS), places(path)
    layer = found.value(_BLOCKS) - found.value(_HEADS)
    ours = {f"blk.{layer}.{told}.weight": f"{name}.weight" for name, told in _NAMES.items()}
    heads = {ours[name]: tensor for name, tensor in found.tensors.items()}
    config = _config(found, layer) | {"vocab_size": placed[_ENDS[0]].shape[0]}
    return config, {name: each - 1 if each.ndim == 1 else each for name, each in heads.items()}


def _config(found: GgufFile, layers: int) -> Json:
    def told(key: str) -> Any:
        value = found.value(f"{ARCH}.{key}")
        return value[-1] if isinstance(value, list) else value

    size = told("attention.key_length")
    return {
        "architectures": [HEAD_STYLES[_STYLE] + KINDS["mtp"]],
        "model_type": next(name for name, style in STYLES.items() if style == _STYLE),
        "hidden_act": "silu",
        "num_hidden_layers": 1,
        "layer_types": ["full_attention"],
        "max_position_embeddings": told("context_length"),
        "hidden_size": told("embedding_length"),
        "intermediate_size": told("feed_forward_length"),
        "num_attention_heads": told("attention.head_count"),
        "num_key_value_heads": told("attention.head_count_kv"),
        "head_dim": size,
        "rms_norm_eps": told("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {**read_rope(found, ARCH), "partial_rotary_factor": told("rope.dimension_count") / size},
        "target_layer_ids": [layers],
        "tie_word_embeddings": False,
    }
