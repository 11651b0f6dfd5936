"""What a rule saw where nothing is wrong."""

from typing import NamedTuple


class Seen(NamedTuple):
    """What a rule looked at, and what a user should be told though the run can go on."""

    detail: str
    """For a table: what was found."""
    told: tuple[str, ...] = ()
    """Lines, each a sentence of its own."""


LATER = Seen("seen once the target is on this machine")
"""Where a rule needs a target that has to be fetched or converted first."""
