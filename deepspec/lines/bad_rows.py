"""One bad row costs one row: the boundary at which its errors become a counted drop, and how many may be dropped.

Whoever reads, renders, tokenises or masks a row does it inside `one_row`. What goes wrong there is that row's, and
comes out as a `RowError` with file, line, id and reason; what is not a row's (a store that fails, a cancellation,
memory, a device, a source that ends early) passes through as it is and ends the stage.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from jinja2 import TemplateError
from pydantic import Field

from deepspec.errors import BadRowsError, DeepSpecError, RowError
from deepspec.specs import NOT_ADDRESSED

FROM_ROWS = 20
"""Rows from which on the share of bad ones is judged: of fewer, one says nothing."""

DEVIATIONS = 3
"""Standard deviations above the share that end a stage before all of its rows are read."""

EXAMPLES = 5
"""Bad rows of each reason that are shown."""

BadShare = Annotated[float, Field(ge=0, le=1, json_schema_extra=NOT_ADDRESSED)]
"""Type of the field `bad_share` of a spec. It decides whether there is a result, never which: it enters no address, so
that raising it goes on with what an ended run had."""

DEFAULT_SHARE = 0.05

_NEVER_A_ROW = (DeepSpecError, OSError, MemoryError)
_RUNTIME_ERRORS_OF_ROWS = (RecursionError, NotImplementedError)
_PANIC = "PanicException"
"""Class name of an error in the Rust code of tokenizers; it is no `Exception`, and cannot be imported."""


@contextmanager
def one_row(reason: str, path: Path | str | None = None, line: int | None = None, sample: str = "") -> Iterator[None]:
    """Make whatever goes wrong with one row inside the block a `RowError`.

    Args:
        reason: one word that unforeseen errors are counted by; a `RowError` keeps its own.
        path: the row's file, where it is known.
        line: its 1-based line.
        sample: its id.

    Raises:
        RowError: the row cannot be used.
    """
    try:
        yield
    except RowError as error:
        if error.path is not None or (path is None and not sample):
            raise
        raise RowError(error.reason, _named(str(error), sample), path, line) from error
    except TemplateError as error:  # before OSError: a template that is not found is both
        raise RowError(reason, _named(_told(error), sample), path, line) from error
    except BaseException as error:
        if not _is_a_rows(error):
            raise
        raise RowError(reason, _named(_told(error), sample), path, line) from error


def _is_a_rows(error: BaseException) -> bool:
    """Return whether an unforeseen error, met while one row was worked on, can only be that row's."""
    if type(error).__name__ == _PANIC:
        return True
    if isinstance(error, _NEVER_A_ROW) or not isinstance(error, Exception):
        return False
    return not isinstance(error, RuntimeError) or isinstance(error, _RUNTIME_ERRORS_OF_ROWS)


class BadRows:
    """Counts rows that were read and those that cannot be used, and ends the stage where these are too many.

    Args:
        share: of the rows that may be bad.
        setting: where it is set, for the message: `prepare.bad_share`, say.
    """

    def __init__(self, share: float, setting: str) -> None:
        """Begin at nothing."""
        self.read = 0
        self.dropped: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        """Reason -> the first bad rows, by file and line or by id."""
        self._share, self._setting = share, setting

    def add(self, rows: int = 1) -> None:
        """Count rows that were read, good or bad."""
        self.read += rows

    def drop(self, error: RowError, where: str = "") -> None:
        """Count one of the rows read as bad.

        Args:
            error: why.
            where: how the row is shown in examples; empty: by file and line.
        """
        self.dropped[error.reason] += 1
        shown = self.examples.setdefault(error.reason, [])
        if len(shown) < EXAMPLES:
            shown.append(where or str(error))

    def count(self, reasons: Mapping[str, int]) -> None:
        """Count bad rows that were met elsewhere, by reason; they are among those read."""
        self.dropped.update(reasons)

    def check_so_far(self) -> None:
        """End the stage early where the rows still to come can hardly mend the share: most of the way is paid for.

        A share that is met over the whole is missed by chance over its first rows: `DEVIATIONS` standard deviations
        of a binomial count more than the share are allowed here, and `check` judges the whole.

        Raises:
            BadRowsError: too many are bad; the message is the table of reasons.
        """
        share = self._share
        self._hold(share * self.read + DEVIATIONS * math.sqrt(self.read * share * (1 - share)))

    def check(self) -> None:
        """End the stage where more than the share of all rows, at least `FROM_ROWS` of them, are bad.

        Raises:
            BadRowsError: they are; the message is the table of reasons.
        """
        self._hold(self._share * self.read)

    def _hold(self, allowed: float) -> None:
        bad = self.dropped.total()
        if self.read >= FROM_ROWS and bad > allowed:
            raise BadRowsError(
                f"{bad:,} of {self.read:,} rows ({bad / self.read:.1%}) cannot be used, and {self._setting} allows "
                f"{self._share:g} of them:\n{self.table()}\nmend the rows, or allow more with --set {self._setting}=…"
            )

    def table(self) -> str:
        """Return a line for each reason: how many rows, which, and the first of them."""
        return "\n".join(
            f"  {number:>8,}  {reason:<24}{'; '.join(self.examples.get(reason, [])[:2])}".rstrip()
            for reason, number in self.dropped.most_common()
        )


def rows_told(read: int, kept: int, dropped: Mapping[str, int], unit: str = "rows") -> str:
    """Return what became of the rows of a stage in one line: read, kept, and dropped by reason.

    Args:
        read: how many there were.
        kept: how many the stage gives.
        dropped: reason -> rows; those of which there were none are left out.
        unit: what is counted.
    """
    reasons = [f"{number:,} {reason}" for reason, number in Counter(dropped).most_common() if number]
    return f"{read:,} {unit} read, {kept:,} kept" + (f", dropped: {', '.join(reasons)}" if reasons else "")


def _told(error: BaseException) -> str:
    text = str(error).strip()
    return text if isinstance(error, TemplateError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def _named(message: str, sample: str) -> str:
    known = not sample or re.search(rf"\bsample {re.escape(sample)}(?!\w)", message)
    return message if known else f"sample {sample}: {message}"
