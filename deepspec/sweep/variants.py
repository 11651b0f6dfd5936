"""What is asked of a sweep: its rows, each with what it changes in that which all share, and on which terms."""

from typing import Any, Literal

from pydantic import Field, ValidationError

from deepspec.errors import SpecError
from deepspec.formats.recipe import AlgorithmName
from deepspec.specs import Spec

ALGORITHM = "algorithm"


class Variant(Spec):
    """One row of a sweep."""

    name: str = Field(min_length=1)
    algorithm: AlgorithmName | None = None
    """Instead of the one that all rows share; None: that one."""
    changes: tuple[str, ...] = ()
    """section.field=value each, on top of what all rows share."""


class SweepTerms(Spec):
    """On which terms the rows are held against each other."""

    seeds: int = Field(default=1, gt=0)
    """Trainings of each row, from `train.seed` on; intervals take two or more."""
    equal: Literal["steps", "seconds"] = "steps"
    """What all rows have the same of: steps; or processor seconds, as many as the first takes for its steps. How long a
    step of each takes is read from its first seed at equal steps, which is trained where it is not published."""
    by: Literal["walked", "decoded"] = "walked"
    """Which accepted length rows go by: walked over held-out answers while they are trained; or decoded on the
    benchmarks, at the first temperature, which takes longer and holds for answers that were adopted, too."""
    timed: bool = False
    """Whether a round of each shape of draft is timed, too, and rows go by accepted length over its cost."""
    all_seeds: bool = False
    """Whether rows that the best has left behind are trained from the other seeds, too."""


def read_variant(text: str) -> Variant:
    """Return the row that `NAME: field=value …` says; without a name it is called by its changes.

    Args:
        text: the changes, with blanks between them; the field `algorithm` is what `--algorithm` is for a run.

    Raises:
        SpecError: it says no change, or one that is none.
    """
    head, equals, _ = text.partition("=")
    name, colon, _ = head.partition(":")
    changes = text[len(name) + 1 :].split() if colon and equals else text.split()
    wrong = [each for each in changes if "=" not in each]
    if wrong or not changes:
        raise SpecError(f"row {text!r}: wanted field=value, with blanks between several; NAME: may come before them")
    told = dict(each.split("=", 1) for each in changes if each.startswith(f"{ALGORITHM}="))
    rest = tuple(each for each in changes if not each.startswith(f"{ALGORITHM}="))
    fields: dict[str, Any] = {**told, "name": name.strip() if colon else " ".join(changes), "changes": rest}
    try:
        return Variant.model_validate(fields)
    except ValidationError as error:
        raise SpecError(f"row {text!r}: {error.errors()[0]['msg']}") from error
