"""A checkpoint that was trained elsewhere, published as a draft: exported, measured and released like one of ours."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deepspec.artifacts import Artifact
from deepspec.brought.spec import AdoptSpec
from deepspec.checkpoint.checks import check_target
from deepspec.checkpoint.config import read_draft_config, write_draft_config
from deepspec.checkpoint.draft import CONFIG, load_draft
from deepspec.checkpoint.ends import distances_told, ends_apart, read_ends, warning
from deepspec.checkpoint.files import checkpoint_folder, read_config, read_tensors, weight_files, write_weights
from deepspec.checkpoint.foreign import is_foreign, public_config, public_tensors
from deepspec.disk import checksum
from deepspec.families import read_folder
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.report import Report
from deepspec.specs import TargetId


def adopt_spec(checkpoint: str, folder: Path, target: TargetId) -> tuple[AdoptSpec, Path]:
    """Return what adopting a checkpoint depends on, and where it lies.

    Args:
        checkpoint: its folder, or a hub id ORG/MODEL.
        folder: of the target.
        target: which one lies there.

    Raises:
        CheckpointError: its config cannot be read, or is of another target.
    """
    brought = checkpoint_folder(checkpoint)
    config = read_draft_config(public_config(read_config(brought), read_folder(folder).num_layers))
    check_target(config, read_folder(folder))
    named = checkpoint if "/" in checkpoint and not Path(checkpoint).exists() else brought.name
    files = tuple(checksum(path) for path in (brought / CONFIG, *weight_files(brought)))
    return AdoptSpec(files=files, target=target, name=named), brought


def run(
    spec: AdoptSpec, inputs: Mapping[str, Artifact], out: Out, placement: Placement, report: Report
) -> dict[str, Any]:
    """Write a checkpoint in the public DeepSpec form, or one that is read as such, as a draft.

    An embedding or head that is not the target's is told and counted, and no error: a target may have been fine-tuned.

    Args:
        spec: which checkpoint, of which target.
        inputs: none.
        out: where to write.
        placement: where both lie.
        report: hears nothing: `lines` says what the counts tell, also of a draft published before.

    Raises:
        CheckpointError: it cannot be read, or is not sound.
    """
    del inputs, report
    brought, target = Path(placement.locations[spec.files[0]]), placement.target_folder(spec.target.digest)
    foreign = is_foreign(read_config(brought))
    source = translated(brought, target, out.scratch / f"brought-{out.address}") if foreign else brought
    draft = load_draft(source, torch.bfloat16)  # only to be checked
    out.file(CONFIG).write_bytes((source / CONFIG).read_bytes())
    write_weights(read_tensors(source), out.folder)
    told: dict[str, Any] = {"algorithm": draft.config.algorithm, "layers": list(draft.config.target_layer_ids)}
    size = sum(parameter.numel() for _, parameter in draft.trainable())
    apart = ends_apart(source, target)
    loud = warning(apart)
    told |= {"apart": apart, "warnings": [] if loud is None else [loud]}
    return {"target": spec.target.model_dump(), "adopted": spec.name, "parameters": size, **told}


def lines(counts: Mapping[str, Any]) -> list[str]:
    """Return what a user should be told of an adopted draft."""
    distance = f"the draft's distance from the target's own (relative): {distances_told(counts['apart'])}"
    return [distance, *(f"warning: {line}" for line in counts["warnings"])]


def translated(brought: Path, target: Path, folder: Path) -> Path:
    """Return a folder with a draft of another library in DeepSpec's form; what it leaves to the target is taken there.

    The embedding, and a head of the whole vocabulary, are left out by some.

    Args:
        brought: where the library wrote it.
        target: folder of its target.
        folder: where it is written.

    Raises:
        CheckpointError: it cannot be read.
        UnknownNameError: a kind of draft that is not read.
    """
    told, shape = read_config(brought), read_folder(target)
    config = read_draft_config(public_config(told, shape.num_layers))
    tensors = public_tensors(told, read_tensors(brought))
    embedding, head, _ = read_ends(target)
    ends = {"embed_tokens.weight": embedding} | ({} if config.reduced_vocabulary else {"lm_head.weight": head})
    dtype = tensors["fc.weight"].dtype if "fc.weight" in tensors else torch.bfloat16
    lent = {name: tensor.to(dtype, copy=True) for name, tensor in ends.items() if name not in tensors}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(write_draft_config(config), indent=2, sort_keys=True) + "\n")
    write_weights({**tensors, **lent}, folder)
    return folder
