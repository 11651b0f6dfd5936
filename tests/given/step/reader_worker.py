"""What the reader holds in host memory at the shapes of Qwen3-4B, in a process of its own: prints one JSON object.

python -m tests.given.step.reader_worker SAMPLES MICRO_BATCH WORKERS MB_AHEAD

A step is SAMPLES samples of 870 tokens of five captured states and the last one, bf16, made up as they are read. At
each step the loop stands still until the reader has read as far ahead as it may: a slow card would do the same.
"""

import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from deepspec.records.batch import Record, supervises
from deepspec.records.stream import Cut, Stream
from deepspec.steps.reader import Pace, Reader
from tests.given.drafts.toy import ToyAlgorithm

TOKENS, LAYERS, SIZE = 870, 5, 2560
STEPS = 3
STATUS, REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class MadeUp:
    """A step's samples of one length; states are made when they are read, and kept by nobody here."""

    state_bytes = (LAYERS + 1) * SIZE * 2

    def __init__(self, count: int) -> None:
        self._count = count
        self.made = 0
        self._mask = torch.arange(TOKENS) > 0

    def __len__(self) -> int:
        return self._count

    def order(self, epoch: int) -> Sequence[int]:
        del epoch
        return range(self._count)

    def sample_id(self, number: int) -> str:
        return str(number)

    def length(self, number: int) -> int:
        del number
        return TOKENS

    def record(self, number: int) -> Record:
        self.made += 1
        hidden = torch.full((TOKENS, LAYERS * SIZE), float(number), dtype=torch.bfloat16)
        last = torch.full((int(supervises(self._mask).sum()), SIZE), 1.0, dtype=torch.bfloat16)
        ids, mask = self.tokens(number)
        return Record(sample_id=str(number), input_ids=ids, loss_mask=mask, hidden=hidden, last_hidden=last)

    def ahead(self, numbers: Sequence[int]) -> None:
        del numbers

    def tokens(self, number: int) -> tuple[Tensor, Tensor]:
        del number
        return torch.arange(TOKENS), self._mask


def held(key: str) -> int:
    """Return the bytes that the kernel counts."""
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(key)) * 1024


def stand_still(samples: MadeUp) -> None:
    """Return when nothing more is read."""
    before = -1
    while before != samples.made:
        before = samples.made
        time.sleep(0.25)


def main(count: int, micro_batch: int, workers: int, mb_ahead: int) -> dict[str, int]:
    samples = MadeUp(count)
    stream, cut = Stream(samples, count, seed=0), Cut(ranks=1, micro_batch=micro_batch)
    pace = Pace(workers=workers, bytes_ahead=mb_ahead << 20)
    toy = ToyAlgorithm()
    reader = Reader(
        samples=samples, share=lambda step: stream.share(step, 0, cut), pace=pace,
        supervise=lambda tokens, keys: toy.supervise(None, None, tokens, keys),
    )  # fmt: skip
    REFS.write_text("5")  # the peak counts from here
    before, taken = held("VmRSS"), 0
    with closing(reader.steps(0, STEPS)) as steps:
        for step in steps:
            for number, micro in enumerate(step.micro_batches()):
                if number == 0:
                    stand_still(samples)
                taken += micro.batch.hidden.nbytes + micro.batch.last_hidden.nbytes
    micro_bytes = micro_batch * TOKENS * samples.state_bytes
    return {
        "step_bytes": taken // STEPS,
        # read ahead; what the loop has while it takes the next; the records that each thread puts together
        "bound_bytes": max(pace.bytes_ahead, micro_bytes) + (2 + workers) * micro_bytes,
        "peak_bytes": held("VmHWM") - before,
    }


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:]))))
