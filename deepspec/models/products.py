"""Products with a large matrix whose rows are a vocabulary, into fp32 buffers.

Weights of 16 bits are multiplied in one of three ways:

- on a CPU without bf16 instructions torch multiplies them four times slower than fp32 ones, so they are widened a tile
  at a time (measured here: 30 against 130 GFLOP/s);
- CUDA adds up their products in fp32, and writes the sums as they are;
- elsewhere the sums are rounded to the weights' own dtype, and widened.
"""

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

TILE_ROWS = 4096
"""Rows of the matrix that a CPU widens, or gathers gradients for, at a time."""
NARROW = (torch.bfloat16, torch.float16)


def product_of(weight_VD: Tensor, bias_V: Tensor | None = None) -> "MatrixProduct":
    """Return the matrix W of `(V, D)`, to be multiplied in the way that suits its dtype and its device.

    Args:
        weight_VD: the matrix.
        bias_V: added to every product forward; it takes no gradient.
    """
    return _plain(weight_VD) if bias_V is None else BiasedProduct(_plain(weight_VD), bias_V)


def _plain(weight_VD: Tensor) -> "MatrixProduct":
    if weight_VD.dtype in NARROW and weight_VD.device.type == "cuda":
        return WideProduct(weight_VD)
    if weight_VD.dtype in NARROW and weight_VD.device.type == "cpu" and not _cpu_multiplies_bf16():
        return TiledProduct(weight_VD)
    return MatrixProduct(weight_VD)


class MatrixProduct:
    """The matrix W of `(V, D)`, multiplied in its own dtype."""

    def __init__(self, weight_VD: Tensor) -> None:
        """Take the matrix as it is."""
        self.weight_VD = weight_VD

    def forward(self, x_MD: Tensor, out_MV: Tensor, *, add: bool = False) -> None:
        """Write x Wᵀ into a buffer, or add it to what is there."""
        if self.weight_VD.dtype == out_MV.dtype:
            out_MV.addmm_(x_MD, self.weight_VD.T, beta=float(add))
        elif add:
            out_MV.add_(x_MD @ self.weight_VD.T)
        else:
            out_MV.copy_(x_MD @ self.weight_VD.T)

    def backward(self, grad_MV: Tensor) -> Tensor:
        """Return the gradient of x, g W: `(M, D)`."""
        return grad_MV.to(self.weight_VD.dtype) @ self.weight_VD

    def accumulate(self, total_VD: Tensor, grad_MV: Tensor, x_MD: Tensor) -> None:
        """Add the gradient of W, gᵀ x, to a total; on a CPU a tile at a time, because BLAS packs what it multiplies."""
        self._accumulate(total_VD, grad_MV, x_MD, self.weight_VD.dtype)

    def _accumulate(self, total_VD: Tensor, grad_MV: Tensor, x_MD: Tensor, dtype: torch.dtype) -> None:
        x_MD = x_MD.to(dtype)
        for span in self._spans():
            if dtype == total_VD.dtype:
                total_VD[span].addmm_(grad_MV[:, span].T.to(dtype), x_MD)
            else:
                total_VD[span] += grad_MV[:, span].to(dtype).T @ x_MD

    def _spans(self) -> Iterator[slice]:
        rows = len(self.weight_VD)
        step = TILE_ROWS if self.weight_VD.device.type == "cpu" else rows
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))


class TiledProduct(MatrixProduct):
    """A narrow matrix on a CPU, widened to fp32 a tile at a time."""

    def __init__(self, weight_VD: Tensor) -> None:
        """Make the tile."""
        super().__init__(weight_VD)
        self._tile = weight_VD.new_empty(TILE_ROWS, weight_VD.shape[1], dtype=torch.float32)

    def forward(self, x_MD: Tensor, out_MV: Tensor, *, add: bool = False) -> None:
        """Write x Wᵀ into a buffer, or add it to what is there."""
        wide_MD = x_MD.to(out_MV.dtype)
        for span, tile in self._tiles():
            out_MV[:, span].addmm_(wide_MD, tile.T, beta=float(add))

    def backward(self, grad_MV: Tensor) -> Tensor:
        """Return the gradient of x, g W: `(M, D)`."""
        out_MD = self._tile.new_zeros(len(grad_MV), self.weight_VD.shape[1])
        for span, tile in self._tiles():
            out_MD.addmm_(grad_MV[:, span].to(tile.dtype), tile)
        return out_MD

    def accumulate(self, total_VD: Tensor, grad_MV: Tensor, x_MD: Tensor) -> None:
        """Add the gradient of W, gᵀ x, to a total."""
        self._accumulate(total_VD, grad_MV, x_MD, total_VD.dtype)

    def _tiles(self) -> Iterator[tuple[slice, Tensor]]:
        for span in self._spans():
            rows = self.weight_VD[span]
            yield span, self._tile[: len(rows)].copy_(rows)


class WideProduct(MatrixProduct):
    """A narrow matrix on CUDA: what is summed in fp32 comes out in fp32.

    A gradient of x is a sum over the whole vocabulary, which cuBLAS splits: its parts are added in what comes out.
    """

    def forward(self, x_MD: Tensor, out_MV: Tensor, *, add: bool = False) -> None:
        """Write x Wᵀ into a buffer, or add it to what is there."""
        if add:
            torch.addmm(out_MV, x_MD, self.weight_VD.T, out_dtype=out_MV.dtype, out=out_MV)
        else:
            torch.mm(x_MD, self.weight_VD.T, out_dtype=out_MV.dtype, out=out_MV)

    def backward(self, grad_MV: Tensor) -> Tensor:
        """Return the gradient of x, g W: `(M, D)`."""
        return torch.mm(grad_MV.to(self.weight_VD.dtype), self.weight_VD, out_dtype=torch.float32)

    def accumulate(self, total_VD: Tensor, grad_MV: Tensor, x_MD: Tensor) -> None:
        """Add the gradient of W, gᵀ x, to a total."""
        dtype = self.weight_VD.dtype
        torch.addmm(total_VD, grad_MV.to(dtype).T, x_MD.to(dtype), out_dtype=total_VD.dtype, out=total_VD)


class BiasedProduct(MatrixProduct):
    """A matrix whose products have a constant bias: gradients know nothing of it."""

    def __init__(self, product: MatrixProduct, bias_V: Tensor) -> None:
        """Take the way in which the matrix is multiplied."""
        super().__init__(product.weight_VD)
        self._product, self._bias_V = product, bias_V

    def forward(self, x_MD: Tensor, out_MV: Tensor, *, add: bool = False) -> None:
        """Write x Wᵀ + b into a buffer, or add it to what is there."""
        self._product.forward(x_MD, out_MV, add=add)
        out_MV.add_(self._bias_V)

    def backward(self, grad_MV: Tensor) -> Tensor:
        """Return the gradient of x, g W: `(M, D)`."""
        return self._product.backward(grad_MV)

    def accumulate(self, total_VD: Tensor, grad_MV: Tensor, x_MD: Tensor) -> None:
        """Add the gradient of W, gᵀ x, to a total."""
        self._product.accumulate(total_VD, grad_MV, x_MD)


@cache
def _cpu_multiplies_bf16() -> bool:
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16"))
