"""Muon for matrices beside AdamW for the rest: each rank steps whole matrices of its own.

Muon orthogonalises a matrix's momentum, so a share of a flat buffer would not do. The matrices are laid out by owner:
a rank's share of the buffer holds whole matrices, as evenly as they allow, and between ranks passes what passes for
AdamW. The step itself is torch.optim.Muon's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepspec.errors import CheckpointError
from deepspec.optimizers.gradients import Gradients
from deepspec.optimizers.optimization import Optimization
from deepspec.optimizers.optimizer import FP32_BYTES, MasterAdamW
from deepspec.optimizers.orthogonal import STEPS
from deepspec.steps.ranks import Ranks

TABLES = ("embed_tokens", "lm_head", "codebook", "markov_w1", "markov_w2")
"""Parts of the names of matrices whose rows are a vocabulary: AdamW's."""
BUFFERS = ("master", "momentum")
"""Prefixes of the names in a saved state."""


def takes(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter is Muon's: a matrix, and no table of a vocabulary."""
    return parameter.dim() == 2 and min(parameter.shape) > 1 and not any(table in name for table in TABLES)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a matrix lies in the flat buffer."""

    name: str
    owner: int
    offset: int
    shape: torch.Size

    def view(self, flat: Tensor, start: int = 0) -> Tensor:
        """Return the matrix within a buffer that begins at `start` of the flat one."""
        begin = self.offset - start
        return flat[begin : begin + self.shape.numel()].view(self.shape)


def lay_out(shapes: Mapping[str, torch.Size], owners: int) -> tuple[list[Place], int]:
    """Return where each matrix lies, and the size of each owner's share: the largest goes to who has least."""
    owned: list[list[str]] = [[] for _ in range(owners)]
    sizes = [0] * owners
    for name in sorted(shapes, key=lambda each: (-shapes[each].numel(), each)):
        owner = sizes.index(min(sizes))
        owned[owner].append(name)
        sizes[owner] += shapes[name].numel()
    share = max(sizes)
    places = []
    for owner, names in enumerate(owned):
        offset = owner * share
        for name in names:
            places.append(Place(name, owner, offset, shapes[name]))
            offset += shapes[name].numel()
    return places, share


class Matrices:
    """The matrices that Muon steps, in one flat buffer; the first rank's values are everyone's."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], spec: Optimization, ranks: Ranks) -> None:
        """Copy the values, in fp32; the parameters stay what they are until `attach`."""
        self._parameters, self._ranks = dict(parameters), ranks
        self.places, size = lay_out({name: p.shape for name, p in parameters.items()}, ranks.count)
        flat = next(iter(parameters.values())).new_zeros(size * ranks.count, dtype=torch.float32)
        for place in self.places:
            place.view(flat).copy_(parameters[place.name].detach())
        self._working = ranks.copy_from_first_(flat)
        self._gradients = Gradients(parameters, lambda: torch.zeros_like(flat), self.views)
        self.master, self.momentum = ranks.share(flat).clone(), torch.zeros_like(ranks.share(flat))
        self._own = [place for place in self.places if place.owner == ranks.rank]
        self._start = ranks.rank * size
        self._steps = [self._muon(place, spec) for place in self._own]

    @property
    def gradient(self) -> Tensor:
        """Return the gradients of all matrices in the flat buffer; once summed, this rank's share of it counts."""
        return self._gradients.sums()

    def forget(self) -> None:
        """Drop the gradients collected so far."""
        self._gradients.forget()

    def attach(self, dtype: torch.dtype) -> None:
        """Let the model compute with the values in a dtype."""
        self._working = self._working.to(dtype)
        for place in self.places:
            self._parameters[place.name].data = place.view(self._working)

    def step(self, learning_rate: float, clip: Tensor, skip: Tensor | None) -> None:
        """Step this rank's matrices, and give everyone theirs.

        Args:
            learning_rate: of Muon.
            clip: what gradients are multiplied by.
            skip: 1 where nothing may move; else 0.
        """
        self._ranks.share(self.gradient).mul_(clip)
        for place, muon in zip(self._own, self._steps, strict=True):
            own = [place.view(buffer, self._start) for buffer in (self.master, self.momentum)]
            before = [each.clone() for each in own]
            weight = muon.param_groups[0]["params"][0]
            still = ~weight.grad.any() if skip is None else ~weight.grad.any() | (skip > 0)
            muon.param_groups[0]["lr"] = learning_rate
            muon.step()
            for each, old in zip(own, before, strict=True):  # without a gradient it stays as it is
                torch.where(still, old, each, out=each)
        self.refresh()

    def _muon(self, place: Place, spec: Optimization) -> torch.optim.Muon:
        weight = nn.Parameter(place.view(self.master, self._start))
        weight.grad = place.view(self.gradient)
        found = torch.optim.Muon(
            [weight],
            lr=spec.learning_rate,
            weight_decay=spec.muon_weight_decay,
            momentum=spec.muon_momentum,
            ns_steps=STEPS,
            adjust_lr_fn=spec.muon_scale,
        )
        found.state[weight]["momentum_buffer"] = place.view(self.momentum, self._start)
        return found

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the matrices of a flat buffer by name."""
        return {place.name: place.view(flat) for place in self.places}

    def flat(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return matrices by name in one flat buffer."""
        found = torch.zeros_like(self._working, dtype=torch.float32)
        for place in self.places:
            place.view(found).copy_(named[place.name])
        return found

    def buffers(self) -> dict[str, Tensor]:
        """Return this rank's share of what is saved, by the prefix of its names."""
        return {"master": self.master, "momentum": self.momentum}

    def refresh(self) -> None:
        """Let the model compute with the masters of all ranks."""
        self._ranks.join_shares(self.master.to(self._working.dtype), self._working)


class MasterMuon:
    """The trainable parameters of a model, matrices stepped by Muon, the rest by AdamW; used like `MasterAdamW`."""

    def __init__(self, model: nn.Module, spec: Optimization, dtype: torch.dtype, ranks: Ranks) -> None:
        """Take over the first rank's values of what `model` trains, and cast the model to `dtype`."""
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        mine = {name: p for name, p in trained.items() if takes(name, p)}
        self._ranks, self._clip = ranks, spec.clip
        self._rate = 1.0 if spec.muon_learning_rate is None else spec.muon_learning_rate / spec.learning_rate
        self._matrices = Matrices(mine, spec, ranks)
        self._rest = MasterAdamW(model, spec, dtype, ranks, without=mine)
        self._matrices.attach(dtype)
        self.size = sum(parameter.numel() for parameter in trained.values())
        """Trainable parameters."""

    def sum_gradients(self) -> Tensor:
        """Sum the gradients over ranks and return their norm before clipping, a scalar."""
        own = self._ranks.sum_shares(self._matrices.gradient)
        squares = self._ranks.sum_(torch.linalg.vector_norm(own).square())
        return (squares + self._rest.sum_gradients().square()).sqrt()

    def step(self, learning_rate: float, norm: Tensor, skip: Tensor | None = None) -> None:
        """Take one step with the gradients, clipped, and forget them; arguments as in `MasterAdamW.step`."""
        clip = (self._clip / (norm + 1e-6)).clamp(max=1.0)
        self._matrices.step(learning_rate * self._rate, clip, skip)
        self._rest.step(learning_rate, norm, skip)
        self._matrices.forget()

    def forget(self) -> None:
        """Drop the gradients collected so far."""
        self._matrices.forget()
        self._rest.forget()

    @property
    def unmade_bytes(self) -> int:
        """Return the bytes that adding up gradients of several passes would take, and that nothing has taken yet."""
        return self._rest.unmade_bytes

    @property
    def state_bytes(self) -> int:
        """Return the bytes of what `state` returns on the first rank."""
        return FP32_BYTES * len(BUFFERS) * (self.size - self._rest.size) + self._rest.state_bytes

    def state(self) -> dict[str, Tensor]:
        """Return a copy of weights, momenta, moments and step count by parameter name, fp32 on the CPU.

        Only the first rank gets it, the others nothing: it is the same however many ranks there are.
        """
        found: dict[str, Tensor] = {}
        for kind, own in self._matrices.buffers().items():
            joined = self._ranks.collect(own)
            if joined is not None:
                found |= {f"{kind}.{name}": view.clone() for name, view in self._matrices.views(joined).items()}
        return {**found, **self._rest.state()}

    def load(self, state: Mapping[str, Tensor] | None, *, moments: bool = True) -> None:
        """Take over a saved state; arguments and errors as in `MasterAdamW.load`."""
        kinds = BUFFERS if moments else BUFFERS[:1]
        if state is not None:
            self._check(state, kinds)
        self._rest.load(state, moments=moments)
        for kind in kinds:
            named = None if state is None else {p.name: state[f"{kind}.{p.name}"] for p in self._matrices.places}
            flat = None if named is None else self._matrices.flat(named)
            self._ranks.hand_out(flat, self._matrices.buffers()[kind])
        self._matrices.refresh()

    def _check(self, state: Mapping[str, Tensor], kinds: tuple[str, ...]) -> None:
        for place in self._matrices.places:
            for name in (f"{kind}.{place.name}" for kind in kinds):
                if name not in state or state[name].shape != place.shape:
                    found = f"has shape {tuple(state[name].shape)}" if name in state else "is missing"
                    raise CheckpointError(
                        f"saved state: {name} {found}; wanted {tuple(place.shape)}: another draft shape or optimizer?"
                    )


OPTIMIZERS: Mapping[str, Callable[[nn.Module, Optimization, torch.dtype, Ranks], MasterAdamW | MasterMuon]] = {
    "adamw": MasterAdamW,
    "muon": MasterMuon,
}
"""`Optimization.optimizer` -> what steps the parameters."""
