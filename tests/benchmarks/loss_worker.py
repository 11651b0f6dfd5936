"""Times the loss, forward and backward, by torch's functions and by the kernel, in one run.

    python -m tests.benchmarks.loss_worker dspark eagle3              # CUDA, shapes of Qwen3-4B
    TRITON_INTERPRET=1 python -m tests.benchmarks.loss_worker small   # anywhere: whether it runs, not how fast

Both are told the same rows, take turns, and what they found is compared. Times are of the device; the kernel is also
timed alone, without the products, beside the bytes that its passes ask for.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor

from deepspec.kernels import Kernel
from deepspec.losses.chunked import CHUNK_ROWS, chunked_loss
from deepspec.losses.rows import Head, Rows
from deepspec.losses.terms import Terms

KERNELS: tuple[Kernel, ...] = ("torch", "triton")
WARM, ROUNDS = 3, 20


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is supervised in a micro-batch, and with which terms."""

    rows: int
    positions: int
    """Distinct target positions."""
    size: int
    vocab: int
    rank: int
    """0: no Markov head."""
    terms: Terms


SHAPES = {
    "dspark": Shape(rows=3584, positions=2388, size=2560, vocab=151_936, rank=256,
                    terms=Terms(cross_entropy=0.1, total_variation=0.9)),
    "dflash": Shape(rows=3584, positions=2388, size=2560, vocab=151_936, rank=0, terms=Terms(cross_entropy=1.0)),
    "eagle3": Shape(rows=14_336, positions=2048, size=2560, vocab=151_936, rank=0, terms=Terms(soft_cross_entropy=1.0)),
    "small": Shape(rows=12, positions=8, size=16, vocab=300, rank=4,
                   terms=Terms(cross_entropy=0.1, total_variation=0.9)),
}  # fmt: skip
"""512 anchors of 7 slots in 4096 tokens meet 2388 positions; 7 steps of 2048 tokens meet all."""


def rows_of(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Rows, Head]:
    """Return rows of random states, logits about as far apart as a model's, and the head."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, device=device).to(dtype)

    index = torch.arange(shape.rows) * shape.positions // shape.rows
    rows = Rows(
        hidden=normal(shape.rows, shape.size).requires_grad_(),
        labels=torch.randint(0, shape.vocab, (shape.rows,), generator=generator, device=device),
        weights=torch.full((shape.rows,), 1 / shape.rows, device=device),
        target=normal(shape.positions, shape.size),
        target_index=index.to(device),
        on_host=index.numpy(),
        markov=normal(shape.rows, shape.rank).requires_grad_() if shape.rank else None,
        markov_weight=(0.1 * normal(shape.vocab, shape.rank)).requires_grad_() if shape.rank else None,
    )
    return rows, Head(weight=normal(shape.vocab, shape.size) * (3 / shape.size**0.5))


def compare(shape: Shape, device: torch.device, dtype: torch.dtype, rounds: int = ROUNDS) -> dict[str, object]:
    """Return times and added memory of both kernels, the ratio of times of each pair, and how far results are apart."""
    rows, head = rows_of(shape, device, dtype)
    leaves = [leaf for leaf in (rows.hidden, rows.markov, rows.markov_weight) if leaf is not None]
    found: dict[Kernel, list[Tensor]] = {}
    seconds: dict[Kernel, list[float]] = {kernel: [] for kernel in KERNELS}
    peaks: dict[Kernel, float] = {}
    for number in range(WARM + rounds):
        for kernel in KERNELS:

            def step(kernel: Kernel = kernel) -> None:
                with patch("deepspec.losses.chunked.kernel_of", lambda device: kernel):
                    loss, _ = chunked_loss(rows, head, shape.terms)
                found[kernel] = [loss.detach(), *torch.autograd.grad(loss, leaves)]

            found.pop(kernel, None)
            taken, peaks[kernel] = timed(step, device)
            seconds[kernel] += [taken] * (number >= WARM)
    apart = [off(ours, theirs) for ours, theirs in zip(found["triton"], found["torch"], strict=True)]
    ratios = [ours / theirs for ours, theirs in zip(seconds["triton"], seconds["torch"], strict=True)]
    return {
        "milliseconds": {kernel: spread(taken, 1e3) for kernel, taken in seconds.items()},
        "ratio": spread(ratios),
        "peak_gib": peaks,
        "apart": apart,
    }


def alone(shape: Shape, device: torch.device, dtype: torch.dtype, rounds: int = ROUNDS) -> dict[str, object]:
    """Return times of a chunk's launches without its products, and the bytes a second that its passes ask for."""
    from deepspec.losses.triton_chunks import TritonChunks

    rows, head = rows_of(shape, device, dtype)
    chunks = TritonChunks(rows, head, shape.terms, with_target=True, most=CHUNK_ROWS)
    span, positions = chunks.spans[0]

    def launch() -> None:
        chunks._normalize(positions)
        chunks._launch(span, positions, with_gradients=True)

    seconds = []
    for _ in range(WARM + rounds):
        chunks._take_products(span, positions)  # the gradient may have taken the logits' place
        seconds.append(timed(launch, device)[0])
    passes = 3 if shape.terms.total_variation else 2
    read = (span.stop - span.start) * (2 * passes - 1) + positions.stop - positions.start
    asked = shape.vocab * (4 * read + chunks.logits_grad.element_size() * (span.stop - span.start))
    taken = statistics.median(seconds[WARM:])
    return {"milliseconds": spread(seconds[WARM:], 1e3), "gigabytes": asked / 1e9, "per_second": asked / 1e9 / taken}


def timed(step: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Return the seconds of a step, and the GiB that it added at most."""
    if device.type != "cuda":
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin, 0.0
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    begun.record()
    step()
    ended.record()
    torch.cuda.synchronize(device)
    return begun.elapsed_time(ended) / 1e3, (torch.cuda.max_memory_allocated(device) - before) / 2**30


def off(ours: Tensor, theirs: Tensor) -> float:
    """Return ‖ours − theirs‖ / ‖theirs‖."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def spread(values: list[float], scale: float = 1.0) -> dict[str, float]:
    """Return median, least and most."""
    return {name: scale * of(values) for name, of in (("median", statistics.median), ("least", min), ("most", max))}


def main(*names: str) -> None:
    """Print a line of JSON for each shape."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rounds = ROUNDS if device.type == "cuda" else 2
    for name in names:
        told = {"shape": name, "device": where, **compare(SHAPES[name], device, dtype, rounds)}
        print(json.dumps(told | {"alone": alone(SHAPES[name], device, dtype, rounds)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
