"""Capture hidden states of the target, shard by shard and part by part."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from deepspec.artifacts import Artifact, PartMark
from deepspec.cache.capture import Capture, count_shards
from deepspec.cache.claims import Claims
from deepspec.cache.judged import line, no_sample, tally_rows
from deepspec.cache.spec import BAD_SHARE, CacheSpec
from deepspec.cache.workers import device_of, helpers, work
from deepspec.errors import CaptureError
from deepspec.gathering.kept_answers import drop_kept
from deepspec.lines.bad_rows import BadRows
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.report import Report
from deepspec.target_cache.facts import sampled_as
from deepspec.target_cache.index import INDEX, write_index
from deepspec.target_cache.kinds import KINDS, write_kinds
from deepspec.target_cache.part import concatenate
from deepspec.target_cache.totals import savings, totals


def run(
    spec: CacheSpec, inputs: Mapping[str, Artifact], out: Out, placement: Placement, report: Report
) -> dict[str, Any]:
    """Capture every shard and write the index; return what the manifest counts.

    As many processes as the placement says share the shards; a run elsewhere with the same arguments may join. An
    engine is asked by one process, which knows what it can take.
    """
    alone = placement.model_copy(update={"processes": 1}) if spec.states != "transformers" else placement
    with (
        Capture(spec, inputs["answers"], out, device_of(placement, 0), report) as capture,
        helpers(spec, out, alone, report),
    ):
        work(capture, Claims(out), count_shards(inputs["answers"]))
    counts = finish(spec, inputs, out, report)
    if spec.while_answering:
        drop_kept(placement.scratch, inputs["answers"].manifest.address)
    return counts


def shards(spec: CacheSpec, inputs: Mapping[str, Artifact], out: Out, placement: Placement, report: Report) -> int:
    """Return the number of shards: it depends on the answers alone."""
    del spec, out, placement, report
    return count_shards(inputs["answers"])


def run_shard(
    shard: int, spec: CacheSpec, inputs: Mapping[str, Artifact], out: Out, placement: Placement, report: Report
) -> None:
    """Capture what is missing of one shard."""
    with Capture(spec, inputs["answers"], out, placement, report) as capture:
        capture.shard(shard)


def finish(spec: CacheSpec, inputs: Mapping[str, Artifact], out: Out, report: Report) -> dict[str, Any]:
    """Write the index over all parts; return the facts that training reads, and what became of every row.

    Raises:
        CaptureError: parts are missing, or were captured in different precision.
        BadRowsError: of all rows, too many cannot be trained on.
        SourceError: there is no sample to train on.
    """
    marks = out.parts()
    _check_complete(marks, count_shards(inputs["answers"]))
    bad = BadRows(spec.bad_share, BAD_SHARE)
    rows = Counter[str]()
    for mark in marks:
        rows.update(mark.counts["rows"])
        tally_rows(bad, mark.counts["rows"], mark.extra["bad_rows"])
    report.log(line(rows, spec.max_length))
    bad.check()
    columns = concatenate([mark.extra["columns"] for mark in marks if mark.files])
    if not columns["sample_id"]:
        raise no_sample(rows, bad.examples)
    write_index(out.file(INDEX), columns)
    kinds = {name: kind for mark in marks for name, kind in mark.extra.get("kinds", {}).items()}
    if kinds:
        write_kinds(out.file(KINDS), kinds)
    sampled = sampled_as(inputs["answers"].manifest.spec)
    said = {name: value for mark in marks for name, value in mark.extra["facts"].items()}
    facts = {**said, "sampled": None if sampled is None else sampled.model_dump()}
    counts = {**facts, **totals(marks, columns), "rows": dict(sorted(rows.items()))}
    report.table("target-cache", savings(counts))
    return counts


def _check_complete(marks: Sequence[PartMark], total: int) -> None:
    found = {(mark.shard, mark.part) for mark in marks}
    parts = {mark.shard: mark.extra["parts"] for mark in marks}
    missing = [shard for shard in range(total) if shard not in parts]
    missing += [shard for shard, count in parts.items() if any((shard, n) not in found for n in range(count))]
    if missing:
        raise CaptureError(f"shards {sorted(missing)} of the target cache are not complete; run the stage again")
    if any(_told(mark) != _told(marks[0]) for mark in marks):
        raise CaptureError("parts were captured from different targets; delete the artifact and run the stage again")


def _told(mark: PartMark) -> dict[str, Any]:
    """Return what a part says of its target, but for what parts of an earlier release do not say."""
    return {name: value for name, value in mark.extra["facts"].items() if name != "stop_ids"}
