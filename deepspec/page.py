"""Reports as sections, and the two ways to write them: markdown, and one HTML page that needs nothing else."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of a report: texts, then a table, then pictures."""

    title: str = ""
    texts: Sequence[str] = ()
    rows: Rows = ()
    figures: Mapping[str, bytes] = field(default_factory=dict)
    """Name -> PNG."""

    @property
    def columns(self) -> list[str]:
        """Return the columns of the table: those of all rows."""
        return columns_of(self.rows)


def html(title: str, warnings: Sequence[str], sections: Sequence[Section]) -> str:
    """Return a report as one page, pictures in it; warnings stand at the top, in red."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=select_autoescape(("html", "j2")), trim_blocks=True)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template("page.html.j2").render(title=title, warnings=warnings, sections=sections)


def markdown(title: str, warnings: Sequence[str], sections: Sequence[Section]) -> str:
    """Return a report without its pictures."""
    parts = [f"# {title}", *(f"**{each}**" for each in warnings)]
    for section in sections:
        parts += [f"## {section.title}"] if section.title else []
        parts += [*section.texts, *([table(section.rows)] if section.rows else [])]
    return "\n\n".join(parts) + "\n"


def table(rows: Rows) -> str:
    """Return rows as a markdown table; columns are those of all rows."""
    columns = columns_of(rows)
    lines = [columns, ["---"] * len(columns), *([str(row.get(name, "")) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def columns_of(rows: Rows) -> list[str]:
    """Return the keys of all rows, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row))
