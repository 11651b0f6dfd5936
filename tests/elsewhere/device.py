"""A device that computes on the CPU, says that it is another one, and refuses to mix: what a machine without a GPU can
know of whether tensors end up on the device that they are needed on.

Tensors come to it by `.to("elsewhere")` and by factories with `device=`; they leave it by what reads values on the host
(`.cpu()`, `.tolist()`, `.item()`, `bool()`), which is counted in `reads`. An operation on tensors of both devices is an
error, as on a real one; a number in a tensor of no dimension goes with either.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("elsewhere")
DEVICE = torch.device("elsewhere", 0)
"""torch's room for devices that it does not know: code that asks for CUDA takes its general path."""


class MixedDevicesError(RuntimeError):
    """Tensors of two devices in one operation."""


class Elsewhere(Tensor):
    """A tensor that lies elsewhere."""

    held: Tensor

    @staticmethod
    def __new__(cls: type["Elsewhere"], inner: Tensor) -> "Elsewhere":
        with torch.inference_mode(False):  # a view of an ordinary tensor is ordinary in inference mode, too
            made = Tensor._make_wrapper_subclass(
                cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
                device=DEVICE, requires_grad=inner.requires_grad,
            )  # fmt: skip
        made.held = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]  # the C++ one asks the storage
        return f"Elsewhere({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = dict(kwargs or {})
        wanted = kwargs.get("device")
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        moves = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        strangers = [one for one in tensors if not isinstance(one, Elsewhere) and one.dim() > 0]
        if strangers and not moves and any(isinstance(one, Elsewhere) for one in tensors):
            raise MixedDevicesError(f"{func} takes tensors of {DEVICE} and, of the CPU, {[s.shape for s in strangers]}")
        out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if _in_place(func):
            return kwargs["out"] if "out" in kwargs else args[0]
        stays = DEVICE.type == torch.device(wanted).type if wanted is not None else _stays(func, tensors)
        return tree_map(_wrapped, out) if stays else out


def _empty(size: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return Elsewhere(torch.empty(size, dtype=dtype, device="cpu"))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return Elsewhere(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _copy_from(source: Tensor, destination: Tensor, non_blocking: bool = False) -> Tensor:
    del non_blocking
    _inner(destination).copy_(_inner(source))
    return destination


_KERNELS = torch.library.Library("aten", "IMPL")
"""What torch itself asks for on the device, past every hook: an index made of a list, say."""
_KERNELS.impl("empty.memory_format", _empty, "PrivateUse1")
_KERNELS.impl("empty_strided", _empty_strided, "PrivateUse1")
_KERNELS.impl("_copy_from", _copy_from, "PrivateUse1")


def _inner(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


def _wrapped(value: Any) -> Any:
    return Elsewhere(value) if isinstance(value, Tensor) and not isinstance(value, Elsewhere) else value


def _in_place(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and returns[0].alias_info is not None and returns[0].alias_info.is_write


def _stays(func: Any, tensors: list[Tensor]) -> bool:
    return any(isinstance(one, Elsewhere) for one in tensors)


class _There(TorchFunctionMode):
    """Lets tensors come and go by the calls that name a device, and counts the values that are read on the host."""

    READS = frozenset({"tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"})

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        first = args[0] if args else None
        if isinstance(first, Elsewhere) and name in self.READS:
            self.reads.append(name)
            return func(first.held.detach() if name in ("tolist", "numpy") else first.held, *args[1:], **kwargs)
        if name == "__setitem__" and isinstance(first, Elsewhere):
            return self._set(first, args[1], args[2])
        if name == "to" and isinstance(first, Tensor):
            return self._to(first, args[1:], kwargs)
        if _is_there(kwargs.get("device")) and not isinstance(first, Elsewhere):
            kwargs["device"] = "cpu"
            return tree_map(_wrapped, func(*args, **kwargs))
        return func(*args, **kwargs)

    def _set(self, tensor: Elsewhere, index: Any, value: Any) -> None:
        """Assign to part of a tensor; torch makes a tensor of a plain number in C++, past every hook."""
        if isinstance(value, Tensor) and not isinstance(value, Elsewhere) and value.dim() > 0:
            raise MixedDevicesError(f"part of a tensor of {DEVICE} is set to one of the CPU, {value.shape}")
        tensor.held[tree_map(_inner, index)] = _inner(value)

    def _to(self, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **{k: v for k, v in kwargs.items() if k != "copy"})
        if args and isinstance(args[0], Tensor):
            device, dtype = args[0].device, args[0].dtype
        goes = tensor.device if device is None else device
        if _is_there(goes) and not isinstance(tensor, Elsewhere):
            inner = tensor.detach().to(dtype or tensor.dtype, copy=True)
            return Elsewhere(inner.requires_grad_(tensor.requires_grad and inner.is_floating_point()))
        if isinstance(tensor, Elsewhere) and not _is_there(goes):
            self.reads.append("to")
            return tensor.held.to(dtype or tensor.dtype)
        return tensor if dtype in (None, tensor.dtype) else torch.ops.aten._to_copy(tensor, dtype=dtype)


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


@contextmanager
def there() -> Iterator[_There]:
    """Let the block use the device; what it yields has the `reads` on the host."""
    with _There() as mode:
        yield mode
