"""Write the pages of the reference that are made from the code: commands, fields, errors, variables, automations.

    python -m docs.generate        # into docs/reference

`make docs` does it before it builds the site. The pages are not kept in git: they would be an older copy of the code.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
import yaml

from cli.main import app
from cli.tools import field_rows
from deepspec import errors
from deepspec.errors import DeepSpecError
from deepspec.plan.plan import Plan
from infra import settings
from infra.shipped import DEPLOYMENTS

REFERENCE = Path(__file__).parent / "reference"
MADE = "made from the code by `docs/generate.py`"


def commands_page() -> str:
    """Return a page with every command: usage, what it does, its own options; what many share is told once."""
    root: Any = typer.main.get_command(app)
    context = root.make_context("deepspec", ["status"])
    shared = _options(root.commands["run"], context)
    parts = [f"# Commands\n\n`deepspec COMMAND --help` says the same; {MADE}.\n"]
    for words, command in _all_commands(root.commands, "deepspec"):
        usage = " ".join([words, *(each.metavar or each.name.upper() for each in _arguments(command))])
        parts.append(f"## {words}\n\n{command.help or ''}\n\n```\n{usage} [OPTIONS]\n```\n")
        own = _options(command, context)
        if command.name != "run" and shared.items() <= own.items():
            parts.append("Takes the options of [deepspec run](#deepspec-run).\n")
            own = {name: told for name, told in own.items() if name not in shared}
        if own:
            parts.append(_table(("option", "meaning"), [(f"`{name}`", told) for name, told in own.items()]))
    return "\n".join(parts)


def fields_page() -> str:
    """Return a page with every field of a plan, by section."""
    parts = [f"# Fields of a plan\n\nChanged with `--set FIELD=VALUE`, or in an own preset; {MADE}.\n"]
    sections = {"": [row for row in field_rows(Plan) if "." not in row["field"]]}
    for row in field_rows(Plan):
        if "." in row["field"]:
            sections.setdefault(row["field"].partition(".")[0], []).append(row)
    for name, rows in sections.items():
        kind = Plan.model_fields[name].annotation if name else Plan
        told = _first_line(kind) if isinstance(kind, type) else ""
        parts.append(f"## {name or 'The plan itself'}\n\n{told}\n")
        parts.append(_table(("field", "default", "meaning"), [_field(row) for row in rows]))
    return "\n".join(parts)


def errors_page() -> str:
    """Return a page with every class of error: what it says, what helps, its exit code."""
    tree = inspect.cleandoc(errors.__doc__ or "")
    parts = [f"# Errors\n\nOne line on the terminal, `error: …`, and an exit code; {MADE}.\n\n{tree}\n"]
    for kind in error_classes(DeepSpecError):
        retried = "Retried by itself." if kind.retryable else "Not retried."
        parts.append(
            f"## {kind.__name__}\n\n{_first_line(kind)}\n\n**What helps:** {kind.remedy}\n\n"
            f"Exit code {kind.status}. {retried}\n"
        )
    return "\n".join(parts)


def error_classes(root: type[DeepSpecError]) -> Iterator[type[DeepSpecError]]:
    """Yield the classes of the tree that its module defines, each before those below it."""
    if root.__module__ == errors.__name__:
        yield root
    for child in root.__subclasses__():
        yield from error_classes(child)


def variables_page() -> str:
    """Return a page with the environment variables that are read."""
    return f"# Environment variables\n\n{MADE[0].upper()}{MADE[1:]}.\n\n{inspect.cleandoc(settings.__doc__ or '')}\n"


def events_page() -> str:
    """Return a page with the events that a server acts upon, and what it does then."""
    rows = []
    for told in yaml.safe_load((DEPLOYMENTS / "automations.yaml").read_text(encoding="utf-8")):
        trigger = told["trigger"]
        after = f"none of these after {', '.join(trigger['after'])}: " if "after" in trigger else ""
        does = [action.get("deployment") or action["type"] for action in told["actions"]]
        cells = (f"`{told['name']}`", after + ", ".join(trigger["expect"]), ", ".join(does), told["description"])
        rows.append(cells)
    head = (
        "# Events\n\nWhat a Prefect server hears and does by itself: `deployments/automations.yaml`, laid out by "
        "`deepspec files` and created by `deepspec deploy` or `deepspec up`. `deepspec.eval.regressed` is ours: its "
        "resource is `deepspec.draft.ADDRESS`, its payload has `regressions`, a line for each benchmark and "
        "temperature that became worse by more than its interval.\n"
    )
    return f"{head}\n{_table(('automation', 'when it hears', 'it starts or sets', 'what for'), rows)}"


PAGES: Mapping[str, Callable[[], str]] = {
    "commands.md": commands_page,
    "fields.md": fields_page,
    "errors.md": errors_page,
    "variables.md": variables_page,
    "events.md": events_page,
}
"""Name in docs/reference -> the page."""


def _all_commands(commands: Mapping[str, Any], words: str) -> Iterator[tuple[str, Any]]:
    for name, command in sorted(commands.items()):
        yield f"{words} {name}", command
        yield from _all_commands(getattr(command, "commands", {}), f"{words} {name}")


def _arguments(command: Any) -> list[Any]:
    return [each for each in command.params if each.param_type_name == "argument"]


def _options(command: Any, context: Any) -> dict[str, str]:
    found = (each.get_help_record(context) for each in command.params if each.param_type_name == "option")
    return {name: told for name, told in filter(None, found) if not name.startswith(("--help", "--install", "--show"))}


def _field(row: Mapping[str, str]) -> tuple[str, ...]:
    return f"`{row['field']}`", f"`{row['default'] or ' '}`", row["meaning"]


def _first_line(thing: type) -> str:
    return inspect.cleandoc(thing.__doc__ or "").partition("\n")[0]


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def main(folder: Path = REFERENCE) -> None:
    """Write all pages."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{folder}: {', '.join(PAGES)}\n")


if __name__ == "__main__":
    main()
