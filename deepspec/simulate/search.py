"""How many engines a trainer needs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from deepspec.simulate.result import SimulationResult
from deepspec.simulate.scenario import Scenario
from deepspec.simulate.simulation import Heard, simulate

MOST_MORE = 3.0
"""Times the engines that would do if nothing failed: where so many do not, no number does."""
TRIED_SECONDS = 28_800.0
"""Of each number of engines so many are simulated, eight failures where there is one an hour."""


@dataclass(frozen=True, slots=True)
class Needed:
    """What a search found."""

    engines: int | None
    """The fewest that do; None: no number does."""
    shares: Mapping[int, float]
    """Engines that were tried -> share of the time in which ranks computed, of that in which they could have."""


def engines_needed(
    scenario: Scenario, share: float, known: SimulationResult | None = None, heard: Heard = lambda _: None
) -> Needed:
    """Return how many engines keep the trainer computing for a share of the time in which it is up.

    Args:
        scenario: of everything else.
        share: that is wanted, below 1.
        known: what comes of the scenario as it is, if that is known.
        heard: is told how much of the search is done, as a share, if every count has to be tried.
    """
    even = scenario.ranks * scenario.trainer_rate / scenario.engine_rate
    found: dict[int, float] = {}
    tried = scenario.but(seconds=min(scenario.seconds, TRIED_SECONDS))
    counts = range(max(1, math.floor(share * even)), math.ceil(MOST_MORE * even) + 1)
    for count in counts:
        if known and count == scenario.engines:
            outcome = known
        else:
            outcome = simulate(tried.but(engines=count), heard=_part(heard, len(found), len(counts)))
        found[count] = outcome.busy_while_up
        if found[count] >= share:
            return Needed(count, found)
    return Needed(None, found)


def _part(heard: Heard, done: int, count: int) -> Heard:
    return lambda share: heard((done + share) / count)
