"""The command `deepspec sweep`: drafts that differ in some settings, side by side."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli import show
from deepspec.errors import SpecError, TrainingError
from deepspec.sweep.variants import SweepTerms, Variant, read_variant
from flows.choices import Choices
from infra.listeners import attached
from infra.site import Site
from infra.terminal import complain, say, show_json, show_table

if TYPE_CHECKING:
    from deepspec.sweep.board import Board

Row = Annotated[
    list[str] | None,
    typer.Option(help="'[NAME:] field=value …': a row that differs so from the first, which is as asked; repeatable."),
]
Seeds = Annotated[
    int, typer.Option(help="Trainings of each row, from train.seed on; intervals take two or more.", min=1)
]
Equal = Annotated[
    Literal["steps", "seconds"],
    typer.Option(help="What all rows have the same of: steps, or processor seconds of training."),
]
By = Annotated[
    Literal["walked", "decoded"],
    typer.Option(
        help="Accepted length: walked over held-out answers; or decoded on the benchmarks, which takes longer."
    ),
]
Timed = Annotated[
    bool, typer.Option("--timed", help="Also time a round of each shape, and go by length over its cost.")
]
AllSeeds = Annotated[bool, typer.Option("--all-seeds", help="Train rows that are left behind from all seeds, too.")]

FIRST = "as asked"
"""Name of the first row."""


def sweep(choices: Choices, site: Site, *, row: list[str] | None, as_json: bool, **terms: Any) -> None:
    """Train every row from every seed and show the leaderboard."""
    variants = (Variant(name=FIRST), *map(read_variant, row or ()))
    if len(variants) < 2:
        raise SpecError("a sweep of one row; give others with --row 'field=value', such as --row train.optimizer=muon")
    asked = SweepTerms(**terms)
    site = show.check_input(choices.plan, site)
    from flows.sweep import checked_rows  # Prefect takes a second to import: not before the input is checked
    from flows.sweep import sweep as run
    from infra.server.api import prefect_api

    checked_rows(choices, site, variants, asked.by)  # and its server takes longer
    if as_json:
        with prefect_api(complain):
            board = run(choices, site, variants, asked, tolerant=True)
        show_json(board.model_dump(mode="json"))
    else:
        with attached(), prefect_api(say):
            board = run(choices, site, variants, asked, tolerant=True)
        _show(board)
    if board.failed:
        raise TrainingError(board.failures())


def _show(board: "Board") -> None:
    show_table(f"leaderboard at equal {board.equal}; 95 % intervals over seeds", board.rows())
    if kinds := board.kinds_rows():
        show_table("accepted length by kind of prompt", kinds)
