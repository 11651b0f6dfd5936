"""llama.cpp's form: one GGUF file. DSpark, DFlash and DFlash 2 are its architecture `dflash`, Eagle3 is `eagle3`.

MTP heads, which are of their target's architecture, are written by `llama_heads.py`.

The token embedding and the head are the target's and stay out: llama.cpp shares them from the target it serves. The
tokenizer is copied from the target's own GGUF file, so that both always agree.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

from deepspec.checkpoint.config import KINDS
from deepspec.checkpoint.draft import BORROWED
from deepspec.errors import CheckpointError
from deepspec.families.gguf_header import another_target
from deepspec.formats.recipe import TRAITS, AlgorithmName, method_of
from deepspec.forms import llama_heads
from deepspec.forms.form import (
    Form,
    FormSource,
    Json,
    Tensors,
    biased,
    has_norms,
    has_window,
    not_by_slot,
    not_filled_in,
    not_parallel,
    not_refined,
    not_style,
    not_vanilla,
    not_whole,
    turns_whole_heads,
    with_zero_markov,
    without,
)
from deepspec.forms.gguf_file import GgufFile, add_tensor, copy_field, end_file, read_gguf
from deepspec.forms.gguf_rope import read_rope, refuse_rope, write_rope
from deepspec.forms.names import EAGLE_LAYERS, EAGLE_STYLE
from deepspec.models.config import DraftConfig

FILE = "draft.gguf"


_MASK = "tokenizer.ggml.mask_token_id"

_NAMES: Mapping[str, str] = {
    "fc.weight": "fc.weight",
    "norm.weight": "output_norm.weight",
    "hidden_norm.weight": "enc.output_norm.weight",
    "markov_head.markov_w1.weight": "markov_w1.weight",
    "markov_head.markov_w2.weight": "markov_w2.weight",
    "confidence_head.proj.weight": "conf_proj.weight",
    "confidence_head.proj.bias": "conf_proj.bias",
    "embed_tokens.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    "d2t": "d2t",
    "candidate_selector.predecessor_codebook": "selector_predecessor.weight",
    "candidate_selector.successor_codebook": "selector_successor.weight",
    "candidate_selector.hidden_projection.weight": "selector_hidden.weight",
}
"""Our name -> GGUF's."""

_BLOCK_NAMES: Mapping[str, str] = {
    "input_layernorm": "attn_norm",
    "hidden_norm": "attn_norm_2",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "attention_conv.kernel_projection": "attn_conv_proj",
    "mlp_conv.kernel_projection": "ffn_conv_proj",
}
"""Within `layers.N` and `blk.N`, each with `.weight` behind it."""

_BARE_NAMES: Mapping[str, str] = {
    "attention_conv.base_kernel": "attn_conv_base",
    "mlp_conv.base_kernel": "ffn_conv_base",
}
"""The same, without `.weight`; in fp32, since dynamic kernels are added to them."""

_CONVOLVED = ("conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k")

_INTERLEAVED = ("attn_q.weight", "attn_k.weight")
"""Rows that the architecture `eagle3` wants in the order of interleaved rope."""


def _refuse(source: FormSource) -> str | None:
    draft = source.draft
    shipped, blocks = TRAITS[draft.algorithm].shipped, TRAITS[draft.algorithm].blocks
    if unread := biased(draft) or refuse_rope(draft.block.rope) or (None if shipped else turns_whole_heads(draft)):
        return unread
    target = _target_gguf(source)
    if target is None:
        return (
            "a target without one GGUF file beside its weights, to copy the tokenizer from; export.gguf=FILE names one"
        )
    if other := another_target(target, draft.num_target_layers, draft.block.hidden_size):
        return other
    if shipped:
        return llama_heads.refuse_heads(source, target)
    return _refuse_blocks(draft) if blocks else _refuse_eagle(draft)


def _refuse_blocks(draft: DraftConfig) -> str | None:
    if unread := not_refined(draft) or not_by_slot(draft):
        return unread
    if draft.markov_rank and draft.layout == "fill_in":
        return f"blocks that are filled in, for {draft.algorithm}; it predicts from the anchor on"
    most, size = draft.selector_top_k, draft.block.hidden_size
    if size < most * (most + 1):
        return f"a selector among {most} candidates in a hidden size of {size}; it wants k·(k + 1) at most that"
    return not_filled_in(draft) or not_style(draft, "qwen3") or not_vanilla(draft) or not_whole(draft)


def _refuse_eagle(draft: DraftConfig) -> str | None:
    if TRAITS[draft.algorithm].parallel:
        return not_parallel(draft)
    if len(draft.target_layer_ids) != EAGLE_LAYERS:
        return f"an eagle3 draft with {len(draft.target_layer_ids)} captured layers; it has {EAGLE_LAYERS}"
    scaled = draft.embedding_scale != 1.0 or draft.logit_softcap is not None
    return (
        not_style(draft, EAGLE_STYLE)
        or has_norms(draft, "norm_before_residual")
        or has_window(draft, "its eagle3 attends in full")
        or ("an embedding scale or logit softcap" if scaled else None)
    )


def _target_gguf(source: FormSource) -> Path | None:
    """Return the target's GGUF file: the one that was named, or that of its folder, where it holds exactly one."""
    if source.gguf is not None:
        return source.gguf
    found = [] if source.target_folder is None else sorted(source.target_folder.glob("*.gguf"))
    return found[0] if len(found) == 1 else None


def _write(source: FormSource, folder: Path) -> list[str]:
    target = _target_gguf(source)
    if target is None:
        raise CheckpointError(f"the target's folder {source.target_folder} holds no GGUF file; `refuse` says so before")
    if TRAITS[source.draft.algorithm].shipped:
        return llama_heads.write_heads(source, target, folder / FILE)
    eagle, kind = not TRAITS[source.draft.algorithm].blocks, method_of(source.draft.algorithm, source.draft.layout)
    config, tensors, notes = dict(source.config), dict(source.tensors), list[str]()
    if kind == "dspark":
        config, tensors, notes = with_zero_markov(source)
    if source.draft.confidence_head and not source.draft.confidence_with_markov:
        tensors = without(tensors, "confidence_head.proj.weight", "confidence_head.proj.bias")
        notes = [*notes, "without the confidence head: llama.cpp wants one that sees the Markov embedding"]
    writer = gguf.GGUFWriter(folder / FILE, arch="eagle3" if eagle else "dflash")
    _write_shape(writer, source, config)
    (_write_eagle if eagle else _write_block_draft)(writer, source, "confidence_head.proj.weight" in tensors)
    _copy_tokenizer(writer, target)
    left_out = ("embed_tokens.weight", "t2d") if source.draft.reduced_vocabulary else (*BORROWED, "t2d")
    for name, tensor in _translated(without(tensors, *left_out), source):
        add_tensor(writer, name, tensor)
    end_file(writer)
    return [*notes, f"serve with --spec-type draft-{kind}; needs the target's own GGUF file"]


def _write_shape(writer: Any, source: FormSource, config: Json) -> None:
    draft, block = source.draft, source.draft.block
    writer.add_name(f"{source.target} {draft.algorithm}")
    writer.add_vocab_size(draft.vocab_size)
    writer.add_block_count(draft.num_layers)
    writer.add_context_length(int(config.get("max_position_embeddings") or 4096))
    writer.add_embedding_length(block.hidden_size)
    writer.add_feed_forward_length(block.intermediate_size)
    writer.add_head_count(block.num_heads)
    writer.add_head_count_kv(block.num_kv_heads)
    writer.add_key_length(block.head_dim)
    writer.add_value_length(block.head_dim)
    writer.add_rope_dimension_count(block.head_dim)
    write_rope(writer, block.rope)
    writer.add_layer_norm_rms_eps(block.norm_eps)
    writer.add_array(f"{writer.arch}.target_layers", [layer + 1 for layer in draft.target_layer_ids])


def _write_block_draft(writer: Any, source: FormSource, confident: bool) -> None:
    draft = source.draft
    writer.add_uint32("dflash.block_size", draft.block_size)
    writer.add_bool("dflash.sample_from_anchor", draft.layout == "shift")
    writer.add_bool("dflash.has_confidence_head", confident)
    writer.add_uint32(_MASK, draft.mask_token_id)
    for key in _CONVOLVED if TRAITS[draft.algorithm].convolved else ():
        writer.add_uint32(f"dflash.{key}", getattr(draft, key))
    if draft.window is not None:
        writer.add_sliding_window(draft.window)
        writer.add_sliding_window_pattern([window is not None for window in draft.windows])
    if draft.embedding_scale != 1.0:
        writer.add_float32("dflash.embedding_scale", draft.embedding_scale)
    if draft.logit_softcap is not None:
        writer.add_float32("dflash.final_logit_softcapping", draft.logit_softcap)


def _write_eagle(writer: Any, source: FormSource, confident: bool) -> None:
    del confident  # Eagle3 has no such head
    writer.add_uint32("eagle3.target_hidden_size", source.draft.block.hidden_size)
    writer.add_bool("eagle3.norm_before_residual", source.draft.norms.norm_before_residual)
    writer.add_bool("eagle3.norm_before_fc", False)


def _copy_tokenizer(writer: Any, target: Path) -> None:
    for name, field in read_gguf(target, tensors=False).fields.items():
        if name.startswith("tokenizer.") and name != _MASK:
            copy_field(writer, name, field)


def _translated(tensors: Tensors, source: FormSource) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors under GGUF's names, in its order of rows and of ids."""
    for name, tensor in sorted(tensors.items()):
        told = _gguf_name(name)
        value = tensor
        if name == "d2t":
            value = tensor + torch.arange(len(tensor))  # GGUF holds the target's ids, we the differences
        if not TRAITS[source.draft.algorithm].blocks and told.endswith(_INTERLEAVED):
            value = _interleaved(tensor, source.draft.block.head_dim)
        yield told, value


def _gguf_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    _, layer, rest = name.split(".", 2)
    if rest in _BARE_NAMES:
        return f"blk.{layer}.{_BARE_NAMES[rest]}"
    return f"blk.{layer}.{_BLOCK_NAMES[rest.removesuffix('.weight')]}.weight"


def _our_name(name: str) -> str:
    if not name.startswith("blk."):
        return next(ours for ours, told in _NAMES.items() if told == name)
    _, layer, rest, *_ = name.split(".")
    bare = {told: ours for ours, told in _BARE_NAMES.items()}
    if rest in bare:
        return f"layers.{layer}.{bare[rest]}"
    return f"layers.{layer}.{next(ours for ours, told in _BLOCK_NAMES.items() if told == rest)}.weight"


def _interleaved(rows: Tensor, head_dim: int) -> Tensor:
    """Return rows of halves (i, i + d/2) as rows of pairs (2i, 2i + 1), head by head."""
    return rows.view(-1, 2, head_dim // 2, rows.shape[-1]).transpose(1, 2).reshape(rows.shape)


def _halved(rows: Tensor, head_dim: int) -> Tensor:
    """Undo `_interleaved`."""
    return rows.view(-1, head_dim // 2, 2, rows.shape[-1]).transpose(1, 2).reshape(rows.shape)


def _read(folder: Path) -> tuple[Json, Tensors]:
    arch = read_gguf(folder / FILE, tensors=False).value("general.architecture")
    if arch == llama_heads.ARCH:
        return llama_heads.read_written_heads(folder / FILE)
    found = read_gguf(folder / FILE, tensors=True)
    tensors = {_our_name(name): tensor for name, tensor in found.tensors.items()}
    head_dim = found.value(f"{arch}.attention.key_length")
    if arch == "eagle3":
        for name in ("layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight"):
            tensors[name] = _halved(tensors[name], head_dim)
    if "d2t" in tensors:
        known = tensors["d2t"]
        tensors["d2t"] = known - torch.arange(len(known))
        tensors["t2d"] = torch.zeros(found.value(f"{arch}.vocab_size"), dtype=torch.bool)
        tensors["t2d"][known] = True
    return _config(found, arch, tensors), tensors


def _config(found: GgufFile, arch: str, tensors: Tensors) -> Json:
    def told(key: str) -> Any:
        return found.value(f"{arch}.{key}")

    config: Json = {
        "architectures": ["LlamaEagle3Model" if arch == "eagle3" else "Qwen3" + KINDS[_algorithm(found, tensors)]],
        "model_type": "llama" if arch == "eagle3" else "qwen3",
        "hidden_act": "silu",
        "vocab_size": told("vocab_size"),
        "num_hidden_layers": told("block_count"),
        "max_position_embeddings": told("context_length"),
        "hidden_size": told("embedding_length"),
        "intermediate_size": told("feed_forward_length"),
        "num_attention_heads": told("attention.head_count"),
        "num_key_value_heads": told("attention.head_count_kv"),
        "head_dim": told("attention.key_length"),
        "rms_norm_eps": told("attention.layer_norm_rms_epsilon"),
        "rope_parameters": read_rope(found, arch),
        "target_layer_ids": [layer - 1 for layer in told("target_layers")],
        "tie_word_embeddings": False,
    }
    if "d2t" in tensors:
        config["draft_vocab_size"] = len(tensors["d2t"])
    if arch == "eagle3":
        return {**config, "norm_before_residual": told("norm_before_residual")}
    for key in ("embedding_scale", "final_logit_softcapping"):
        if f"{arch}.{key}" in found.fields:
            config[key] = told(key)
    if "dflash.attention.sliding_window" in found.fields:
        config["sliding_window"] = told("attention.sliding_window")
        config["layer_types"] = [
            "sliding_attention" if near else "full_attention" for near in told("attention.sliding_window_pattern")
        ]
    markov = tensors.get("markov_head.markov_w1.weight")
    config |= {key: told(key) for key in _CONVOLVED if f"{arch}.{key}" in found.fields}
    return config | {
        "block_size": told("block_size"),
        "sample_from_anchor": told("sample_from_anchor"),
        "mask_token_id": found.value(_MASK),
        "markov_rank": 0 if markov is None else markov.shape[1],
        "enable_confidence_head": told("has_confidence_head"),
        "confidence_head_with_markov": told("has_confidence_head"),
    }


def _algorithm(found: GgufFile, tensors: Tensors) -> AlgorithmName:
    if "dflash.selector_rank" in found.fields:
        return "dflash2"
    return "dspark" if "markov_head.markov_w1.weight" in tensors else "dflash"


LLAMA_CPP: Form = Form(refuse=_refuse, write=_write, read=_read)
