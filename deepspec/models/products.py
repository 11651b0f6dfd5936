"""Products with a large matrix whose rows are a vocabulary, into fp32 buffers.

bf16 weights on a CPU without bf16 instructions: torch multiplies them four times slower than fp32 ones, so they are
widened a tile at a time (measured here: 30 against 130 GFLOP/s). Everywhere else the product is taken in the weights'
own dtype.
"""

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

TILE_ROWS = 4096
"""Rows of the matrix that are widened, or gathered gradients for, at a time."""


class Product:
    """The matrix W of `(V, D)`, ready to be multiplied."""

    def __init__(self, weight_VD: Tensor) -> None:
        """Decide how: directly, narrowed and copied, or in widened tiles."""
        self.weight_VD = weight_VD
        narrow = weight_VD.dtype in (torch.bfloat16, torch.float16)
        self._tiled = narrow and weight_VD.device.type == "cpu" and not _cpu_multiplies_bf16()
        self._tile = weight_VD.new_empty(TILE_ROWS, weight_VD.shape[1], dtype=torch.float32) if self._tiled else None

    def forward(self, x_MD: Tensor, out_MV: Tensor, *, add: bool = False) -> None:
        """Write x Wᵀ into a buffer, or add it to what is there."""
        if self._tiled:
            wide_MD = x_MD.to(out_MV.dtype)
            for span, tile in self._tiles():
                out_MV[:, span].addmm_(wide_MD, tile.T, beta=float(add))
        elif self.weight_VD.dtype == out_MV.dtype:
            out_MV.addmm_(x_MD, self.weight_VD.T, beta=float(add))
        elif add:
            out_MV.add_(x_MD @ self.weight_VD.T)
        else:
            out_MV.copy_(x_MD @ self.weight_VD.T)

    def backward(self, grad_MV: Tensor) -> Tensor:
        """Return the gradient of x, g W: `(M, D)`."""
        if not self._tiled:
            return grad_MV.to(self.weight_VD.dtype) @ self.weight_VD
        out_MD = grad_MV.new_zeros(len(grad_MV), self.weight_VD.shape[1])
        for span, tile in self._tiles():
            out_MD.addmm_(grad_MV[:, span], tile)
        return out_MD

    def accumulate(self, total_VD: Tensor, grad_MV: Tensor, x_MD: Tensor) -> None:
        """Add the gradient of W, gᵀ x, to a total, a tile at a time: BLAS packs what it multiplies."""
        dtype = total_VD.dtype if self._tiled else self.weight_VD.dtype
        x_MD = x_MD.to(dtype)
        for span in self._spans():
            if dtype == total_VD.dtype:
                total_VD[span].addmm_(grad_MV[:, span].T, x_MD)
            else:
                total_VD[span] += grad_MV[:, span].to(dtype).T @ x_MD

    def _tiles(self) -> Iterator[tuple[slice, Tensor]]:
        if self._tile is None:
            raise RuntimeError("this matrix is multiplied directly, without tiles")
        for span in self._spans():
            rows = self.weight_VD[span]
            yield span, self._tile[: len(rows)].copy_(rows)

    def _spans(self) -> Iterator[slice]:
        for start in range(0, len(self.weight_VD), TILE_ROWS):
            yield slice(start, min(start + TILE_ROWS, len(self.weight_VD)))


@cache
def _cpu_multiplies_bf16() -> bool:
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16"))
