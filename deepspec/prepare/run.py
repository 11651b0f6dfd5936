"""Read every source once and put clean rows aside, choose among them, then write the chosen ones with their split.

Memory is about 150 bytes a row (ids seen, ranks, origins); the texts are never held.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Any

from deepspec.artifacts import Artifact
from deepspec.errors import SourceError
from deepspec.lines.bad_rows import rows_told
from deepspec.lines.rows import Row, RowWriter, read_rows
from deepspec.placement import Placement
from deepspec.prepare.choose import KEPT, Reasons, choose, split_of
from deepspec.prepare.intake import Intake
from deepspec.prepare.spec import PrepareSpec
from deepspec.publish import Out
from deepspec.report import Report
from deepspec.specs import canonical_json


def run(
    spec: PrepareSpec, inputs: Mapping[str, Artifact], out: Out, placement: Placement, report: Report
) -> dict[str, Any]:
    """Publish `part-….jsonl.zst` and `dropped.json`; return the counts.

    Raises:
        SourceError: a source cannot be read, or no row is left.
        RowError: a row cannot be used and `spec.bad_rows` is "stop".
        BadRowsError: more rows cannot be used than `spec.bad_share` allows.
    """
    del inputs  # what is read here are the user's files
    with Intake(spec, placement.locations, out.scratch) as intake:
        intake.read(report)
    reasons = choose(intake.ranks, intake.origins, intake.near_duplicates(), spec)
    dropped = intake.bad.dropped + intake.dropped + Counter(str(reason) for reason in reasons if reason != KEPT)
    read = intake.bad.read
    if not (reasons == KEPT).any():
        raise SourceError(f"no row is left: {rows_told(read, 0, dropped)}\n{intake.bad.table()}".rstrip())
    splits = _write(spec, intake, reasons, out, report)
    counts = {
        "read": read,
        "kept": splits.total(),
        "dropped": dict(sorted(dropped.items())),
        "splits": dict(sorted(splits.items())),
    }
    examples = dict(sorted(intake.examples.items()))
    out.file("dropped.json").write_bytes(canonical_json({**counts, "examples": examples}) + b"\n")
    _tell(counts, spec, report)
    return counts


def _write(spec: PrepareSpec, intake: Intake, reasons: Reasons, out: Out, report: Report) -> Counter[str]:
    """Write the kept rows in files of `rows_per_file` rows and return how many are in each split."""
    splits: Counter[str] = Counter()
    rows = zip(read_rows(intake.path), reasons, strict=True)
    kept = (row for (_, row), reason in rows if reason == KEPT)
    for number, batch in enumerate(_batches(kept, spec.rows_per_file)):
        with RowWriter(out.file(f"part-{number:05d}.jsonl.zst")) as writer:
            for row in batch:
                split = split_of(row["id"], spec.seed, spec.splits)
                writer.write({"id": row.pop("id"), "split": split, **row})
                splits[split] += 1
        report.progress(splits.total(), int((reasons == KEPT).sum()), "rows", "written")
    return splits


def _batches(rows: Iterator[Row], size: int) -> Iterator[Iterator[Row]]:
    """Yield iterators over `size` rows each, none of them empty."""
    for first in rows:
        yield chain([first], islice(rows, size - 1))


def _tell(counts: Mapping[str, Any], spec: PrepareSpec, report: Report) -> None:
    report.log(rows_told(counts["read"], counts["kept"], counts["dropped"]))
    rows = [{"what": "read", "rows": counts["read"]}]
    rows += [{"what": f"dropped: {reason}", "rows": number} for reason, number in counts["dropped"].items()]
    rows += [{"what": f"kept: {split}", "rows": number} for split, number in counts["splits"].items()]
    report.table("prompts", rows)
    wanted = {name for name, share in spec.splits.model_dump().items() if share > 0} | {"train"}
    for split in sorted(wanted - counts["splits"].keys()):
        report.log(f"no sample fell into the {split} split: too few samples for its share")
