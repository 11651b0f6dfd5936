"""What became of the rows of a capture: how many of them cannot be trained on, and the line that tells it."""

from collections import Counter
from collections.abc import Mapping, Sequence

from deepspec.chat.clock import DATE
from deepspec.errors import SourceError
from deepspec.lines.bad_rows import BadRows, rows_told

_DROPPED = "dropped_"
_STATUS = "status_"
_TOO_FEW = "too_few_supervised"
"""Of samples, not of rows, and a wish of the spec: a row is not bad for that."""


def tally_rows(bad: BadRows, rows: Mapping[str, int], examples: Mapping[str, Sequence[str]]) -> None:
    """Add what was read to the rows counted so far.

    Args:
        bad: the rows so far.
        rows: what became of every row, as `read_items` counts it.
        examples: reason -> rows that cannot be trained on.
    """
    other = rows.get("other_split", 0) + _by_status(rows).total()
    bad.add(rows.get("rows", 0) - other)
    bad.count(Counter({reason: number for reason, number in _dropped(rows).items() if reason != _TOO_FEW}))
    for reason, shown in examples.items():
        bad.examples.setdefault(reason, []).extend(shown)


def line(rows: Mapping[str, int], max_length: int) -> str:
    """Return in one line what became of every row, and how many samples were cut.

    Args:
        rows: what became of every row, as `read_items` counts it.
        max_length: tokens of a sample at most.
    """
    dropped = _dropped(rows) + _by_status(rows)
    parts = [rows_told(rows["rows"], rows["rows_kept"], dropped), f"{rows['samples']:,} samples"]
    if cut := rows.get("cut_samples", 0):
        parts.append(f"{cut:,} of them cut at {max_length:,} tokens")
    if other := rows.get("other_split", 0):
        parts.append(f"rows of other splits: {other:,}")
    if assumed := rows.get("date_assumed", 0):
        parts.append(f"rows without the date that the template reads, rendered with {DATE}: {assumed:,}")
    return "; ".join(parts)


def no_sample(rows: Mapping[str, int], examples: Mapping[str, Sequence[str]]) -> SourceError:
    """Return the error of answers that give nothing to train on.

    Args:
        rows: what became of every row, as `read_items` counts it.
        examples: reason -> rows that cannot be trained on.
    """
    bad = BadRows(share=1, setting="")
    tally_rows(bad, rows, examples)
    counted = rows_told(rows.get("rows", 0), 0, _dropped(rows) + _by_status(rows))
    return SourceError("\n".join(filter(None, (f"no sample of the answers can be trained on: {counted}", bad.table()))))


def _dropped(rows: Mapping[str, int]) -> Counter[str]:
    return _prefixed(rows, _DROPPED)


def _by_status(rows: Mapping[str, int]) -> Counter[str]:
    return Counter({f"{_STATUS}{name}": number for name, number in _prefixed(rows, _STATUS).items()})


def _prefixed(rows: Mapping[str, int], prefix: str) -> Counter[str]:
    return Counter({key.removeprefix(prefix): number for key, number in rows.items() if key.startswith(prefix)})
