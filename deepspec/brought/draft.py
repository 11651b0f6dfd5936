"""A checkpoint that was trained elsewhere, published as a draft: exported, measured and released like one of ours."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from deepspec.artifacts import ArtifactRef, Spec, TargetId, address_of, checksum, read_manifest, reference
from deepspec.checkpoint.config import check_target
from deepspec.checkpoint.draft import CONFIG, load_config, load_draft
from deepspec.checkpoint.ends import ends_apart, warning
from deepspec.checkpoint.ends import told as in_words
from deepspec.checkpoint.files import checkpoint_folder, read_tensors, weight_files, write_weights
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
    """Publish a checkpoint in the public DeepSpec form, unless it is published.

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
    source = checkpoint_folder(checkpoint)
    config = load_config(source)
    check_target(config, read_folder(folder))
    spec = AdoptSpec(files=tuple(checksum(path) for path in (source / CONFIG, *weight_files(source))), target=target)
    address = address_of("draft", ADOPT_VERSION, spec, {})
    known = read_manifest(store, "draft", address) if is_fresh(store, "draft", address, {}) else None
    if known is not None:
        _tell(known.counts, log)
        return reference(store, known)
    draft = load_draft(source, torch.bfloat16)  # only to be checked
    out = Out(store, "draft", address, {}, scratch)
    out.file(CONFIG).write_bytes((source / CONFIG).read_bytes())
    write_weights(read_tensors(source), out.folder)
    told: dict[str, Any] = {"algorithm": config.algorithm, "layers": list(config.target_layer_ids)}
    size = sum(parameter.numel() for _, parameter in draft.trainable())
    named = checkpoint if "/" in checkpoint and not Path(checkpoint).exists() else source.name
    apart = ends_apart(source, folder)
    loud = warning(apart)
    told |= {"apart": apart, "warnings": [] if loud is None else [loud]}
    counts = {"target": target.model_dump(), "adopted": named, "parameters": size, **told}
    _tell(counts, log)
    return out.publish(spec, ADOPT_VERSION, counts)


def _tell(counts: Mapping[str, Any], log: Callable[[str], None]) -> None:
    log(f"the draft's distance from the target's own (relative): {in_words(counts['apart'])}")
    for line in counts["warnings"]:
        log(f"warning: {line}")
