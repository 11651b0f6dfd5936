"""Random queries through SGLang's Triton kernel for extending, in Triton's interpreter, and through what stands in.

SGLang's layers say how many positions before its own a query sees; its backend for CPUs hands its kernels one more, the
query's own. Run by SGLang's python: `python beside_triton.py [MORE]`. It prints a line of JSON for each window: the
largest difference, where what stands in is told the window and MORE, which should be far apart for any but 0.

Legend: T positions, Q those of the queries, H heads, G heads of keys, D size of a head.
"""

import importlib
import json
import sys

import torch

importlib.import_module("sgl_kernel")  # registers what stands in

HEADS, KEY_HEADS, SIZE = 4, 2, 16
ROWS = ((0, 40), (37, 5), (3, 1), (90, 4))
"""Positions before, and new ones, of each row: a prompt, two verified rounds, and one position."""


def compared(before: int, more: int) -> float:
    """Return how far both kernels are apart where a query sees so many positions before its own."""
    torch.manual_seed(before)
    known, new = (torch.tensor([row[part] for row in ROWS]) for part in (0, 1))
    lengths, total = known + new, int((known + new).sum())
    k_TGD, v_TGD = torch.randn(2, total, KEY_HEADS, SIZE)
    table, at = torch.zeros(len(ROWS), int(lengths.max()), dtype=torch.int64), torch.randperm(total)
    for row, places in enumerate(at.split(lengths.tolist())):
        table[row, : len(places)] = places
    own = torch.cat([table[row, first:last] for row, (first, last) in enumerate(zip(known, lengths, strict=True))])
    q_QHD = torch.randn(int(new.sum()), HEADS, SIZE)
    starts = new.cumsum(0) - new
    ours, theirs = torch.empty_like(q_QHD), torch.empty_like(q_QHD)
    k_QGD, v_QGD, most = k_TGD[own], v_TGD[own], int(new.max())
    torch.ops.sgl_kernel.extend_attention_cpu(
        q_QHD, k_QGD, v_QGD, ours, k_TGD, v_TGD, 1.0, 1.0, table, torch.arange(len(ROWS)), lengths, new, starts, most,
        SIZE**-0.5, 0.0, False, before + 1 + more, None, None, None, True,
    )  # fmt: skip
    near = [table[row, max(0, int(end) - before) : end] for row, end in enumerate(known)]  # as its backend gathers them
    counts = torch.tensor([len(each) for each in near])
    importlib.import_module("sglang.kernels.ops.attention.extend_attention").extend_attention_fwd(
        q_QHD, k_QGD, v_QGD, theirs, k_TGD, v_TGD, _pointers(new), _pointers(counts), torch.cat(near), None, True,
        None, most, 1.0, 1.0, sliding_window_size=before, window_kv_offsets=known - counts,
    )  # fmt: skip
    return float((ours - theirs).abs().max())


def _pointers(counts: torch.Tensor) -> torch.Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)


if __name__ == "__main__":
    for window in (2, 4, 15, 63):
        told = int(sys.argv[1]) if len(sys.argv) > 1 else 0
        sys.stdout.write(json.dumps({"before": window, "apart": compared(window, told)}) + "\n")
