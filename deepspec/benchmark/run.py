"""Benchmark: wall clock of speculative against plain decoding of the same target, here and in an engine.

speed.json           typed numbers (deepspec/formats/speed.py)
speed.png, load.png  plots: tokens per second by batch size, speed-up to expect by number of requests
served.png           plot: an engine with and without the draft by requests at once, where one was measured under load
"""

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from deepspec import families
from deepspec.artifacts import Artifact
from deepspec.benchmark.asked import decoded, prompt_ids, questions
from deepspec.benchmark.figure import speed_by_batch, speedup_by_load
from deepspec.benchmark.load import beside, profile, recorded, speed_by_load
from deepspec.benchmark.served import ask_engine, ask_under_load
from deepspec.benchmark.spec import BenchmarkSpec
from deepspec.benchmark.timing import compare_times
from deepspec.decoding.pair import Pair, draft_folder, load_pair
from deepspec.decoding.room import Room
from deepspec.decoding.schedule import StepRate
from deepspec.formats.questions import BenchmarkQuestion
from deepspec.formats.scores import SCORES, read_scores
from deepspec.formats.speed import SPEED, BatchSpeed, LoadSpeed, Speed
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.report import Report
from deepspec.rounds.decoded import Prompt, Settings
from deepspec.serving.figure import by_load


def run(
    spec: BenchmarkSpec, inputs: Mapping[str, Artifact], out: Out, placement: Placement, report: Report
) -> dict[str, Any]:
    """Time both sides at each batch size, replay the scores' rounds at each load, and ask an engine.

    Returns:
        counts for the manifest: the speed-up at each batch size among them.
    """
    if placement.threads is not None:
        torch.set_num_threads(placement.threads)
    pair = load_pair(
        placement.target_folder(spec.target.digest),
        draft_folder(inputs["draft"], out.scratch),
        dtype=spec.dtype,
        draft_dtype=spec.draft_dtype,
        device=placement.device,
        slots=spec.slots,
    ).telling(report.log)
    asked = _with_room(questions(spec.benchmarks, placement, spec.samples, spec.seed), spec, pair, report)
    batches = _batches(spec, pair, asked, report)
    rate = profile(pair.target, max(spec.loads) * (pair.slots + 1)) if spec.loads else None
    speed = Speed(
        algorithm=pair.draft.config.algorithm,
        draft=inputs["draft"].manifest.address,
        target=spec.target.digest,
        hardware=spec.hardware,
        engine=f"deepspec on transformers {transformers.__version__}, torch {torch.__version__}, {_dtypes(spec)}",
        threads=torch.get_num_threads(),
        slots=pair.slots,
        temperature=spec.temperature,
        batches=batches,
        loads=() if rate is None else _loads(spec, inputs["scores"], pair, rate, batches, report),
        step_seconds={} if rate is None else dict(zip(rate.tokens, rate.seconds, strict=True)),
        served=ask_engine(inputs["scores"], pair.target.template, placement, spec.engine_samples, report),
        under_load=ask_under_load(inputs, pair.target.template, placement, spec, report),
    )
    _write(speed, out, report)
    return _counts(speed)


def _with_room(
    asked: Mapping[str, BenchmarkQuestion], spec: BenchmarkSpec, pair: Pair, report: Report
) -> dict[str, BenchmarkQuestion]:
    """Return the questions that the target has room for.

    Raises:
        SourceError, SpecError: it has none for any of them.
    """
    positions = families.read_folder(pair.target.folder).max_positions
    room = Room(positions, spec.max_new_tokens, pair.slots, stage="benchmark", template=pair.target.template)
    count = room.left_out(" and ".join(each.name for each in spec.benchmarks), list(asked.values()))
    if count:
        report.log(f"{count} of {len(asked)} questions are left out, the target has room for {room.most} tokens")
    return {name: each for name, each in asked.items() if room.fits(each)}


def _batches(
    spec: BenchmarkSpec, pair: Pair, asked: Mapping[str, BenchmarkQuestion], report: Report
) -> tuple[BatchSpeed, ...]:
    settings = Settings(max_new_tokens=spec.max_new_tokens, temperature=spec.temperature, seed=spec.seed, stop=False)
    ids = [prompt_ids(pair.target.template, each) for each in list(asked.values())[: spec.samples]]
    found = []
    for done, batch in enumerate(spec.batches):
        report.progress(done, len(spec.batches), "batch sizes", f"batch {batch}")
        prompts = [Prompt(sample_id=f"{n}", ids=ids[n % len(ids)]) for n in range(max(batch, len(ids)))]
        both = pair.speculative(settings, batch), pair.plain(settings, batch)
        found.append(compare_times(*both, prompts, batch, spec.repeats))
    report.progress(len(found), len(spec.batches), "batch sizes")
    return tuple(found)


def _loads(
    spec: BenchmarkSpec,
    scores: Artifact,
    pair: Pair,
    rate: StepRate,
    batches: tuple[BatchSpeed, ...],
    report: Report,
) -> tuple[LoadSpeed, ...]:
    fitted = {each.temperature: each.confidence_temperatures for each in read_scores(scores.path(SCORES)).calibration}
    rounds = recorded(decoded(scores, spec.temperature), pair.slots, fitted.get(spec.temperature, ()))
    if rounds is None:
        told = f"{scores.prefix} holds no round of {pair.slots} proposed tokens at temperature {spec.temperature:g}"
        report.log(f"no speed-up by load is told: {told}")
        return ()
    return tuple(speed_by_load(rounds, rate, beside(batches), spec.loads, spec.seed))


def _write(speed: Speed, out: Out, report: Report) -> None:
    out.file(SPEED).write_text(speed.model_dump_json(indent=1) + "\n", encoding="utf-8")
    figures = {"speed": speed_by_batch(speed), **({"load": speedup_by_load(speed)} if speed.loads else {})}
    if speed.under_load is not None:
        figures["served"] = by_load(speed.under_load)
    for name, png in figures.items():
        out.file(f"{name}.png").write_bytes(png)
        report.figure(name, png)
    report.table("speed", speed.rows())
    if speed.loads:
        report.table("load", [each.row() for each in speed.loads])
    if speed.served is not None:
        report.table("engine", [speed.served.row()])
    if speed.under_load is not None:
        report.table("served", speed.under_load.rows())


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
        "engine": speed.served and {**speed.served.row(), "agrees": speed.served.agrees},
        **({} if speed.under_load is None else {"under_load": speed.under_load.counts()}),
    }


def _dtypes(spec: BenchmarkSpec) -> str:
    return spec.dtype if spec.draft_dtype is None else f"{spec.dtype}, draft {spec.draft_dtype}"
