"""The terminal: the only place that prints. What is printed is what was meant.

Text is never read as markup, emoji code or control sequence, whoever wrote it: a row, an engine, a path, a traceback.
Control characters are shown as escapes, so that no text can move the cursor or hide what stands beside it. What is
styled is said beside the text: `("worse:", "bold red")`.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Categories of characters that are not seen, or that change how others are seen."""

_JOINERS = frozenset("\u200c\u200d")
"""Of category Cf, and part of how scripts and emoji are written."""


class Styled(NamedTuple):
    """Text in a style of rich, such as `bold red`."""

    text: str
    style: str


Bar = TaskID
"""Names a bar."""

Piece = str | Styled
"""What a line or a cell is made of."""

_out = Console(highlight=False, markup=False, emoji=False)
_errors = Console(stderr=True, highlight=False, markup=False, emoji=False)


def shown(text: str) -> str:
    """Return a text in which every character is seen: control characters and lone surrogates become escapes."""
    return "".join(sign if _is_seen(sign) else sign.encode("unicode_escape").decode() for sign in text)


def say(*pieces: Piece) -> None:
    """Print one line, in one piece: people paste from it."""
    _out.print(_text(pieces), soft_wrap=True)


def complain(*pieces: Piece) -> None:
    """Print one line to stderr."""
    _errors.print(_text(pieces), soft_wrap=True)


def show_table(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Print rows that share their keys as a table; a cell may be `Styled`. Without rows there are only the columns."""
    _out.print(_table(title, rows, list(rows[0]) if rows else columns))


class Bars:
    """Progress bars below the lines that are printed meanwhile."""

    def __init__(self, progress: Progress) -> None:
        """Draw into a running display."""
        self._progress = progress

    def add(self, name: str, total: float, unit: str, note: str) -> Bar:
        """Return a new bar."""
        return self._progress.add_task(name, total=total, unit=unit, note=note)

    def move(self, bar: Bar, done: float, total: float, unit: str, note: str) -> None:
        """Show how far a bar is."""
        self._progress.update(bar, completed=done, total=total, unit=unit, note=note)

    def say(self, *pieces: Piece) -> None:
        """Print a line above the bars."""
        self._progress.console.print(_text(pieces), soft_wrap=True)


@contextmanager
def bars() -> Iterator[Bars]:
    """Yield progress bars that are drawn while the block runs."""
    columns = (
        _Words("{0:<10}", "description", "bold"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        _Words("{0}", "unit"),
        TimeRemainingColumn(),
        _Words("{0}", "note", "dim"),
    )
    with Progress(*columns, console=_out) as progress:
        yield Bars(progress)


class _Words(ProgressColumn):
    """A column of plain text: rich's own reads markup."""

    def __init__(self, pattern: str, field: str, style: str = "") -> None:
        super().__init__()
        self._pattern, self._field, self._style = pattern, field, style

    def render(self, task: Task) -> Text:
        value = task.description if self._field == "description" else task.fields[self._field]
        return Text(self._pattern.format(shown(str(value))), style=self._style)


def _text(pieces: Iterable[Piece]) -> Text:
    line = Text()
    for piece in pieces:
        text, style = piece if isinstance(piece, Styled) else (piece, "")
        line.append(shown(text), style=style)
    return line


def _table(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    table = Table(title=_text([Styled(title, "table.title")]), title_justify="left", header_style="bold")
    for name in columns:
        table.add_column(_text([str(name)]), overflow="fold")
    for row in rows:
        table.add_row(*(_text([_cell(value)]) for value in row.values()))
    return table


def _cell(value: Any) -> Piece:
    if isinstance(value, Styled):
        return value
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_seen(sign: str) -> bool:
    return sign in "\n\t" or sign in _JOINERS or unicodedata.category(sign) not in _HIDDEN
