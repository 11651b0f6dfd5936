"""The terminal: the only place that prints. What is printed is what was meant.

Text is never read as markup, emoji code or control sequence, whoever wrote it: a row, an engine, a path, a traceback.
Control characters are shown as escapes, so that no text can move the cursor or hide what stands beside it. What is
styled is said beside the text: `("worse:", "bold red")`.

Everything fits the width that there is: a table gives up width where there are words, then becomes a block a row;
a bar becomes shorter, then goes. Where nothing is drawn, in a log file, a bar is a line at every quarter of the way,
and every few minutes where that takes long.
"""

import json
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import Progress, ProgressColumn, Task, TaskID
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

WORDS_WIDTH = 24
"""Of a table's column of words at least, in characters: in fewer they cannot be read."""

BAR_WIDTH, SHORTEST_BAR = 30, 8
NAME_WIDTH = 10
"""Of the longest name of a stage."""

LINE_SECONDS = 300.0
"""A bar that is lines in a file says one so often at least: a single large source is 0 % until all of it is read."""

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
    """Print rows as a table, with the columns of all of them; a cell may be `Styled`. Without rows: only the columns.

    The first column has the names of the rows, and is never broken. What a row does not have is an empty cell.
    """
    keys = list(dict.fromkeys(name for row in rows for name in row)) if rows else columns
    names = [_text([str(name)]) for name in keys]
    cells = [[_text([_cell(row.get(name, ""))]) for name in keys] for row in rows]
    say(Styled(title, "bold"))
    _out.print(_laid_out(names, cells, _out.width))


def show_words(name: str, words: str) -> None:
    """Print a name on a line, and words about it below, broken between them where the screen ends."""
    say(Styled(name, "bold"))
    _out.print(Padding(_text([words]), (0, 0, 0, 4), expand=False))


def show_json(value: Any) -> None:
    """Print a value as JSON, for programs."""
    _out.print(Text(json.dumps(value, indent=1)), soft_wrap=True)


class Bars:
    """Progress bars below the lines that are printed meanwhile."""

    def __init__(self, progress: Progress) -> None:
        """Draw into a running display."""
        self._progress = progress
        self._quarters: dict[Bar, int] = {}
        self._told_at: dict[Bar, float] = {}

    def add(self, name: str, total: float, unit: str, note: str) -> Bar:
        """Return a new bar."""
        return self._progress.add_task(name, total=total, unit=unit, note=note)

    def move(self, bar: Bar, done: float, total: float, unit: str, note: str) -> None:
        """Show how far a bar is."""
        self._progress.update(bar, completed=done, total=total, unit=unit, note=note)
        if not self._progress.console.is_terminal:
            self._told(self._progress.tasks[bar])

    def say(self, *pieces: Piece) -> None:
        """Print a line above the bars."""
        self._progress.console.print(_text(pieces), soft_wrap=True)

    def _told(self, task: Task) -> None:
        """Print a line when a bar begins, at every quarter that it reaches, and where it takes long to one."""
        quarter, now = int(4 * task.completed / task.total) if task.total else 4, time.monotonic()
        if quarter > self._quarters.get(task.id, -1) or now - self._told_at[task.id] >= LINE_SECONDS:
            self._quarters[task.id], self._told_at[task.id] = quarter, now
            note = f"; {task.fields['note']}" if task.fields["note"] else ""
            self.say(Styled(task.description, "dim"), f" {_reached(task)}, {task.percentage:.0f} %{note}")


@contextmanager
def bars(*, aside: bool = False) -> Iterator[Bars]:
    """Yield progress bars that are drawn while the block runs; where nothing can be drawn, they are lines.

    Args:
        aside: to stderr, where what is printed in the end may be for a program.
    """
    console = _errors if aside else _out
    with Progress(_Bar(console), console=console, disable=not console.is_terminal) as progress:
        yield Bars(progress)


class _Bar(ProgressColumn):
    """One bar: name, bar, how far, time left; its note beside it, or below where there is no room."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: Task) -> Text:
        width = self._console.width - 1
        line = _text([Styled(f"{task.description:<{NAME_WIDTH}} ", "bold")])
        told = f"{_reached(task)}{_left(task.time_remaining)}"
        room = min(BAR_WIDTH, width - line.cell_len - cell_len(told) - 1)
        if room >= SHORTEST_BAR:
            filled = round(room * task.percentage / 100)
            line.append("━" * filled, "bar.complete").append("─" * (room - filled) + " ", "bar.back")
        line.append(told)
        note = shown(str(task.fields["note"]))
        if note:
            fits = line.cell_len + cell_len(note) + 2 <= width
            below = "\n" + " " * (NAME_WIDTH + 1)
            broken = Text(note).wrap(self._console, width - NAME_WIDTH - 1)
            line.append("  " if fits else below).append(note if fits else below.join(map(str, broken)), "dim")
        return line


def _reached(task: Task) -> str:
    return shown(f"{task.completed:,.0f} of {task.total or 0:,.0f} {task.fields['unit']}")


def _left(seconds: float | None) -> str:
    if not seconds:
        return ""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f", {seconds / length:.0f} {unit} left"
    return f", {seconds:.0f} s left"


def _laid_out(names: Sequence[Text], cells: Sequence[Sequence[Text]], width: int) -> RenderableType:
    """Return a table whose columns of words are as narrow as they must be, or a block a row where none fits."""
    natural = [max(_width(row[column]) for row in [names, *cells]) for column in range(len(names))]
    room = width - 3 * len(names) - 1
    later = sorted(range(1, len(names)), key=lambda column: -natural[column])
    for count in range(len(names)):
        words = later[:count]
        left = room - sum(natural[column] for column in range(len(names)) if column not in words)
        if left >= WORDS_WIDTH * count:
            return _table(names, cells, words)
    return _blocks(names, cells)


def _table(names: Sequence[Text], cells: Sequence[Sequence[Text]], words: Sequence[int]) -> Table:
    table = Table(header_style="bold")
    for column, name in enumerate(names):
        table.add_column(name, overflow="fold", no_wrap=column not in words, min_width=1)
    for row in cells:
        table.add_row(*row)
    return table


def _blocks(names: Sequence[Text], cells: Sequence[Sequence[Text]]) -> RenderableType:
    """Return rows as the first cell on a line, and the others below it, each with the name of its column."""
    lines: list[RenderableType] = []
    for first, *others in cells:
        lines.append(first)
        told = (Text.assemble((name.plain, "dim"), ": ", cell) for name, cell in zip(names[1:], others, strict=True))
        lines += [Padding(line, (0, 0, 0, 4), expand=False) for line in told]
    return Group(*lines)


def _width(text: Text) -> int:
    return max((cell_len(line) for line in text.plain.split("\n")), default=0)


def _text(pieces: Iterable[Piece]) -> Text:
    line = Text()
    for piece in pieces:
        text, style = piece if isinstance(piece, Styled) else (piece, "")
        line.append(shown(text), style=style)
    return line


def _cell(value: Any) -> Piece:
    if isinstance(value, Styled):
        return value
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_seen(sign: str) -> bool:
    return sign in "\n\t" or sign in _JOINERS or unicodedata.category(sign) not in _HIDDEN
