"""Benchmark: wall clock of speculative against plain decoding of the same target, in the same process.

speed.json   typed numbers (deepspec/formats/speed.py)
speed.png    tokens per second by batch size
"""

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from deepspec.artifacts import Artifact, Placement, Report
from deepspec.benchmark.figure import speed_by_batch
from deepspec.benchmark.load import by_load, profile
from deepspec.benchmark.spec import BenchmarkSpec
from deepspec.benchmark.timing import compare
from deepspec.decoding.pair import Pair, draft_folder, load_pair, target_folder
from deepspec.decoding.results import Decoded, Prompt, Settings
from deepspec.formats.questions import read_questions
from deepspec.formats.speed import SPEED, BatchSpeed, LoadSpeed, Speed
from deepspec.publish import Out


def run(
    spec: BenchmarkSpec, inputs: Mapping[str, Artifact], out: Out, placement: Placement, report: Report
) -> dict[str, Any]:
    """Time both sides at each batch size.

    Returns:
        counts for the manifest: the speed-up at each batch size among them.
    """
    if placement.threads is not None:
        torch.set_num_threads(placement.threads)
    pair = load_pair(
        target_folder(spec.target, placement),
        draft_folder(inputs["draft"], out.scratch),
        dtype=spec.dtype,
        device=placement.device,
        slots=spec.slots,
    )
    prompts = _prompts(spec, pair, placement)
    found: list[BatchSpeed] = []
    samples: tuple[Decoded, ...] = ()
    for done, batch in enumerate(spec.batches):
        report.progress(done, len(spec.batches), "batch sizes", f"batch {batch}")
        measured, samples = _compare(spec, pair, prompts, batch)
        found.append(measured)
    report.progress(len(found), len(spec.batches), "batch sizes")
    rate = profile(pair.target) if spec.loads else None
    speed = Speed(
        algorithm=pair.draft.config.algorithm,
        draft=inputs["draft"].manifest.address,
        target=spec.target.digest,
        hardware=spec.hardware,
        engine=f"deepspec on transformers {transformers.__version__}, torch {torch.__version__}, {spec.dtype}",
        threads=torch.get_num_threads(),
        slots=pair.slots,
        temperature=spec.temperature,
        batches=tuple(found),
        loads=() if rate is None else tuple(by_load(samples, pair.slots, rate, spec.loads, spec.seed)),
        step_seconds={} if rate is None else dict(zip(rate.tokens, rate.seconds, strict=True)),
    )
    _write(speed, out, report)
    return _counts(speed)


def _prompts(spec: BenchmarkSpec, pair: Pair, placement: Placement) -> list[Prompt]:
    """Return prompts taken in turn from all benchmarks: `samples` of them."""
    rows = [
        read_questions(each, placement.locations.get(each.digest, each.digest), spec.samples, spec.seed)
        for each in spec.benchmarks
    ]
    in_turn = [each[place] for place in range(spec.samples) for each in rows if place < len(each)][: spec.samples]
    template = pair.target.template
    return [
        Prompt(sample_id=each.question_id, ids=template.prompt_ids([{"role": "user", "content": each.turns[0]}]))
        for each in in_turn
    ]


def _compare(
    spec: BenchmarkSpec, pair: Pair, prompts: list[Prompt], batch: int
) -> tuple[BatchSpeed, tuple[Decoded, ...]]:
    settings = Settings(max_new_tokens=spec.max_new_tokens, temperature=spec.temperature, seed=spec.seed, stop=False)
    asked = [
        Prompt(sample_id=f"{place}", ids=prompts[place % len(prompts)].ids) for place in range(max(batch, len(prompts)))
    ]
    return compare(pair.speculative(settings, batch), pair.plain(settings, batch), asked, batch, spec.repeats)


def _write(speed: Speed, out: Out, report: Report) -> None:
    out.file(SPEED).write_text(speed.model_dump_json(indent=1) + "\n", encoding="utf-8")
    png = speed_by_batch(speed)
    out.file("speed.png").write_bytes(png)
    report.table("speed", [row(each) for each in speed.batches])
    report.figure("speed", png)
    if speed.loads:
        report.table("speed-by-load", [load_row(each) for each in speed.loads])


def row(speed: BatchSpeed) -> dict[str, Any]:
    """Return one row of the table that people read."""
    return {
        "batch": speed.batch,
        "tokens/s": f"{speed.tokens_per_second:.1f}",
        "plain tokens/s": f"{speed.plain_tokens_per_second:.1f}",
        "speed-up": f"{speed.speedup:.2f}",
        "tokens per round": f"{speed.tokens_per_round:.2f}",
        "break-even": f"{speed.round_cost:.2f}",
        **{name: f"{share:.0%}" for name, share in speed.shares.items()},
    }


def load_row(speed: LoadSpeed) -> dict[str, Any]:
    """Return one row of the table of what to expect under load."""
    plain = speed.plain_tokens_per_second
    return {
        "requests": speed.requests,
        "plain tokens/s": f"{plain:.1f}",
        "whole proposals": f"{speed.fixed_tokens_per_second / plain:.2f} x",
        "scheduled": f"{speed.scheduled_tokens_per_second / plain:.2f} x",
    }


def _counts(speed: Speed) -> dict[str, Any]:
    by_batch = {str(each.batch): each for each in speed.batches}
    return {
        "target": speed.target,
        "hardware": speed.hardware,
        "speedup": {batch: each.speedup for batch, each in by_batch.items()},
        "tokens_per_second": {batch: each.tokens_per_second for batch, each in by_batch.items()},
        "plain_tokens_per_second": {batch: each.plain_tokens_per_second for batch, each in by_batch.items()},
        "tokens_per_round": {batch: each.tokens_per_round for batch, each in by_batch.items()},
        "break_even": {batch: each.round_cost for batch, each in by_batch.items()},
        "shares": {batch: each.shares for batch, each in by_batch.items()},
    }
