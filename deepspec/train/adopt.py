"""A checkpoint that was trained elsewhere, published as a draft: exported, measured and released like one of ours."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from deepspec.artifacts import ArtifactRef, Spec, TargetId, address_of, checksum, read_manifest, reference
from deepspec.families import read_folder
from deepspec.formats.draft import CONFIG, WEIGHTS, load_config, load_draft
from deepspec.formats.draft_config import check_target
from deepspec.formats.draft_files import checkpoint_folder, read_tensors, weight_files
from deepspec.publish import Out, is_fresh
from deepspec.store import Store

ADOPT_VERSION = 1


class AdoptSpec(Spec):
    """What an adopted draft depends on."""

    files: tuple[str, ...]
    """Checksums of its config and of its weights' files."""
    target: TargetId
    """Whose draft it is, as the user says: the public form does not tell."""


def adopt(checkpoint: str, folder: Path, target: TargetId, store: Store, scratch: Path) -> ArtifactRef:
    """Publish a checkpoint in the public DeepSpec form, unless it is published.

    Args:
        checkpoint: its folder, or a hub id ORG/MODEL.
        folder: of the target.
        target: which one lies there.
        store: where to publish.
        scratch: local folder for work.

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
        return reference(store, known)
    draft = load_draft(source, torch.bfloat16)  # only to be checked
    out = Out(store, "draft", address, {}, scratch)
    out.file(CONFIG).write_bytes((source / CONFIG).read_bytes())
    save_file(read_tensors(source), out.file(WEIGHTS), metadata={"format": "pt"})
    told = {"algorithm": config.algorithm, "layers": list(config.target_layer_ids)}
    size = sum(parameter.numel() for _, parameter in draft.trainable())
    named = checkpoint if "/" in checkpoint and not Path(checkpoint).exists() else source.name
    counts = {"target": target.model_dump(), "adopted": named, "parameters": size, **told}
    return out.publish(spec, ADOPT_VERSION, counts)
