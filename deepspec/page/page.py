"""Reports as sections, and the two ways to write them: markdown, and one HTML page that needs nothing else."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

_MARKS = re.compile(r"[\\`*<>|&~$]|\](?=[(\[:]|$)|(?<![^\W_])_|_(?![^\W_])|:(?=[\w+-]+:)")
"""What may be markup wherever it stands. An underscore inside a word never is, nor are brackets that no link follows:
they stay readable."""
_FIRST = re.compile(r"([#+=-]|\d+(?=[.)]))")
"""What may be markup at the beginning of a paragraph."""

TableRows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of a report: texts, then a table, then pictures."""

    title: str = ""
    texts: Sequence[str] = ()
    rows: TableRows = ()
    figures: Mapping[str, bytes] = field(default_factory=dict)
    """Name -> PNG."""

    @property
    def columns(self) -> list[str]:
        """Return the columns of the table: those of all rows."""
        return _columns_of(self.rows)


def html(title: str, warnings: Sequence[str], sections: Sequence[Section]) -> str:
    """Return a report as one page, pictures in it; warnings stand at the top, in red."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=select_autoescape(("html", "j2")), trim_blocks=True)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template("page.html.j2").render(title=title, warnings=warnings, sections=sections)


def markdown(title: str, warnings: Sequence[str], sections: Sequence[Section], *, pictures: bool = False) -> str:
    """Return a report, without its pictures or with them in it."""
    parts = [f"# {plain(title)}", *(f"**{plain(each)}**" for each in warnings)]
    for section in sections:
        parts += [f"## {plain(section.title)}"] if section.title else []
        parts += [*map(paragraph, section.texts), *([table(section.rows)] if section.rows else [])]
        parts += [_picture(*each) for each in section.figures.items()] if pictures else []
    return "\n\n".join(parts) + "\n"


def _picture(name: str, png: bytes) -> str:
    """Return a picture as markdown that carries it."""
    return f"![{plain(name)}](data:image/png;base64,{base64.b64encode(png).decode()})"


def table(rows: TableRows) -> str:
    """Return rows as a markdown table; columns are those of all rows."""
    columns = _columns_of(rows)
    cells = ([plain(str(row.get(name, ""))) for name in columns] for row in rows)
    lines = [[plain(str(name)) for name in columns], ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def plain(text: str) -> str:
    """Return markdown that shows just this text, in one line: whoever wrote it, nothing in it is markup."""
    return _MARKS.sub(r"\\\g<0>", " ".join(text.split()))


def paragraph(text: str) -> str:
    """Return the same where the text stands alone, so that it is no heading, list or rule."""
    line = plain(text)
    first = _FIRST.match(line)
    if first is None:
        return line
    return f"\\{line}" if not first[0].isdigit() else f"{first[0]}\\{line[first.end() :]}"


def code(text: str) -> str:
    """Return markdown that shows just this text as code, in one line."""
    line = " ".join(text.split())
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _columns_of(rows: TableRows) -> list[str]:
    """Return the keys of all rows, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row))
