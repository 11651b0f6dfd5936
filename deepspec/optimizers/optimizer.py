"""AdamW on fp32 master weights, cut over the ranks: each keeps the masters and moments of its own share.

The model computes in its own precision. Gradients of several micro-batches are added in fp32 in one flat buffer, then
summed over ranks, each rank receiving its share: so how a global batch was cut changes the order of additions and
nothing else. Each rank steps its share and hands the new weights to the others. With one rank the share is everything,
and on a card a step of one micro-batch reads the gradients where they are (gradients.py, triton_adam.py).
Why not fully_shard: docs/adr/0005-shares-of-one-flat-buffer.md.
"""

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from deepspec.errors import CheckpointError
from deepspec.kernels import kernel_of
from deepspec.optimizers.gradients import Gradients, Stretch, total_norm
from deepspec.optimizers.optimization import Optimization
from deepspec.steps.ranks import Ranks

BUFFERS = ("master", "exp_avg", "exp_avg_sq")
"""Prefixes of the names in a saved state: the weights and the two moments of AdamW."""


FP32_BYTES = 4


class MasterAdamW:
    """The trainable parameters of a model, and how they step.

    The model's parameters become views of one buffer; its gradients are collected as `backward` makes them. Every rank
    makes one, and calls each method that speaks of ranks at the same time.
    """

    def __init__(
        self, model: nn.Module, spec: Optimization, dtype: torch.dtype, ranks: Ranks, without: Collection[str] = ()
    ) -> None:
        """Take over the first rank's values of what `model` trains, but some, and cast the model to `dtype`."""
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad and n not in without}
        self._ranks, self._spec = ranks, spec
        self.size = sum(parameter.numel() for parameter in self._parameters.values())
        """Trainable parameters."""
        flat = ranks.copy_from_first_(self._flat({name: p.detach() for name, p in self._parameters.items()}))
        self.master = nn.Parameter(flat if ranks.count == 1 else ranks.share(flat).clone())
        """This rank's share of the fp32 weights."""
        model.to(dtype)
        self._working = flat.to(dtype)  # with one rank in fp32 the master itself
        self._moments = {
            "step": torch.zeros((), device=self.master.device),
            "exp_avg": torch.zeros_like(self.master),
            "exp_avg_sq": torch.zeros_like(self.master),
        }
        self._adam = torch.optim.AdamW(
            [self.master], spec.learning_rate, spec.betas, spec.epsilon, spec.weight_decay, fused=True
        )
        self._adam.state[self.master] = self._moments
        self._in_triton = kernel_of(flat.device) == "triton"
        for name, working in self._views(self._working).items():
            self._parameters[name].data = working
        keeps = self._in_triton and ranks.count == 1
        self._gradients = Gradients(self._parameters, lambda: torch.zeros_like(flat), self._views, keeps=keeps)

    @property
    def gradient(self) -> Tensor:
        """Return the gradients of all parameters in the flat buffer; once summed, this rank's share of it counts."""
        return self._gradients.sums()

    @property
    def unmade_bytes(self) -> int:
        """Return the bytes that adding up gradients of several passes would take, and that nothing has taken yet.

        The first pass's own gradients are among them, which lie there until the second pass has made its.
        """
        kept = self._working.element_size() * self.size
        return 0 if self._gradients.made else FP32_BYTES * self._ranks.padded(self.size) + kept

    def sum_gradients(self) -> Tensor:
        """Sum the gradients over ranks and return their norm before clipping, a scalar."""
        kept = self._gradients.kept()
        if kept:
            return total_norm(kept)
        own = self._ranks.sum_shares(self.gradient)
        norm: Tensor = torch.linalg.vector_norm(own)
        return norm if self._ranks.count == 1 else self._ranks.sum_(norm.square()).sqrt()

    def step(self, learning_rate: float, norm: Tensor, skip: Tensor | None = None) -> None:
        """Take one step with the gradients, clipped, and forget them.

        Args:
            learning_rate: of this step.
            norm: what `sum_gradients` returned.
            skip: 1 on the device where nothing may move, not even the step count; else 0.
        """
        clip = (self._spec.clip / (norm + 1e-6)).clamp(max=1.0)
        (self._step_in_triton if self._in_triton else self._step_in_torch)(learning_rate, clip, skip)
        self.forget()

    def forget(self) -> None:
        """Drop the gradients collected so far."""
        self._gradients.forget()

    def _step_in_torch(self, learning_rate: float, clip: Tensor, skip: Tensor | None) -> None:
        self.master.grad = self._ranks.share(self.gradient).mul_(clip)
        self._adam.param_groups[0]["lr"] = learning_rate
        self._adam.found_inf = skip  # type: ignore[attr-defined]  # what a fused AdamW heeds, as GradScaler tells it
        self._adam.step()
        self._refresh()

    @torch.no_grad()
    def _step_in_triton(self, learning_rate: float, clip: Tensor, skip: Tensor | None) -> None:
        from deepspec.optimizers.triton_adam import step_stretches  # torch for CPUs comes without Triton

        moves = torch.ones_like(clip) if skip is None else 1 - skip
        self._moments["step"].add_(moves)
        step_stretches(self._stretches(), self._spec, learning_rate, (clip, moves, self._moments["step"]))
        if self._ranks.count > 1:
            self._refresh()

    def _stretches(self) -> Iterator[Stretch]:
        """Yield what the kernel steps: parameter by parameter where gradients lie so, else the share at once."""
        own = self.master.detach(), self._moments["exp_avg"], self._moments["exp_avg_sq"]
        narrow = self._ranks.count == 1 and self._working.dtype != self.master.dtype
        kept = self._gradients.kept()
        if kept is None:
            yield Stretch(*own, self._ranks.share(self.gradient), self._working if narrow else None)
            return
        master, first, second, working = (self._views(each) for each in (*own, self._working))
        for name in self._parameters:
            at = master[name], first[name], second[name]
            yield Stretch(*at, kept.get(name), working[name] if narrow else None)

    @property
    def state_bytes(self) -> int:
        """Return the bytes of what `state` returns on the first rank."""
        return FP32_BYTES * (len(BUFFERS) * self.size + 1)

    def state(self) -> dict[str, Tensor]:
        """Return a copy of weights, moments and step count by parameter name, fp32 on the CPU.

        Only the first rank gets it, the others nothing: it is the same however many ranks there are.
        """
        found: dict[str, Tensor] = {}
        for kind, own in self._shares().items():
            joined = self._ranks.collect(own)
            if joined is not None:
                found |= {f"{kind}.{name}": view for name, view in self._views(joined).items()}
        return {**found, "step": self._moments["step"].cpu().clone()} if found else {}

    def load(self, state: Mapping[str, Tensor] | None, *, moments: bool = True) -> None:
        """Take over a saved state.

        Args:
            state: what `state` returned, in this process or another, of any number of ranks; None where the first
                rank has it and this one is another.
            moments: whether to take the moments and the step count, too; the same on every rank.

        Raises:
            CheckpointError: names or shapes are not those of this model; nothing is changed.
        """
        kinds = BUFFERS if moments else BUFFERS[:1]
        if state is not None:
            self._check(state, kinds)
        with torch.no_grad():
            for kind in kinds:
                named = None if state is None else {name: state[f"{kind}.{name}"] for name in self._parameters}
                self._ranks.hand_out(None if named is None else self._flat(named), self._shares()[kind])
            if moments:
                step = self._moments["step"]
                self._ranks.copy_from_first_(step if state is None else step.copy_(state["step"]))
        self._refresh()

    def _check(self, state: Mapping[str, Tensor], kinds: tuple[str, ...]) -> None:
        wanted = {f"{kind}.{name}": p.shape for kind in kinds for name, p in self._parameters.items()}
        for name, shape in wanted.items():
            if name not in state or state[name].shape != shape:
                found = f"has shape {tuple(state[name].shape)}" if name in state else "is missing"
                raise CheckpointError(f"saved state: {name} {found}; wanted {tuple(shape)}: another draft shape?")

    def _shares(self) -> dict[str, Tensor]:
        return {"master": self.master.detach(), **{kind: self._moments[kind] for kind in BUFFERS[1:]}}

    def _flat(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return tensors by parameter name in one fp32 buffer, padded so that it can be shared out."""
        flat = torch.cat([named[name].float().flatten() for name in self._parameters])
        return nn.functional.pad(flat, (0, self._ranks.padded(self.size) - self.size))

    def _views(self, buffer: Tensor) -> dict[str, Tensor]:
        sizes = [parameter.numel() for parameter in self._parameters.values()]
        pieces = zip(self._parameters.items(), torch.split(buffer[: self.size], sizes), strict=True)
        return {name: piece.view(parameter.shape) for (name, parameter), piece in pieces}

    def _refresh(self) -> None:
        """Let the model compute with the masters of all ranks."""
        if self._working.data_ptr() == self.master.data_ptr():
            return
        with torch.no_grad():
            if self._ranks.count == 1:
                self._working.copy_(self.master)
            else:
                self._ranks.join_shares(self.master.detach().to(self._working.dtype), self._working)
