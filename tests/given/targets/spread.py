"""A target over two devices, laid there by what lays large ones over cards."""

from collections.abc import Sequence

import torch
from accelerate import dispatch_model
from torch import nn

from deepspec.target.load import Target


def spread(target: Target, device: torch.device) -> Target:
    """Lay what comes before the second block on a device, and the rest on the CPU; a head that is the embedding lies
    with it."""
    model, blocks = target.model, target.reading.blocks
    parts = _parts(model, blocks)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    first = parts.index(next(name for name in parts if model.get_submodule(name) is blocks[1]))
    places = {name: device if place < first else torch.device("cpu") for place, name in enumerate(parts)}
    if head.weight is embedding.weight:
        places[next(name for name in parts if model.get_submodule(name) is head)] = device
    dispatch_model(
        model, places, main_device=torch.device("cpu"), skip_keys=model._skip_keys_device_placement, force_hooks=True
    )
    return target


def _parts(model: nn.Module, blocks: Sequence[nn.Module]) -> list[str]:
    """Return the names of the blocks, and of what computes beside them, in the order in which a model has them."""
    whole, found = set(blocks), list[str]()
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{each}.") for each in found)
        if not inside and (module in whole or not list(module.children())):
            found.append(name)
    return found
