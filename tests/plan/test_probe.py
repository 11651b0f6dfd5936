"""What this machine does, and how long a run takes at that: with made-up clocks and rates, checked by hand."""

from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from deepspec.plan import presets
from deepspec.plan.budget import plan_estimate
from deepspec.plan.probe import OVERHEAD_SECONDS, REFERENCE, Rates, as_probed, forecast, probe, run_hours
from deepspec.plan.words import total
from flows.choices import Choices
from tests.given.some import some

LAPTOP = presets.hardware("laptop")
HALF = Rates(tflops=REFERENCE.tflops / 2, gb_per_second=REFERENCE.gb_per_second / 2)


def test_rates_are_work_by_the_clock() -> None:
    """A clock that goes on by a second at each look: every action took one."""
    ticks = count()
    found = probe(0.5, clock=lambda: float(next(ticks)))
    assert found.tflops == pytest.approx(2 * 512**3 / 1e12)
    assert found.gb_per_second == pytest.approx(np.dtype(np.float32).itemsize * 2**23 / 1e9)
    assert found.slowed == 1.0


def test_other_work_is_told_and_does_not_become_the_machines_rate() -> None:
    """Of four products two take a second, two wait for others and take seven: one a second, slowed to 4."""
    spent = iter([0.0, 1.0, 8.0, 9.0, 16.0, *(16.0 + n for n in range(17))])
    found = probe(16.0, clock=lambda: next(spent))
    assert found.tflops == pytest.approx(2 * 512**3 / 1e12)
    assert found.slowed == 4.0
    cost = some(plan_estimate(Choices().plan))
    assert "; other work has the processor now: it may take several times as long" in forecast(cost, found, 0.0, None)
    assert "may take 1.5 times as long" in forecast(cost, replace(REFERENCE, slowed=1.5), 0.0, None)


def test_a_machine_like_the_reference_is_the_laptop() -> None:
    assert as_probed(LAPTOP, REFERENCE) == LAPTOP


def test_a_machine_of_half_the_speed_takes_twice_as_long() -> None:
    plan = Choices().plan
    one, other = (some(plan_estimate(plan, hardware=as_probed(LAPTOP, rates))) for rates in (REFERENCE, HALF))
    for stage, hours in one.hours.items():
        assert other.hours[stage].mid == pytest.approx(2 * hours.mid), stage
    assert run_hours(other, HALF).mid == pytest.approx(2 * run_hours(one, REFERENCE).mid)


def test_what_no_token_counts_comes_on_top() -> None:
    cost = some(plan_estimate(Choices().plan))
    assert run_hours(cost, REFERENCE).mid == pytest.approx(total(cost).mid + OVERHEAD_SECONDS / 3600)


def test_a_run_says_how_long_and_how_much_disk() -> None:
    cost = some(plan_estimate(Choices().plan))
    told = forecast(cost, REFERENCE, 450e6, 20_000_000_000)
    assert told.startswith("this will take about 5.")
    assert f"{(cost.store_bytes.mid + 450e6) / 1e9:.3g} GB of 20 GB free" in told
    assert told.endswith("170 GFLOP/s, 20 GB/s were just measured here")


def test_the_demo_takes_what_it_took() -> None:
    """283 s on two quiet cores, of which the probe had said 196 GFLOP/s and 24 GB/s before."""
    there = Rates(tflops=0.196, gb_per_second=24.0)
    cost = some(plan_estimate(Choices().plan, hardware=as_probed(LAPTOP, there)))
    assert run_hours(cost, there).mid * 3600 == pytest.approx(283, rel=0.05)


def test_more_of_the_demo_is_a_size_away() -> None:
    minutes, laptop = Choices().plan, Choices(size="laptop").plan
    assert some(minutes.prepare.max_samples) < some(laptop.prepare.max_samples)
    assert some(minutes.train.steps) < some(laptop.train.steps)
    assert (minutes.evaluate.samples, minutes.evaluate.max_new_tokens) == (4, 32)
    assert (laptop.evaluate.samples, laptop.evaluate.max_new_tokens) == (4, 32), "as many rounds, as wide an interval"
