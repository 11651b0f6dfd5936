"""A checkpoint that was trained elsewhere, published as a draft: exported, measured and released like one of ours."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from deepspec.artifacts import ArtifactRef, Spec, TargetId, address_of, checksum, read_manifest, reference
from deepspec.checkpoint.checks import check_target
from deepspec.checkpoint.config import read_draft_config, write_draft_config
from deepspec.checkpoint.draft import CONFIG, load_draft
from deepspec.checkpoint.ends import ends_apart, read_ends, warning
from deepspec.checkpoint.ends import told as in_words
from deepspec.checkpoint.files import checkpoint_folder, read_config, read_tensors, weight_files, write_weights
from deepspec.checkpoint.foreign import is_foreign, public_config, public_tensors
from deepspec.families import read_folder
from deepspec.publish import Out, is_fresh
from deepspec.store import Store

ADOPT_VERSION = 2


class AdoptSpec(Spec):
    """What an adopted draft depends on."""

    files: tuple[str, ...]
    """Checksums of its config and of its weights' files."""
    target: TargetId
    """Whose draft it is, as the user says: the public form does not tell."""


def adopt(
    checkpoint: str, folder: Path, target: TargetId, store: Store, scratch: Path, log: Callable[[str], None]
) -> ArtifactRef:
    """Publish a checkpoint in the public DeepSpec form, or one that is read as such, unless it is published.

    An embedding or head that is not the target's is told and counted, and no error: a target may have been fine-tuned.

    Args:
        checkpoint: its folder, or a hub id ORG/MODEL.
        folder: of the target.
        target: which one lies there.
        store: where to publish.
        scratch: local folder for work.
        log: told how far embedding and head are from the target's.

    Raises:
        CheckpointError: it cannot be read, is not sound, or was made for another target.
    """
    brought = checkpoint_folder(checkpoint)
    config = read_draft_config(public_config(read_config(brought), read_folder(folder).num_layers))
    check_target(config, read_folder(folder))
    spec = AdoptSpec(files=tuple(checksum(path) for path in (brought / CONFIG, *weight_files(brought))), target=target)
    address = address_of("draft", ADOPT_VERSION, spec, {})
    known = read_manifest(store, "draft", address) if is_fresh(store, "draft", address, {}) else None
    if known is not None:
        _tell(known.counts, log)
        return reference(store, known)
    source = (
        _translated(brought, folder, scratch / f"brought-{address}") if is_foreign(read_config(brought)) else brought
    )
    draft = load_draft(source, torch.bfloat16)  # only to be checked
    out = Out(store, "draft", address, {}, scratch)
    out.file(CONFIG).write_bytes((source / CONFIG).read_bytes())
    write_weights(read_tensors(source), out.folder)
    told: dict[str, Any] = {"algorithm": config.algorithm, "layers": list(config.target_layer_ids)}
    size = sum(parameter.numel() for _, parameter in draft.trainable())
    named = checkpoint if "/" in checkpoint and not Path(checkpoint).exists() else brought.name
    apart = ends_apart(source, folder)
    loud = warning(apart)
    told |= {"apart": apart, "warnings": [] if loud is None else [loud]}
    counts = {"target": target.model_dump(), "adopted": named, "parameters": size, **told}
    _tell(counts, log)
    return out.publish(spec, ADOPT_VERSION, counts)


def _translated(brought: Path, target: Path, folder: Path) -> Path:
    """Return a folder with a draft of another library in DeepSpec's form; what it leaves to the target is taken there.

    The embedding, and a head of the whole vocabulary, are left out by some.
    """
    told, shape = read_config(brought), read_folder(target)
    config = read_draft_config(public_config(told, shape.num_layers))
    tensors = public_tensors(told, read_tensors(brought))
    embedding, head = read_ends(target)
    ends = {"embed_tokens.weight": embedding} | ({} if config.reduced_vocabulary else {"lm_head.weight": head})
    dtype = tensors["fc.weight"].dtype if "fc.weight" in tensors else torch.bfloat16
    lent = {name: tensor.to(dtype, copy=True) for name, tensor in ends.items() if name not in tensors}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(write_draft_config(config), indent=2, sort_keys=True) + "\n")
    write_weights({**tensors, **lent}, folder)
    return folder


def _tell(counts: Mapping[str, Any], log: Callable[[str], None]) -> None:
    log(f"the draft's distance from the target's own (relative): {in_words(counts['apart'])}")
    for line in counts["warnings"]:
        log(f"warning: {line}")
