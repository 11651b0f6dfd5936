"""The processes that train together: who this one is, and sums over all of them."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor


class Ranks:
    """One or many processes; with one, every sum is the value itself.

    Many are started by `accelerate launch` or torchrun: nothing else is needed for them to find each other.
    """

    def __init__(self, device: str) -> None:
        """Join the processes that a launcher started, if any.

        Args:
            device: `cpu` (gloo), or `cuda` (nccl; each rank takes the device of its local number).
        """
        self._state = PartialState(cpu=device == "cpu")
        self.count: int = self._state.num_processes
        self.rank: int = self._state.process_index
        self.device = torch.device(device) if self.count == 1 else self._state.device

    @property
    def first(self) -> bool:
        """Return whether this is the rank that writes and speaks."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over ranks, and return it."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_named(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums over ranks of small tensors, in one message; every rank gives the same names and shapes."""
        if self.count == 1:
            return dict(values)
        names = sorted(values)
        flat = torch.cat([values[name].detach().double().flatten() for name in names])
        parts = torch.split(self.sum_(flat), [values[name].numel() for name in names])
        return {
            name: part.view(values[name].shape).to(values[name].dtype) for name, part in zip(names, parts, strict=True)
        }

    def copy_from_first_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by the first rank's, and return it."""
        if self.count > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on some rank."""
        return bool(self.sum_(torch.tensor(float(flag), device=self.device)) > 0)

    def wait(self) -> None:
        """Return when every rank has come here."""
        self._state.wait_for_everyone()

    def leave(self) -> None:
        """End the communication, so that the process can end quietly."""
        if self.count > 1:
            self._state.destroy_process_group()
