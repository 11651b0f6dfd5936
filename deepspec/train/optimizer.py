"""AdamW on fp32 master weights, with one flat buffer each for weights, gradients and moments.

The model computes in its own precision. Gradients of all micro-batches are added in fp32, then summed over ranks: so
how a global batch was cut changes the order of additions and nothing else. One flat buffer makes the sum over ranks
one message, the norm one reduction, and the saved state independent of the number of ranks.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from deepspec.errors import CheckpointError
from deepspec.train.ranks import Ranks
from deepspec.train.spec import TrainSpec

BUFFERS = ("master", "exp_avg", "exp_avg_sq")
"""Prefixes of the names in a saved state: the weights and the two moments of AdamW."""


class MasterAdamW:
    """The trainable parameters of a model, and how they step.

    The model's parameters become views of one buffer; its gradients are collected as `backward` makes them.
    """

    def __init__(self, model: nn.Module, spec: TrainSpec, dtype: torch.dtype) -> None:
        """Take over the parameters of `model` that require gradients, and cast the model to `dtype`."""
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.master = nn.Parameter(torch.cat([p.detach().float().flatten() for p in self._parameters.values()]))
        model.to(dtype)
        self._working = self.master.detach().to(dtype)  # the master itself in fp32
        self.gradient = torch.zeros_like(self.master)
        self.master.grad = self.gradient
        self._clip = spec.clip
        self._adam = torch.optim.AdamW(
            [self.master], spec.learning_rate, spec.betas, spec.epsilon, spec.weight_decay, fused=True
        )
        self._adam.state[self.master] = {
            "step": torch.zeros((), device=self.master.device),
            "exp_avg": torch.zeros_like(self.master),
            "exp_avg_sq": torch.zeros_like(self.master),
        }
        self._attach()

    def _attach(self) -> None:
        """Make parameters views of the working buffer, and their gradients land in the flat one."""
        working, gradient = self._views(self._working), self._views(self.gradient)
        for name, parameter in self._parameters.items():
            parameter.data = working[name]
            parameter.register_post_accumulate_grad_hook(_collector(gradient[name]))  # type: ignore[no-untyped-call]

    @property
    def size(self) -> int:
        """Return the number of trainable parameters."""
        return self.master.numel()

    def sum_gradients(self, ranks: Ranks) -> Tensor:
        """Sum the gradients over ranks and return their norm before clipping, a scalar."""
        norm: Tensor = torch.linalg.vector_norm(ranks.sum_(self.gradient))
        return norm

    def step(self, learning_rate: float, norm: Tensor) -> None:
        """Take one step with the gradients, clipped, and forget them."""
        self.gradient.mul_((self._clip / (norm + 1e-6)).clamp(max=1.0))
        self._adam.param_groups[0]["lr"] = learning_rate
        self._adam.step()
        self.forget()
        self._refresh()

    def forget(self) -> None:
        """Drop the gradients collected so far."""
        self.gradient.zero_()

    def state(self) -> dict[str, Tensor]:
        """Return weights, moments and step count by parameter name, as fp32 views of the live buffers."""
        buffers = self._buffers()
        named = {f"{kind}.{name}": v for kind in BUFFERS for name, v in self._views(buffers[kind]).items()}
        return {**named, "step": self._adam.state[self.master]["step"]}

    def load(self, state: Mapping[str, Tensor], moments: bool = True) -> None:
        """Take over a saved state.

        Args:
            state: what `state` returned, in this process or another, for any number of ranks.
            moments: whether to take the moments and the step count, too.

        Raises:
            CheckpointError: names or shapes are not those of this model.
        """
        own = self.state()
        wanted = own if moments else {name: value for name, value in own.items() if name.startswith("master.")}
        for name, value in wanted.items():
            if name not in state or state[name].shape != value.shape:
                found = f"has shape {tuple(state[name].shape)}" if name in state else "is missing"
                raise CheckpointError(f"saved state: {name} {found}; wanted {tuple(value.shape)}: another draft shape?")
        with torch.no_grad():
            for name, value in wanted.items():
                value.copy_(state[name])
        self._refresh()

    def copy_from_first(self, ranks: Ranks) -> None:
        """Take over the first rank's weights, moments and step count."""
        for buffer in self._buffers().values():
            ranks.copy_from_first_(buffer)
        ranks.copy_from_first_(self._adam.state[self.master]["step"])
        self._refresh()

    def _buffers(self) -> dict[str, Tensor]:
        moments = self._adam.state[self.master]
        return {"master": self.master.detach(), "exp_avg": moments["exp_avg"], "exp_avg_sq": moments["exp_avg_sq"]}

    def _views(self, buffer: Tensor) -> dict[str, Tensor]:
        sizes = [parameter.numel() for parameter in self._parameters.values()]
        pieces = zip(self._parameters.items(), torch.split(buffer, sizes), strict=True)
        return {name: piece.view(parameter.shape) for (name, parameter), piece in pieces}

    def _refresh(self) -> None:
        if self._working.data_ptr() != self.master.data_ptr():
            with torch.no_grad():
                self._working.copy_(self.master)


def _collector(gradient: Tensor) -> Callable[[Tensor], None]:
    """Return a hook that moves a parameter's new gradient into a view of the flat one."""

    def collect(parameter: Tensor) -> None:
        if parameter.grad is not None:
            gradient.add_(parameter.grad)
            parameter.grad = None

    return collect
