"""The processes that train together: who this one is, and what passes between them.

Flat buffers are cut into equal shares, one a rank, so that each rank keeps the masters and moments of its own only.
"""

import socket
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from deepspec.errors import CancelledError

PATIENCE = timedelta(days=7)
"""How long ranks wait for each other: the first one may read, fit or fetch for hours. One that dies ends the others
through their launcher, not through a deadline."""


class Ranks:
    """One or many processes; with one, every sum is the value itself. Use as a context manager.

    Many are started by `accelerate launch` or torchrun: nothing else is needed for them to find each other.
    """

    def __init__(self, device: str) -> None:
        """Join the processes that a launcher started, if any.

        Args:
            device: `cpu` (gloo), or `cuda` (nccl; each rank takes the device of its local number).
        """
        self._state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
        self.count: int = self._state.num_processes
        self.rank: int = self._state.process_index
        self.device = torch.device(device) if self.count == 1 else self._state.device
        self._host = dist.new_group(backend="gloo", timeout=PATIENCE) if self.count > 1 else None
        """What passes between the hosts alone: no card waits for it, and it waits for no card."""
        hosts = [socket.gethostname()] * self.count
        if self.count > 1:
            dist.all_gather_object(hosts, hosts[0], group=self._host)
        self.machines = len(set(hosts))
        """Machines that the processes run on."""

    @property
    def first(self) -> bool:
        """Return whether this is the rank that writes and speaks."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over ranks, and return it."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def least(self, number: int) -> int:
        """Return the smallest of the ranks' numbers."""
        if self.count == 1:
            return number
        told = torch.tensor(number)
        dist.all_reduce(told, dist.ReduceOp.MIN, group=self._host)
        return int(told)

    def sum_named(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums over ranks of small tensors, in one message; every rank gives the same names and shapes."""
        if self.count == 1:
            return dict(values)
        names = sorted(values)
        flat = torch.cat([values[name].detach().double().flatten() for name in names]).to(self.device)
        parts = torch.split(self.sum_(flat), [values[name].numel() for name in names])
        return {
            name: part.view(values[name].shape).to(values[name].dtype) for name, part in zip(names, parts, strict=True)
        }

    def padded(self, size: int) -> int:
        """Return the size of a flat buffer that can be cut into equal shares."""
        return -(-size // self.count) * self.count

    def share(self, flat: Tensor) -> Tensor:
        """Return this rank's share of a flat buffer, a view."""
        size = len(flat) // self.count
        return flat[self.rank * size : (self.rank + 1) * size]

    def sum_shares(self, flat: Tensor) -> Tensor:
        """Return this rank's share of a flat buffer summed over ranks; the rest of the buffer loses its meaning."""
        own = self.share(flat)
        if self.count == 1:
            return own
        summed = torch.empty_like(own)
        dist.reduce_scatter_tensor(summed, flat)
        return own.copy_(summed)

    def join_shares(self, own: Tensor, flat: Tensor) -> None:
        """Fill a flat buffer with the shares of all ranks."""
        if self.count == 1:
            flat.copy_(own)
        else:
            dist.all_gather_into_tensor(flat, own)

    def collect(self, own: Tensor) -> Tensor | None:
        """Return all shares joined, a copy on the CPU, on the first rank; None on the others.

        One share travels at a time: the first rank's device holds no more than two.
        """
        if not self.first:
            dist.send(own.contiguous(), 0)
            return None
        joined = torch.empty(len(own) * self.count, dtype=own.dtype)
        self.share(joined).copy_(own)
        passing = torch.empty_like(own)
        for rank in range(1, self.count):
            dist.recv(passing, rank)
            joined[rank * len(own) : (rank + 1) * len(own)].copy_(passing)
        return joined

    def hand_out(self, flat: Tensor | None, own: Tensor) -> None:
        """Fill every rank's share from the flat buffer that the first rank gives; the others give None."""
        if flat is None:
            received = torch.empty_like(own)
            dist.recv(received, 0)
            own.copy_(received)
            return
        for rank in range(1, self.count):
            dist.send(flat[rank * len(own) : (rank + 1) * len(own)].to(own.device), rank)
        own.copy_(self.share(flat))

    def copy_from_first_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by the first rank's, and return it."""
        if self.count > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def told(self, value: Any) -> Any:
        """Return the first rank's value."""
        told = [value]
        if self.count > 1:
            dist.broadcast_object_list(told, src=0, group=self._host)
        return told[0]

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on some rank."""
        if self.count == 1:
            return flag
        told = torch.tensor(float(flag))
        dist.all_reduce(told, group=self._host)
        return bool(told > 0)

    def wait(self) -> None:
        """Return when every rank has come here, however long one of them is busy by itself."""
        if self.count > 1:
            dist.barrier(group=self._host)

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the communication where all ranks come to the same end, so that their processes can end quietly.

        One that fails takes no leave: that waits for the other cards, which wait for this one, and the launcher would
        not hear of it.
        """
        if self.count > 1 and (error is None or isinstance(error, CancelledError)):
            self._state.destroy_process_group()
