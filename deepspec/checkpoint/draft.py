"""A draft on disk: config.json and model.safetensors in the public DeepSpec form.

Keys and tensor names are in docs/formats/draft.md. Nothing is believed: names, shapes and values are checked before
anything is computed with them.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepspec.checkpoint.checks import parts_of
from deepspec.checkpoint.config import read_draft_config, write_draft_config
from deepspec.checkpoint.files import (
    CONFIG,
    WEIGHTS,
    read_config,
    read_shapes,
    read_tensors,
    weight_files,
    write_weights,
)
from deepspec.checkpoint.foreign import is_foreign, public_config, public_tensors
from deepspec.disk import writing
from deepspec.errors import CheckpointError, InputError
from deepspec.families import read_folder
from deepspec.formats.recipe import TRAITS
from deepspec.models.config import DraftConfig
from deepspec.models.draft import BlockDraft, EagleDraft, build_draft

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "adopt_target",
    "choose_vocabulary",
    "describe",
    "load_config",
    "load_draft",
    "save_draft",
]

Shapes = Mapping[str, tuple[int, ...]]
"""Name -> shape, as headers tell them."""
BORROWED = ("embed_tokens.weight", "lm_head.weight")
"""Copies of the target's, which may be left to it; a head of a reduced vocabulary is none."""


def load_draft(
    folder: Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> BlockDraft | EagleDraft:
    """Return the draft that lies in a folder, in eval mode; its `.config` says what it is.

    Raises:
        CheckpointError: a file is missing or unreadable, tensors are missing, surplus or of a wrong shape, values are
            not finite, or the config makes no sense.
        UnknownNameError: the config's block cannot be read.
    """
    config = load_config(folder)
    model = _on_meta(config)
    tensors = read_tensors(folder)
    _check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, _shapes(model), folder)
    _check_values(tensors, folder)
    moved = {name: _cast(tensor, dtype).to(device) for name, tensor in tensors.items()}
    model.load_state_dict(moved, assign=True)
    _check_vocabulary(model)
    return model.eval()


def load_config(folder: Path) -> DraftConfig:
    """Return what the draft in a folder is, without its weights; errors as in `load_draft`."""
    return read_draft_config(read_config(folder))


def save_draft(model: BlockDraft | EagleDraft, folder: Path) -> None:
    """Write config.json and model.safetensors into a folder; `load_draft` reads the same again.

    Raises:
        StoreError: they cannot be written: the disk is full, say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(model.fc.weight.dtype).removeprefix("torch.")
    config = {**write_draft_config(model.config), "dtype": dtype}
    with writing(folder / CONFIG):
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if tensors["lm_head.weight"].data_ptr() == tensors["embed_tokens.weight"].data_ptr():
        tensors["lm_head.weight"] = tensors["lm_head.weight"].clone()
    write_weights(tensors, folder)


def adopt_target(
    model: BlockDraft | EagleDraft,
    embedding: Tensor,
    head: Tensor,
    bias: Tensor | None = None,
    *,
    keep_head: bool = False,
) -> None:
    """Give a draft the target's token embedding and LM head, `(vocab, D)` each.

    Call it after `choose_vocabulary` where the draft's vocabulary is reduced: of the head it gets the known rows.

    Args:
        model: the draft.
        embedding: the target's.
        head: the target's; the same tensor where the two are tied.
        bias: of the head, `(vocab,)`; None where it has none.
        keep_head: whether a draft of reduced vocabulary keeps the whole head beside, unsaved: training counts
            acceptance against all that the target says.

    Raises:
        CheckpointError: the shapes are not those of the draft, or one of the two heads alone has a bias.
    """
    wanted = (model.config.vocab_size, model.config.block.hidden_size)
    if (bias is not None) != model.config.head_bias:
        told = "a bias" if model.config.head_bias else "no bias"
        raise CheckpointError(
            f"the target's head has {'no' if bias is None else 'a'} bias, the draft's config says {told}"
        )
    for name, weight in (("embedding", embedding), ("LM head", head)):
        if tuple(weight.shape) != wanted:
            raise CheckpointError(f"the target's {name} is {tuple(weight.shape)}, the draft wants {wanted}")
    known = model.known_ids()
    dtype, device = model.fc.weight.dtype, model.fc.weight.device
    rows = head.detach() if known is None else head.detach()[known.to(head.device)]
    own = embedding.detach().to(device, dtype)
    trained = model.config.train_embedding
    model.embed_tokens.weight.data = own.clone() if trained else own  # the target's stays as it is
    model.lm_head.weight.data = rows.to(device, dtype)
    whole = None if bias is None else bias.detach().to(device, dtype)
    if whole is not None:
        model.lm_head.bias.data = whole if known is None else whole[known.to(device)]
    if keep_head and known is not None:
        model.keep_target_head(None if head is embedding and not trained else head.detach().to(device, dtype), whole)


def choose_vocabulary(model: BlockDraft | EagleDraft, counts: Tensor) -> float:
    """Let a draft of reduced vocabulary know the most frequent tokens.

    Args:
        model: the draft.
        counts: `(vocab,)` how often each token occurs in the answers.

    Returns:
        the share of the counted tokens that the draft knows.
    """
    known = counts.argsort(descending=True, stable=True)[: model.config.draft_vocab_size].sort().values
    model.d2t = (known - torch.arange(len(known), device=known.device)).to(model.fc.weight.device)
    model.t2d = torch.zeros(model.config.vocab_size, dtype=torch.bool).index_fill_(0, known.cpu(), True)
    model.t2d = model.t2d.to(model.fc.weight.device)
    return float(counts[known].sum() / counts.sum().clamp(min=1))


def describe(folder: Path, target: Path | None = None) -> list[dict[str, str]]:
    """Return rows (`what`, `value`) that say what lies in a folder: a draft in a form that is read, or what else.

    Of the weights only the headers are read: names and shapes are held against the config.

    Args:
        folder: where it lies.
        target: folder of its target, without which a draft of another library does not say all that it is.

    Raises:
        CheckpointError: there is no readable config.json.
    """
    raw = read_config(folder)
    try:
        rows = _library_rows(raw, folder, target) if is_foreign(raw) else _own_rows(read_draft_config(raw), folder)
    except InputError as error:
        rows = [*_foreign_rows(raw), ("why it is no draft in DeepSpec's form", error)]
    return [{"what": what, "value": str(value)} for what, value in rows]


def _own_rows(draft: DraftConfig, folder: Path) -> list[tuple[str, Any]]:
    return [*_draft_rows(draft), *_weight_rows(draft, folder)]


def _library_rows(raw: Mapping[str, Any], folder: Path, target: Path | None) -> list[tuple[str, Any]]:
    """Return what a draft of another library is, in our words as far as its target is known.

    Embedding and head may be left to the target.
    """
    library = "SpecForge" if "speculators_model_type" not in raw else "speculators"
    if target is None:
        told = f"as {library} writes it; it is read by evaluate, export, run and parity; more with --target FOLDER"
        return [*_foreign_rows(raw), ("form", told)]
    draft = read_draft_config(public_config(raw, read_folder(target).num_layers))
    lent = BORROWED[:1] if draft.reduced_vocabulary else BORROWED
    named = partial(public_tensors, raw)
    return [("form", f"as {library} writes it"), *_draft_rows(draft), *_weight_rows(draft, folder, named, lent)]


def _weight_rows(
    draft: DraftConfig, folder: Path, named: Callable[[Shapes], Shapes] = dict, lent: Sequence[str] = ()
) -> list[tuple[str, Any]]:
    """Return how many parameters a config asks for, and whether the files have them.

    Args:
        draft: what the config describes.
        folder: of the files.
        named: gives their tensors the names that they have here.
        lent: tensors that the target gives where they are missing.
    """
    model = _on_meta(draft)
    trained = sum(parameter.numel() for _, parameter in model.trainable())
    frozen = sum(tensor.numel() for tensor in model.state_dict().values()) - trained
    rows: list[tuple[str, Any]] = [("parameters", f"{trained:,} trained, {frozen:,} of the target's")]
    if not any(folder.glob("*.safetensors")):
        return [*rows, ("weights", "not here: only the config was looked at")]
    try:
        wanted = _shapes(model)
        _check_shapes({**{name: wanted[name] for name in lent}, **named(read_shapes(folder))}, wanted, folder)
        rows.append(("weights", f"{', '.join(path.name for path in weight_files(folder))}: all there"))
    except CheckpointError as error:
        rows.append(("weights", f"NOT usable: {error}"))
    return rows


def _draft_rows(draft: DraftConfig) -> list[tuple[str, Any]]:
    block = draft.block
    rows: list[tuple[str, Any]] = [
        ("algorithm", draft.algorithm),
        (
            "block",
            f"{draft.style}, {draft.num_layers} × {block.hidden_size}, heads {block.num_heads}/{block.num_kv_heads}",
        ),
        ("rope", f"{block.rope.kind}, theta {block.rope.theta:g}"),
        ("window", _window(draft)),
        ("target", f"{draft.num_target_layers} layers, captured {list(draft.target_layer_ids)}"),
        (
            "vocabulary",
            f"{draft.vocab_size}" + (f", known {draft.draft_vocab_size}" if draft.reduced_vocabulary else ""),
        ),
        ("tokens proposed", draft.drafts),
    ]
    if TRAITS[draft.algorithm].parallel:
        rows.append(("mask token", draft.mask_token_id))
    if TRAITS[draft.algorithm].blocks:
        markov = f"{draft.markov_head}, rank {draft.markov_rank}" if draft.markov_rank else "none"
        confidence = ("with" if draft.confidence_with_markov else "without") + " Markov feature"
        rows += [
            ("mask token", draft.mask_token_id),
            ("Markov head", markov),
            ("confidence head", confidence if draft.confidence_head else "none"),
        ]
    rows += [(name, getattr(draft, name)) for name in parts_of(TRAITS[draft.algorithm])]
    return rows


def _window(draft: DraftConfig) -> str:
    if draft.window is None:
        return "none"
    how = "" if draft.window_form == "slot" else f", counted from the anchor ({draft.window_form})"
    return f"{draft.window}, layers {sorted(draft.window_layers)}{how}"


def _foreign_rows(raw: Mapping[str, Any]) -> list[tuple[str, Any]]:
    keys = ("speculators_model_type", "architectures", "model_type", "num_hidden_layers", "hidden_size", "vocab_size")
    return [(key, raw[key]) for key in keys if raw.get(key) is not None]


def _on_meta(config: DraftConfig) -> BlockDraft | EagleDraft:
    with torch.device("meta"):
        return build_draft(config)


def _shapes(model: BlockDraft | EagleDraft) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _check_shapes(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    if missing := wanted.keys() - found.keys():
        raise CheckpointError(f"{folder}: the weights lack {_names(missing)}, which {CONFIG} asks for")
    if surplus := found.keys() - wanted.keys():
        raise CheckpointError(f"{folder}: the weights have {_names(surplus)}, which {CONFIG} does not ask for")
    for name, shape in found.items():
        if shape != wanted[name]:
            raise CheckpointError(f"{folder}: {name} is {shape}, {CONFIG} asks for {wanted[name]}")


def _check_values(found: Mapping[str, Tensor], folder: Path) -> None:
    if broken := {name for name, tensor in found.items() if tensor.is_floating_point() and not tensor.isfinite().all()}:
        raise CheckpointError(f"{folder}: {_names(broken)} hold NaN or infinity; the training that made it diverged")


def _check_vocabulary(model: BlockDraft | EagleDraft) -> None:
    known = model.known_ids()
    if known is None:
        return
    inside = bool(((known >= 0) & (known < model.config.vocab_size)).all())
    if not inside or int(model.t2d.sum()) != len(known) or not bool(model.t2d[known].all()):
        raise CheckpointError("d2t and t2d name different tokens, or tokens outside the vocabulary")


def _names(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
