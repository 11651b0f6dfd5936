"""The pages that are made from the code say all of it."""

from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from cli.main import app
from cli.tools import field_rows
from deepspec import errors
from deepspec.plan.plan import Plan
from docs.generate import PAGES, error_classes

KINDS = list(error_classes(errors.DeepSpecError))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_says_what_helps_in_one_line_of_its_own(kind: Any) -> None:
    assert "\n" not in kind.__dict__["remedy"]
    assert f"## {kind.__name__}\n" in PAGES["errors.md"]()


def test_every_error_of_the_module_is_in_the_tree() -> None:
    assert {kind.__name__ for kind in KINDS} == {name for name in vars(errors) if name.endswith("Error")}
    drawn = (errors.__doc__ or "").partition("A message says")[0]
    assert [kind.__name__ for kind in KINDS if kind.__name__ not in drawn] == []


def test_every_command_and_every_field_has_a_row() -> None:
    commands, fields = PAGES["commands.md"](), PAGES["fields.md"]()
    whole = typer.main.get_command(app)
    assert isinstance(whole, TyperGroup)
    names = {f"## deepspec {name}\n" for name in (*whole.commands, "cache verify")}
    assert [name for name in names if name not in commands] == []
    assert [row["field"] for row in field_rows(Plan) if f"| `{row['field']}` |" not in fields] == []


def test_events_name_what_starts_and_what_it_starts() -> None:
    assert "| `deepspec-regressed` | deepspec.eval.regressed | alert |" in PAGES["events.md"]()
