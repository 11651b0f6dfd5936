"""All traces of an evaluation together, and the scores computed from them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from deepspec.calibration.calibration import traces
from deepspec.calibration.fitting import fit_temperatures
from deepspec.evaluate.score import acceptance, calibration_score, slices
from deepspec.evaluate.spec import EvaluateSpec
from deepspec.formats.benchmarks import Benchmark
from deepspec.formats.scores import BenchmarkScore, CalibrationScore, ContextScore, LosslessCheck, Scores, decoded_of
from deepspec.rounds.decoded import Decoded

ScoreKey = tuple[str, str, float]
"""Role, name, temperature."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traces:
    """Decoded samples by what they are for."""

    samples: dict[ScoreKey, list[Decoded]] = field(default_factory=dict)
    questions: dict[ScoreKey, int] = field(default_factory=dict)
    too_long: dict[ScoreKey, int] = field(default_factory=dict)

    def add(self, key: ScoreKey, rows: Iterable[Mapping[str, Any]], questions: int, too_long: int) -> None:
        """Add the rows of one trace file."""
        self.samples.setdefault(key, []).extend(decoded_of(row) for row in rows)
        self.questions[key] = self.questions.get(key, 0) + questions
        self.too_long[key] = self.too_long.get(key, 0) + too_long

    def of(self, role: str, temperature: float) -> list[Decoded]:
        """Return the samples of a role at a temperature, in the order of their ids."""
        found = [
            each
            for (has_role, _, has_temperature), samples in self.samples.items()
            if (has_role, has_temperature) == (role, temperature)
            for each in samples
        ]
        return sorted(found, key=lambda each: each.sample_id)

    def benchmarks(self) -> Iterator[tuple[str, float, Decoded]]:
        """Yield benchmark, temperature and sample of all that is scored."""
        for (role, name, temperature), samples in self.samples.items():
            if role == "benchmark":
                yield from ((name, temperature, each) for each in samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is evaluated."""

    algorithm: str
    draft: str
    slots: int
    prompt_room: int
    """Most tokens that a prompt may have."""


def score(spec: EvaluateSpec, subject: Subject, found: Traces, lossless: LosslessCheck | None) -> Scores:
    """Return the scores of all traces."""
    slots, seed = subject.slots, spec.seed
    overall = {str(t): acceptance(found.of("benchmark", t), slots, seed) for t in spec.temperatures}
    return Scores(
        algorithm=subject.algorithm,
        draft=subject.draft,
        target=spec.target.digest,
        slots=slots,
        prompt_room=subject.prompt_room,
        overall={t: each for t, each in overall.items() if each is not None},
        benchmarks=tuple(
            _benchmark(spec, subject, each, temperature, found)
            for temperature in spec.temperatures
            for each in spec.benchmarks
        ),
        slices=tuple(s for t in spec.temperatures for s in slices(found.of("benchmark", t), t, slots, seed)),
        contexts=tuple(_context(spec, subject, length, found) for length in spec.contexts),
        untrained=acceptance(found.of("untrained", spec.temperatures[0]), slots, seed),
        lossless=lossless,
        calibration=tuple(each for t in spec.temperatures if (each := _calibration(t, found, seed)) is not None),
    )


def _benchmark(
    spec: EvaluateSpec, subject: Subject, benchmark: Benchmark, temperature: float, found: Traces
) -> BenchmarkScore:
    key = ("benchmark", benchmark.name, temperature)
    samples, too_long = found.samples.get(key, []), found.too_long.get(key, 0)
    return BenchmarkScore(
        benchmark=benchmark.name,
        digest=benchmark.digest,
        temperature=temperature,
        questions=found.questions.get(key, 0),
        asked_for=spec.samples,
        too_long=too_long,
        turns=len(samples) + too_long,
        unscored=sum(not each.rounds for each in samples),
        stopped=sum(each.finish_reason == "stop" for each in samples),
        acceptance=acceptance(samples, subject.slots, spec.seed),
    )


def _context(spec: EvaluateSpec, subject: Subject, length: int, found: Traces) -> ContextScore:
    key = ("context", str(length), spec.temperatures[0])
    samples = found.samples.get(key, [])
    prompts = [each.prompt_tokens for each in samples]
    return ContextScore(
        length=length,
        temperature=spec.temperatures[0],
        questions=found.questions.get(key, 0),
        too_long=found.too_long.get(key, 0),
        prompt_tokens=round(sum(prompts) / len(prompts)) if prompts else None,
        acceptance=acceptance(samples, subject.slots, spec.seed),
    )


def _calibration(temperature: float, found: Traces, seed: int) -> CalibrationScore | None:
    held_out = found.of("calibration", temperature)
    rounds, fits = len(traces(held_out)[0]), fit_temperatures(held_out, seed)
    return calibration_score(found.of("benchmark", temperature), temperature, fits, rounds)
