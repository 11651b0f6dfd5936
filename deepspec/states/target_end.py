"""What lies between an engine's last state and its logits: the target's own norm, head, factor and softcap."""

from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from deepspec.errors import TargetError
from deepspec.families.ends import EMBEDDING
from deepspec.formats.tensor_heads import WEIGHTS, read_placed
from deepspec.target.heads import read_target
from deepspec.target.load import Target
from deepspec.target.reading import Reading, output_values, probe_ids

_NORM = "norm.weight"


@dataclass(frozen=True, kw_only=True)
class TargetEnd:
    """The end of a target, on the CPU."""

    norm: nn.Module
    head: Tensor
    """`(V, D)`."""
    bias: Tensor | None
    """`(V,)` of the head."""
    scale: float
    """Logits are the head's product with the last state, which carries this factor, then the softcap."""
    softcap: float | None

    @torch.no_grad()
    def normed(self, before: Tensor) -> Tensor:
        """Return the states behind the final norm of those before: `(T, D)` both."""
        after: Tensor = self.norm(before[None])[0]
        return after

    def last(self, before: Tensor) -> Tensor:
        """Return the states before the head, as a capture has them, of those before the norm: `(T, D)` both."""
        return self.scaled(self.normed(before))

    def scaled(self, normed: Tensor) -> Tensor:
        """Return the states before the head of those behind the norm."""
        return normed if self.scale == 1.0 else normed * self.scale

    def log_probabilities(self, last: Tensor) -> Tensor:
        """Return what the head makes of one position's state after the norm: `(D,)` to `(V,)`, in fp32."""
        logits = (self.head @ last).float()
        if self.bias is not None:
            logits = logits + self.bias.float()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits.log_softmax(-1)


def target_end(target: Target) -> TargetEnd:
    """Return the end of a target that is in memory, or of one whose weights are in its files alone.

    Raises:
        TargetError: its final norm cannot be told.
    """
    reading = target.reading
    if target.embed_weight.is_meta:
        norm, head, bias = *_from_files(target), None
    else:
        norm, head, bias = _norm_of(target.model, reading).to("cpu"), target.head_weight.cpu(), target.head_bias
        bias = None if bias is None else bias.cpu()
    return TargetEnd(norm=norm, head=head, bias=bias, scale=reading.logit_scale, softcap=reading.softcap)


@torch.no_grad()
def _norm_of(model: Any, reading: Reading) -> nn.Module:
    """Return the part of a decoder whose output is the decoder's own."""
    gave: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _args: Any, result: Any) -> None:
        if isinstance(result, Tensor):
            gave[module] = result

    hooks = [each.register_forward_hook(keep) for each in reading.decoder.children()]
    last = output_values(reading.decoder(input_ids=probe_ids(model), use_cache=False))[0]
    for hook in hooks:
        hook.remove()
    found = [module for module, result in gave.items() if result.shape == last.shape and torch.equal(result, last)]
    if len(found) != 1:
        raise TargetError(
            f"target of model_type {model.config.model_type!r}: its final norm cannot be told, which an engine's last "
            "state has to pass; set cache.states=transformers"
        )
    return found[0]


def _from_files(target: Target) -> tuple[nn.Module, Tensor]:
    heads = read_target(target.folder)
    if heads.shape.general or heads.ends is None:
        raise TargetError(
            f"target {target.folder}: {heads.shape.top_model_type} is read by the general rule, which is proven in "
            "memory, and it does not fit there; states of an engine cannot be used for it"
        )
    name = f"{heads.ends.embedding.removesuffix(EMBEDDING)}{_NORM}"
    placed = dict.fromkeys(heads.heads, WEIGHTS) if (target.folder / WEIGHTS).exists() else read_placed(target.folder)
    tensors = {}
    for each in (name, heads.ends.head):
        if each not in placed:
            raise TargetError(f"target {target.folder}: its files have no {each}; set cache.states=transformers")
        with safe_open(target.folder / placed[each], "pt") as file:
            tensors[each] = file.get_tensor(each).to(target.dtype)
    norm: nn.Module = target.model.get_decoder().norm
    norm = norm.to_empty(device="cpu")
    norm.load_state_dict({"weight": tensors[name]})
    return norm, tensors[heads.ends.head]
