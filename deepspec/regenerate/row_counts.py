"""Counts of answered rows, such that those of parts add up to those of the whole."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from deepspec.asking.judge import PROMPT_DRIFTED
from deepspec.messages.conversations import AnswerRow
from deepspec.messages.finish import LENGTH

DUPLICATE = "the id came before"
MOST_REASONS = 20
"""Reasons that are told apart: some engines put the prompt into what they say."""
OTHER_REASONS = "other reasons"

Drift = Callable[[AnswerRow], Collection[str]]
"""Names of the counts in which an answered row is not as it should be, see `TargetReader.drift`."""

_NUMBERS = ("input", "success", "error", "skipped", "turns", "prompt_tokens", "completion_tokens")
_ROWS = (
    "thinking",
    "truncated",
    "with_token_ids",
    "without_usage",
    "drifted",
    PROMPT_DRIFTED,
    "date_unknown",
)


class RowCounts:
    """Counts of rows; every field of `counts` adds up over parts."""

    def __init__(self, drift: Drift) -> None:
        """Begin at nothing."""
        self._drift = drift
        self._numbers: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._bad: Counter[str] = Counter()
        self._finish_reasons: Counter[str] = Counter()
        self._endpoints: Counter[str] = Counter()

    def add(self, row: AnswerRow) -> None:
        """Count one row."""
        self._numbers["input"] += 1
        self._numbers[row["status"]] += 1
        self._numbers["turns"] += len(row["generated"])
        self._finish_reasons.update(row["finish_reasons"])
        if "error" in row:
            self._reasons[re.sub(r"\d+", "#", row["error"])] += 1
        if "reason" in row:
            self._bad[row["reason"]] += 1
            self._numbers[PROMPT_DRIFTED] += row["reason"] == PROMPT_DRIFTED
        if row["status"] == "success":
            self._add_answered(row)

    def add_duplicates(self, count: int) -> None:
        """Count rows whose id came before."""
        self._numbers["input"] += count
        self._numbers["skipped"] += count
        if count:
            self._reasons[DUPLICATE] += count

    def counts(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {
            **{name: self._numbers[name] for name in (*_NUMBERS, *_ROWS)},
            "finish_reasons": dict(self._finish_reasons),
            "reasons": _most(self._reasons),
            "bad": dict(self._bad),
            "endpoints": dict(self._endpoints),
        }

    def _add_answered(self, row: AnswerRow) -> None:
        usage = row.get("usage") or {}
        self._numbers["thinking"] += row["thinking"]
        self._numbers["truncated"] += LENGTH in row["finish_reasons"]
        self._numbers["with_token_ids"] += "token_ids" in row
        self._numbers["without_usage"] += "endpoint" in row and not usage.get("prompt_tokens")
        self._numbers.update(self._drift(row))
        self._numbers.update({name: usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens")})
        self._endpoints.update(row["endpoint"].split(", ") if "endpoint" in row else ())


def total_counts(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums of the counts of parts, nested counts by name."""
    total: dict[str, Any] = RowCounts(lambda _: ()).counts()
    for counts in parts:
        for name, value in counts.items():
            if isinstance(value, dict):
                total[name] = dict(Counter(total[name]) + Counter(value))
            else:
                total[name] += value
    return {**total, "reasons": _most(Counter(total["reasons"]))}


def _most(reasons: Counter[str]) -> dict[str, int]:
    """Return the most frequent reasons, and the number of rows that have others."""
    told = dict(reasons.most_common(MOST_REASONS))
    rest = reasons.total() - sum(told.values())
    if rest:
        told[OTHER_REASONS] = told.get(OTHER_REASONS, 0) + rest
    return told
