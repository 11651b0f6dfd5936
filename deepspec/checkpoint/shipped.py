"""MTP heads as their target ships them: where tuning them starts."""

from pathlib import Path

import torch
from safetensors import safe_open

from deepspec.errors import TargetError
from deepspec.families.shipped import PREFIX, check_names
from deepspec.formats.tensor_heads import listed, read_heads
from deepspec.models.draft import BlockDraft, EagleDraft


def load_heads(model: BlockDraft | EagleDraft, folder: Path) -> None:
    """Give a draft the weights of the heads that its target ships.

    Args:
        model: fresh, with the target's embedding and head.
        folder: the target's, with safetensors.

    Raises:
        TargetError: it ships none, or others than its config says.
    """
    heads = read_heads(folder)
    check_names(heads, str(folder))
    own = {name.removeprefix(PREFIX): head.shape for name, head in heads.items() if name.startswith(PREFIX)}
    wanted = {name: tuple(parameter.shape) for name, parameter in model.trainable()}
    if wrong := sorted(name for name in own.keys() | wanted.keys() if own.get(name) != wanted.get(name)):
        shapes = ", ".join(f"{PREFIX}{name} {own.get(name)}, wanted {wanted.get(name)}" for name in wrong[:3])
        raise TargetError(f"target {folder}: its heads are not those of its config: {shapes}; {listed(wrong)} differ")
    parameters = dict(model.trainable())
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file, torch.no_grad():
            for name in file.keys():  # noqa: SIM118  safe_open is no mapping
                if name.startswith(PREFIX):
                    parameters[name.removeprefix(PREFIX)].copy_(file.get_tensor(name))
