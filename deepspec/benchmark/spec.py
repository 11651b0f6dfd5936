"""What changes the speed."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Literal

from pydantic import Field

from deepspec.formats.benchmarks import Benchmark
from deepspec.formats.serve_options import ServeOptions
from deepspec.placement import SPREAD
from deepspec.specs import Spec, TargetId


def hardware_fingerprint(device: str = "cpu", threads: int | None = None, cards: Sequence[str] = ()) -> str:
    """Return a fingerprint of this machine, its engine, and what of both is used: other times mean nothing here.

    Args:
        device: torch device of the models.
        threads: torch threads; None: the library's choice.
        cards: names of the machine's cards, in the order of their numbers.
    """
    used = [f"{threads} thread{'' if threads == 1 else 's'}"] if threads else []
    used += [] if device == "cpu" else [f"{device}: {_used(device, cards)}"]
    engines = ", ".join(f"{name} {found}" for name in ("torch", "xllamacpp") if (found := _version(name)))
    return ", ".join([platform.machine(), _processor(), f"{os.cpu_count()} CPUs", engines, *used])


def _used(device: str, cards: Sequence[str]) -> str:
    """Return the names of the cards that a device is."""
    _, _, number = device.partition(":")
    first = int(number or 0)
    chosen = cards if device == SPREAD else cards[first : first + 1]
    return " + ".join(chosen) or "a card that was not looked at"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - a device, not a file of ours
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown processor"


class BenchmarkOptions(Spec):
    """What a user sets of the measurement."""

    batches: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(1, 2, 4, 8, 16), min_length=1)
    """Sequences decoded together."""
    samples: int = Field(default=4, gt=0)
    """Questions decoded at each batch size, taken in turn from all benchmarks; a larger batch asks them repeatedly."""
    max_new_tokens: int = Field(default=64, gt=0)
    """Of each question; stop tokens do not end it, so that all sides decode equally much."""
    temperature: float = Field(default=0.0, ge=0)
    slots: int | None = Field(default=None, gt=0)
    """Tokens proposed per round; None: the draft's block size."""
    loads: tuple[Annotated[int, Field(gt=0)], ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Numbers of requests for which the throughput to expect is told, by replay of the scores' rounds; none: it is not.
    """
    engine_samples: int = Field(default=16, ge=0)
    """Questions that are also asked of an engine that serves target and draft, where one is at hand; 0: none."""
    repeats: int = Field(default=2, gt=0)
    """Interleaved pairs of plain and speculative runs; the median counts."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the target; auto: that of its checkpoint."""
    draft_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Precision of the draft; None: the target's. bfloat16 beside a float32 target halves what a draft reads."""
    seed: int = Field(default=0, ge=0)
    serve: ServeOptions = ServeOptions()
    """Loads under which an engine is measured with the draft and without it, where one is at hand."""


class BenchmarkSpec(BenchmarkOptions):
    """Time speculative against plain decoding of the same target: in one process, and in an engine that serves both."""

    target: TargetId
    benchmarks: tuple[Benchmark, ...] = Field(min_length=1)
    hardware: str = Field(default_factory=hardware_fingerprint)
    """Fingerprint of the machine that is measured."""

    @property
    def engine_tokens(self) -> int:
        """Return how many tokens an engine decodes of a question; 0 where none is asked."""
        asked = self.max_new_tokens if self.engine_samples else 0
        return max(asked, self.serve.room) if self.serve.wanted else asked

    @property
    def engine_slots(self) -> int:
        """Return how many requests an engine should take at once."""
        return self.serve.widest if self.serve.wanted else 1
