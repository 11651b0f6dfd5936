"""A plan and a machine -> what is simulated, and the words for what came of it."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import yaml

from deepspec.errors import SpecError
from deepspec.plan import presets
from deepspec.plan.cost.flops import read_flops, train_flops
from deepspec.plan.cost.given import Hardware, Sizes, Workload
from deepspec.plan.plan import Plan
from deepspec.simulate.result import SimulationResult
from deepspec.simulate.scenario import Scenario
from deepspec.simulate.search import engines_needed
from deepspec.simulate.simulation import simulate
from deepspec.specs import Spec

FAILURE_SECONDS = 3600.0
"""Mean seconds between two failures, of whichever engine or rank."""
LENGTH_SPREAD = 0.8
"""Of the logarithm of lengths: chats of 32 to 4096 tokens."""
REQUESTS = 60_000
"""Most that are simulated for one outcome; beyond, one stands for several samples."""
ROOM = 8
"""Fewest of them that there is room for ahead."""
EACH = 4
"""Fewest of them that a rank has in a step, so that ranks still share it about evenly."""
SHARE = 0.95
"""Of the time in which it is up a trainer shall compute."""


class Simulated(Spec):
    """A simulation of a plan on one machine."""

    scenario: Scenario
    outcome: SimulationResult
    needed: int | None
    """Engines with which ranks compute for 95 % of the time in which they are up; None: no number does."""


def simulated(scenario: Scenario, heard: Callable[[str, float], None] = lambda _, __: None) -> Simulated:
    """Return what comes of a scenario, and how many engines it would take.

    Args:
        scenario: what is simulated.
        heard: is told which of the two is worked on, and how much of it is done, as a share.
    """
    outcome = simulate(scenario, heard=partial(heard, "simulated"))
    needed = engines_needed(scenario, SHARE, outcome, partial(heard, "engines")).engines
    heard("engines", 1.0)
    return Simulated(scenario=scenario, outcome=outcome, needed=needed)


def scenario_of(plan: Plan, sizes: Sizes, work: Workload, hardware: Hardware, assumed: Iterable[str] = ()) -> Scenario:
    """Return what is simulated of a plan: a rank on each device of the machine, and an engine on each of as many more.

    Args:
        plan: what is trained on what.
        sizes: of the target.
        work: counts of the plan.
        hardware: rates and devices.
        assumed: `name=value` of fields that are known better.

    Raises:
        SpecError: there is no such field, or its value makes no sense.
    """
    samples = max(1, work.captured.samples)
    flops = hardware.train_tflops * 1e12
    told: dict[str, Any] = {
        "engines": hardware.devices,
        "ranks": hardware.devices,
        "engine_rate": flops / read_flops(sizes),
        "trainer_rate": flops * work.captured.tokens.mid / train_flops(sizes, work).mid,
        "start_samples": plan.train.start_samples(samples, work.captured.supervised.mid / samples),
        "samples": samples,
        "tokens": work.captured.tokens.mid / samples,
        "length_spread": LENGTH_SPREAD,
        "longest": plan.cache.max_length,
        "epochs": work.passes,
        "global_batch": plan.train.global_batch,
        "micro_batch": 4,
        "checkpoint_every": plan.train.checkpoint_every,
        "state_bytes": (work.captured.layers + 1) * sizes.hidden * 2,
        "kept_bytes": plan.train.keep_states,
        **dict(map(_assumed, assumed)),
    }
    scenario = presets.validated(Scenario, told, "simulation")
    often = FAILURE_SECONDS * (scenario.engines + scenario.ranks)
    scenario = scenario.but(**{name: often for name in ("engine_mtbf", "trainer_mtbf") if name not in told})
    return scenario if "grain" in told else scenario.but(grain=_grain(scenario))


def _assumed(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise SpecError(f"--assume {text!r}: wanted name=value, such as engines=2 or engine_rate=47000")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SpecError(f"--assume {text!r}: the value is not YAML: {error}") from error


def _grain(scenario: Scenario) -> int:
    """Return how many samples a request stands for: as few as keep the simulation short."""
    rate = min(scenario.engines * scenario.engine_rate, scenario.ranks * scenario.trainer_rate)
    samples = min(scenario.seconds * rate / scenario.tokens, scenario.epochs * scenario.samples)
    room = scenario.ahead_bytes / (ROOM * scenario.tokens * scenario.state_bytes)
    most = max(1.0, min(room, scenario.global_batch / (EACH * scenario.ranks)))
    wanted = min(most, math.ceil(samples / REQUESTS))
    return max(grain for grain in range(1, math.floor(wanted) + 1) if scenario.global_batch % grain == 0)
