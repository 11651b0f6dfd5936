"""`deepspec plan --simulate`: a plan's training on states of engines, in simulated days."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.counted import CountedPlan
from deepspec.errors import SpecError
from deepspec.plan import presets
from deepspec.plan.budget import workload
from deepspec.plan.plan import Plan
from infra.terminal import Bar, Bars, bars

if TYPE_CHECKING:
    from deepspec.simulate.planned import Simulated

Simulate = Annotated[
    bool, typer.Option("--simulate", help="Simulate training on states of engines for two days of failures.")
]
Assume = Annotated[
    list[str] | None,
    typer.Option(help="With --simulate: engines=2, engine_rate=47000, …; docs/scale.md lists them; repeatable."),
]


def simulated(
    plan: Plan, found: CountedPlan, machines: Sequence[str], assumed: Sequence[str]
) -> dict[str, "Simulated"]:
    """Return what a simulation of the plan gives, by machine.

    Args:
        plan: what is asked for.
        found: what is known of target and answers.
        machines: names of hardware.
        assumed: `name=value` of what is known better than from the machine's preset.

    Raises:
        SpecError: nothing is known of the target's sizes, or an assumption makes no sense.
    """
    from deepspec.simulate.planned import scenario_of
    from deepspec.simulate.planned import simulated as outcome_of

    sizes = found.sizes or plan.target.sizes
    if sizes is None:
        raise SpecError(
            f"target {plan.target.name}: nothing is known of its sizes until it is read, so that nothing can be "
            "simulated; run `deepspec doctor` with it first, or take a preset"
        )
    work = workload(plan, sizes, found.measured)
    scenarios = {name: scenario_of(plan, sizes, work, presets.hardware(name), assumed) for name in machines}
    with bars(aside=True) as shown:
        return {name: outcome_of(scenario, _Shown(shown)) for name, scenario in scenarios.items()}


class _Shown:
    """A bar for each thing that is simulated.

    Args:
        bars: where they are drawn.
    """

    def __init__(self, bars: Bars) -> None:
        """Draw nothing yet."""
        self._bars, self._begun = bars, dict[str, Bar]()

    def __call__(self, what: str, share: float) -> None:
        """Show how much of it is done."""
        if what not in self._begun:
            self._begun[what] = self._bars.add(what, 100, "%", "")
        self._bars.move(self._begun[what], 100 * share, 100, "%", "")


def rows(found: "Simulated") -> list[dict[str, Any]]:
    """Return a simulation as a table for people."""
    scenario, outcome = found.scenario, found.outcome
    needed = "no number does" if found.needed is None else f"{found.needed} for {scenario.ranks}"
    told = {
        "simulated": f"{outcome.seconds / 3600:.1f} h, {scenario.engines} engines, {scenario.ranks} ranks",
        "an engine reads": f"{scenario.engine_rate:,.0f} tokens/s",
        "a rank trains on": f"{scenario.trainer_rate:,.0f} tokens/s",
        "failures": f"{outcome.engine_failures} of engines, {outcome.trainer_failures} of the trainer",
        "steps": f"{outcome.steps:,} of {scenario.total_steps:,}, {outcome.steps_again:,} done again",
        "samples per second": f"{outcome.samples_per_second:,.2f}",
        "engines are proven, a start is read": f"{outcome.start_seconds:,.0f} s, of {scenario.start_samples:,} samples",
        "trainers compute": _share(outcome.trainers_busy),
        "trainers wait for states": f"{_share(outcome.trainers_waited)}, {outcome.stalls:,} times a second or more",
        "the longest wait": f"{outcome.longest_stall:,.0f} s",
        "trainers start, or wait for each other": _share(outcome.trainers_down),
        "engines read": _share(outcome.engines_busy),
        "engines are down": _share(outcome.engines_down),
        "trainers ended for want of an engine": f"{outcome.gave_up:,}",
        "tokens read for each trained on": f"{outcome.read_per_trained:.3f}",
        "rows lost": f"{outcome.rows_lost:,}",
        "engines so that trainers compute 95 %": needed,
        "a simulated request is": f"{scenario.grain} sample{'s' if scenario.grain > 1 else ''}",
    }
    return [{"what": name, "simulated": value} for name, value in told.items()]


def _share(share: float) -> str:
    return f"{share:.1%} of the time"
