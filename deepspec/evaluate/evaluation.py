"""One evaluation: its shards, what decodes them, and what is written at the end."""

from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from deepspec.artifacts import Artifact, PartMark, read_manifest
from deepspec.calibration.figure import reliability
from deepspec.checkpoint.draft import load_config
from deepspec.decoding.compare import differences, grouped, published, regressions
from deepspec.decoding.decode import Decoder
from deepspec.decoding.pair import Pair, draft_folder, load_pair
from deepspec.decoding.room import Room, room_of
from deepspec.errors import CorruptArtifactError, NotPublishedError
from deepspec.evaluate.filled import filled, kind_of
from deepspec.evaluate.lossless import check_lossless
from deepspec.evaluate.questions import Dialogue, ask
from deepspec.evaluate.scoring import Subject, Traces, score
from deepspec.evaluate.shards import Shard, ShardRole, shards, spread
from deepspec.evaluate.spec import EvaluateSpec
from deepspec.evaluate.untrained import untrained_draft
from deepspec.formats.questions import BenchmarkQuestion
from deepspec.formats.scores import SCORES, Comparison, LosslessCheck, Scores, read_scores, trace_row
from deepspec.lines.rows import read_rows, write_rows
from deepspec.page import scores as reports
from deepspec.page.figure import acceptance_by_position
from deepspec.page.page import html, markdown
from deepspec.page.tables import acceptance_rows, context_rows, contexts_left_out, left_out
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.report import Report
from deepspec.rounds.decoded import Settings


class Evaluation:
    """One evaluation: its shards, what decodes them, and where they are kept.

    Args:
        spec: what to measure.
        draft: the draft's artifact.
        out: where to write.
        placement: device, batch and locations.
        report: who listens.
    """

    def __init__(self, spec: EvaluateSpec, draft: Artifact, out: Out, placement: Placement, report: Report) -> None:
        """List the shards; nothing is loaded yet."""
        self._spec, self._draft, self._out = spec, draft, out
        self._placement, self._report = placement, report
        self._folder = draft_folder(draft, out.scratch)
        self.config = load_config(self._folder)
        self.slots = spec.slots or self.config.drafts
        """Tokens proposed per round."""
        self.shards = shards(
            spec, draft, placement, confident=self.config.confidence_head, fits=lambda each: self.room.fits(each)
        )
        self._done = 0

    @cached_property
    def room(self) -> Room:
        """Return what the target has room for.

        Raises:
            SpecError: not for any prompt.
            TargetError: the target has no location on this machine, or cannot be read.
        """
        spec, folder = self._spec, self._placement.target_folder(self._spec.target.digest)
        return room_of(folder, spec.max_new_tokens, self.slots, stage="evaluate", thinking=spec.thinking)

    def check(self) -> None:
        """Say, before anything is decoded, which questions will be left out.

        Raises:
            SourceError: all of a benchmark.
        """
        for name, rows in self._asked("benchmark", self._spec.temperatures[0]).items():
            count = self.room.left_out(name, rows)
            if count:
                self._report.log(
                    f"benchmark {name}: {count} of {len(rows)} questions will be left out, their prompts are longer "
                    f"than the {self.room.most} tokens that the target has room for"
                )

    @cached_property
    def pair(self) -> Pair:
        """Return target and draft, loaded once.

        Raises:
            TargetError: the target has no location on this machine, or cannot be loaded.
            CheckpointError: the draft cannot be loaded, or does not fit.
        """
        folder = self._placement.target_folder(self._spec.target.digest)
        if self._draft.counts["target"] != self._spec.target.model_dump():
            self._report.log(
                "the draft was trained for another version of this target; what it is worth now is measured"
            )
        self._report.log(f"loading the target from {folder}")
        spec, device = self._spec, self._placement.device
        pair = load_pair(
            folder, self._folder, dtype=spec.dtype, draft_dtype=spec.draft_dtype, device=device, slots=spec.slots
        )
        return pair.telling(self._report.log)

    def decode(self, *numbers: int) -> None:
        """Decode shards that are decoded alike, as one, and commit the traces of each, unless that is done already."""
        asked = {
            number: self._questions(self.shards[number]) for number in numbers if self._out.part(number, 0) is None
        }
        if asked:
            shards = [self.shards[number] for number in asked]
            dialogues = iter(
                ask(
                    [question for questions in asked.values() for question in questions],
                    self.pair.target,
                    self._decoder(shards[0]),
                    room=self.room.most,
                    thinking=self._spec.thinking,
                    tell=lambda: self._tell(shards),
                )
            )
            for number, questions in asked.items():
                self._commit(number, list(islice(dialogues, len(questions))))
        self._done = sum(len(each.questions) for each in self.shards[: numbers[-1] + 1])

    def _commit(self, number: int, dialogues: Sequence[Dialogue]) -> None:
        """Commit the traces of a shard."""
        shard = self.shards[number]
        labels = {"role": shard.role, "benchmark": shard.name, "temperature": shard.temperature}
        rows = [trace_row(turn, **labels) for each in dialogues for turn in each.turns]
        path = self._out.scratch / _trace_name(number)
        write_rows(path, rows)
        too_long = sum(each.too_long for each in dialogues) + len(shard.questions) - len(dialogues)
        counts = {"questions": len(shard.questions), "turns": len(rows), "too_long": too_long}
        self._out.commit_part(number, 0, {_trace_name(number): path} if rows else {}, counts)

    def finish(self) -> dict[str, Any]:
        """Score all traces, write the files, and return the counts."""
        found = self._traces()
        subject = Subject(
            algorithm=self.config.algorithm,
            draft=self._draft.manifest.address,
            slots=self.slots,
            prompt_room=self.room.most,
        )
        scores = score(self._spec, subject, found, self._lossless(found))
        if self._spec.baseline is not None:
            scores = scores.model_copy(update={"comparison": self._comparison(self._spec.baseline, scores, found)})
        for each in (*left_out(scores), *contexts_left_out(scores)):
            self._report.log(f"left out: {each}")
        self._write(scores)
        return _counts(scores)

    def _comparison(self, baseline: str, scores: Scores, found: Traces) -> Comparison:
        """Hold the scores against published ones.

        Raises:
            NotPublishedError: those are gone.
        """
        store = self._draft.store
        manifest = read_manifest(store, "scores", baseline)
        if manifest is None:
            raise NotPublishedError(f"the baseline {store.uri(f'scores/{baseline}')} is gone; compare with another one")
        first = Artifact(store, manifest, self._placement.scratch)
        told = read_scores(first.path(SCORES))
        between = differences(published(first), grouped(found.benchmarks()), max(told.slots, scores.slots))
        worse = regressions(between, told.lossless, scores.lossless)
        return Comparison(baseline=baseline, differences=tuple(between), regressions=worse)

    def _questions(self, shard: Shard) -> Sequence[BenchmarkQuestion]:
        """Return a shard's questions as they are asked: behind a context, where it has one and there is room for it."""
        length, seed = shard.context, self._spec.seed
        if length is None:
            return shard.questions
        if length > self.room.most:
            return ()
        asked = self._asked("benchmark", shard.temperature)
        texts = [each.turns[0] for rows in asked.values() for each in rows]
        behind = [
            filled(each, kind_of(place, len(asked)), texts, length, self.room.tokens, seed)
            for place, each in enumerate(shard.questions)
        ]
        return [each for each in behind if self.room.tokens(each.turns[0]) <= length]

    def _decoder(self, shard: Shard) -> Decoder:
        spec = self._spec
        settings = Settings(
            max_new_tokens=spec.max_new_tokens,
            temperature=shard.temperature,
            seed=spec.seed,
            confidence_threshold=0.0 if shard.role == "calibration" else spec.confidence_threshold,
            threshold_mode=spec.threshold_mode,
            confidence_temperatures=spec.confidence_temperatures,
        )
        pair = self.pair
        draft = untrained_draft(pair.draft, pair.target, spec.seed) if shard.role == "untrained" else None
        return pair.speculative(settings, self._placement.batch, draft)

    def _traces(self) -> Traces:
        found = Traces()
        for number, shard in enumerate(self.shards):
            mark = self._out.part(number, 0)
            if mark is None:
                raise CorruptArtifactError(
                    f"{self._out.prefix}: traces of shard {number} are gone; run the stage again"
                )
            rows = self._rows(mark) if mark.counts["turns"] else []
            key = (shard.role, shard.name, shard.temperature)
            found.add(key, rows, mark.counts["questions"], mark.counts["too_long"])
        return found

    def _rows(self, mark: PartMark) -> list[dict[str, Any]]:
        name, entry = next(iter(mark.files.items()))
        path = self._out.scratch / name
        self._out.store.get_file(f"{self._out.prefix}/{entry.key}", path)
        return [row for _, row in read_rows(path)]

    def _lossless(self, found: Traces) -> LosslessCheck | None:
        """Compare first turns decoded at temperature 0, taken in turn from all benchmarks, with the target alone."""
        if not self._spec.lossless_samples:
            return None
        role: ShardRole = "benchmark" if 0.0 in self._spec.temperatures else "lossless"
        decoded = {each.sample_id: each for each in found.of(role, 0.0)}
        chosen = spread(self._asked(role, 0.0), self._spec.lossless_samples, lambda each: _first(each) in decoded)
        self._report.log(f"checking {len(chosen)} samples against the target alone")
        return check_lossless(self.pair.target, ((self._prompt(each), decoded[_first(each)]) for each in chosen))

    def _asked(self, role: ShardRole, temperature: float) -> dict[str, list[BenchmarkQuestion]]:
        """Return the questions asked for a purpose at a temperature, by the name of their benchmark or purpose."""
        found: dict[str, list[BenchmarkQuestion]] = {}
        for shard in self.shards:
            if (shard.role, shard.temperature) == (role, temperature):
                found.setdefault(shard.name, []).extend(shard.questions)
        return found

    def _prompt(self, question: BenchmarkQuestion) -> list[int]:
        first = [{"role": "user", "content": question.turns[0]}]
        return self.pair.target.template.prompt_ids(first, thinking=self._spec.thinking)

    def _tell(self, decoded: Sequence[Shard]) -> None:
        """Show how far it is; of several shards that are decoded as one only how many."""
        self._done += 1
        total = sum(len(each.questions) for each in self.shards)
        name = decoded[0].name if len(decoded) == 1 else f"{len(decoded)} benchmarks"
        self._report.progress(
            min(self._done, total), total, "questions", f"{name}, temperature {decoded[0].temperature}"
        )

    def _write(self, scores: Scores) -> None:
        plots = _figures(scores)
        report = reports.title(scores), reports.warnings(scores), reports.sections(scores, plots)
        self._out.file(SCORES).write_text(scores.model_dump_json(indent=1) + "\n", encoding="utf-8")
        self._out.file("report.md").write_text(text := markdown(*report), encoding="utf-8")
        self._out.file("report.html").write_text(html(*report), encoding="utf-8")
        self._report.table("acceptance", acceptance_rows(scores))
        if scores.contexts:
            self._report.table("contexts", context_rows(scores))
        if scores.comparison is not None:
            self._report.table("comparison", [each.row() for each in scores.comparison.differences])
        self._report.markdown("scores", text)
        for name, png in plots.items():
            self._out.file(f"{name}.png").write_bytes(png)
            self._report.figure(name, png)


def _figures(scores: Scores) -> dict[str, bytes]:
    """Return the plots of an evaluation, name -> PNG."""
    curves = {f"temperature {temperature}": found for temperature, found in scores.overall.items()}
    if scores.untrained is not None:
        curves["untrained"] = scores.untrained
    plots = {"acceptance": acceptance_by_position(curves)}
    if scores.calibration:
        plots["reliability"] = reliability(scores.calibration[0])
    return plots


def _first(question: BenchmarkQuestion) -> str:
    """Return the id of the sample that is a question's first turn."""
    return f"{question.question_id}#0"


def _trace_name(number: int) -> str:
    return f"traces-{number:05d}.jsonl.zst"


def _counts(scores: Scores) -> dict[str, Any]:
    """Return what the manifest tells: enough for a summary without opening the scores."""
    lengths = {temperature: found.accepted_length.value for temperature, found in scores.overall.items()}
    check = scores.lossless
    return {
        "algorithm": scores.algorithm,
        "slots": scores.slots,
        "target": scores.target,
        "accepted_length": lengths,
        "accepted_length_by_benchmark": {
            f"{each.benchmark}@{each.temperature}": each.acceptance and each.acceptance.accepted_length.value
            for each in scores.benchmarks
        },
        **_by_context(scores),
        "accepted_length_untrained": scores.untrained and scores.untrained.accepted_length.value,
        "samples": sum(found.samples for found in scores.overall.values()),
        "left_out": left_out(scores),
        "lossless": scores.is_lossless,
        "lossless_samples": check.samples if check else 0,
        "lossless_ties": check.ties if check else 0,
        "regressions": None if scores.comparison is None else list(scores.comparison.regressions),
    }


def _by_context(scores: Scores) -> dict[str, Any]:
    if not scores.contexts:
        return {}
    lengths = {str(each.length): each.acceptance and each.acceptance.accepted_length.value for each in scores.contexts}
    return {"accepted_length_by_context": lengths}
