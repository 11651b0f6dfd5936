"""MTP heads where vLLM and SGLang read them: in the files of the target that ships them, under its names.

Such an engine serves the target with its own heads and no separate draft. So the form is those of the target's files
that hold heads, with nothing changed in them but the heads, and its config.json: laid over a copy of the target's
folder they make the target whose heads are tuned. Engines hand heads the state behind the target's final norm.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from deepspec.checkpoint import foreign
from deepspec.checkpoint.config import HEAD_STYLES, KINDS
from deepspec.checkpoint.draft import BORROWED, CONFIG
from deepspec.errors import CheckpointError
from deepspec.families.shipped import PREFIX, head_style
from deepspec.formats.recipe import TRAITS
from deepspec.formats.tensor_heads import WEIGHTS, read_heads, read_placed
from deepspec.forms.form import Form, FormSource, Json, Tensors, not_normed, without


def served_with_target(form: Form, how: str) -> Form:
    """Return an engine's form that, of heads that a target ships, is the target's own files.

    Args:
        form: of every other draft.
        how: the words by which the engine serves such a target.
    """

    def refuse(source: FormSource) -> str | None:
        return _refuse(source) if TRAITS[source.draft.algorithm].shipped else form.refuse(source)

    def write(source: FormSource, folder: Path) -> list[str]:
        if not TRAITS[source.draft.algorithm].shipped:
            return form.write(source, folder)
        return [*_write(source, folder), f"serve that target {how}"]

    def read(folder: Path) -> tuple[Json, Tensors]:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return _read(config, folder) if _is_target(folder) else form.read(folder)

    def options(source: FormSource) -> tuple[str, ...]:
        return () if TRAITS[source.draft.algorithm].shipped else form.options(source)

    return Form(refuse=refuse, write=write, read=read, options=options)


def to_speculators(tensors: Tensors) -> Tensors:
    """Return heads under the names of speculators, without what is the target's."""
    return {_their_name(name): tensor for name, tensor in without(tensors, *BORROWED).items()}


def _their_name(name: str) -> str:
    part = name.removesuffix(".weight")
    known = foreign.THEIR_PARTS.get(part)
    return foreign.THEIR_LAYER + (name.removeprefix(foreign.OUR_LAYER) if known is None else f"{known}.weight")


def _refuse(source: FormSource) -> str | None:
    if source.target_folder is None:
        return "mtp heads without the target's files, into which they are written; the target is not on this machine"
    if unread := not_normed(source.draft):
        return unread
    kept = {head.dtype for name, head in read_heads(source.target_folder).items() if name.startswith(PREFIX)}
    if source.tensors["fc.weight"].dtype == torch.float32 and kept != {"F32"}:
        return f"heads in fp32, of which the target's files keep {', '.join(sorted(kept))}; train.precision=bf16 does"
    return None


def _write(source: FormSource, folder: Path) -> list[str]:
    target = source.target_folder
    if target is None:
        raise CheckpointError("mtp heads are written into their target's files; ask refuse before")
    heads = {PREFIX + name: tensor for name, tensor in without(dict(source.tensors), *BORROWED).items()}
    placed = _placed(target)
    if missing := sorted(heads.keys() - placed.keys()):
        raise CheckpointError(f"target {target} has no {missing[0]}: the heads are of another target")
    files = sorted({placed[name] for name in heads})
    for name in files:
        _rewrite(target / name, heads, folder / name)
    shutil.copyfile(target / CONFIG, folder / CONFIG)
    return [f"lay {', '.join(files)} over a copy of the target's folder: its heads are the tuned ones then"]


def _rewrite(path: Path, heads: Tensors, into: Path) -> None:
    """Write a file of the target with other heads: every other tensor, and every dtype, as they are."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    changed = {name: heads[name].to(old.dtype).contiguous() for name, old in tensors.items() if name in heads}
    save_file({**tensors, **changed}, into, metadata=metadata)


def _placed(folder: Path) -> dict[str, str]:
    """Return tensor -> file of a target."""
    if (folder / WEIGHTS).exists():
        return dict.fromkeys(read_heads(folder), WEIGHTS)
    return read_placed(folder)


def _is_target(folder: Path) -> bool:
    """Return whether the files of a form hold heads under a target's names."""
    return any(_heads_in(path) for path in folder.glob("*.safetensors"))


def _heads_in(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(PREFIX)]  # noqa: SIM118  safe_open is no mapping
        return {name: file.get_tensor(name) for name in names}


def _read(config: Json, folder: Path) -> tuple[Json, Tensors]:
    text = {**config, **config.get("text_config", {})}
    text.pop("text_config", None)  # of a multimodal target: who reads a config looks for the text's there
    style = head_style(text["model_type"])
    public = {
        **text,
        "architectures": [HEAD_STYLES[style] + KINDS["mtp"]],
        "num_hidden_layers": 1,
        "target_layer_ids": [text["num_hidden_layers"]],
        "layer_types": ["full_attention"],
    }
    found = {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in _heads_in(path).items()}
    return public, {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}
