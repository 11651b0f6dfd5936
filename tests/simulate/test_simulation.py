"""Simulated runs that a person can work out by hand, and what holds of all of them: no row is lost."""

from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepspec.simulate.failures import Failure, drawn
from deepspec.simulate.result import SimulationResult
from deepspec.simulate.scenario import Scenario
from deepspec.simulate.search import engines_needed
from deepspec.simulate.simulation import simulate
from deepspec.simulate.trainer import Rank

RATE = 1000
"""Tokens a second of an engine."""
SAMPLES, TOKENS = 160, 100
PROBES = 3 * TOKENS / RATE
"""Seconds in which it is proven, by three samples."""
ALL = SAMPLES * TOKENS


def scenario(**changes: Any) -> Scenario:
    told = {
        "engine_rate": RATE, "trainer_rate": 2 * RATE, "latency": 0.0, "engine_start": 5.0, "trainer_start": 3.0,
        "samples": SAMPLES, "tokens": TOKENS, "global_batch": 8, "readers": 1, "state_bytes": 10, "checkpoint_every": 5,
    }  # fmt: skip
    return Scenario.model_validate({**told, **changes})


def test_a_slow_engine_is_never_idle_and_the_trainer_is_as_busy_as_the_engine_lets_it() -> None:
    found = simulate(scenario())
    assert found.seconds == pytest.approx(PROBES + ALL / RATE + TOKENS / (2 * RATE))  # and the last sample's own step
    assert found.engines_busy * found.seconds == pytest.approx(PROBES + ALL / RATE)
    assert found.trainers_busy * found.seconds == pytest.approx(ALL / (2 * RATE))
    assert found.busy_while_up == pytest.approx(min(1, RATE / (2 * RATE)), abs=0.01)
    assert (found.steps, found.samples, found.finished, found.rows_lost) == (20, SAMPLES, True, 0)


def test_a_slow_trainer_waits_for_its_first_sample_alone() -> None:
    found = simulate(scenario(trainer_rate=RATE / 2))
    assert found.seconds == pytest.approx(PROBES + TOKENS / RATE + ALL / (RATE / 2))
    assert found.trainers_waited * found.seconds == pytest.approx(TOKENS / RATE)
    assert found.engines_busy * found.seconds == pytest.approx(PROBES + ALL / RATE)
    assert found.stalls == 0


def test_what_a_step_takes_beside_its_tokens_is_added_once_a_step() -> None:
    one, other = simulate(scenario(trainer_rate=RATE / 2)), simulate(scenario(trainer_rate=RATE / 2, step_seconds=0.5))
    assert other.seconds - one.seconds == pytest.approx(20 * 0.5)


def test_what_the_start_of_a_draft_reads_is_waited_for_before_the_first_step() -> None:
    """40 samples of 0.1 s behind the proof of the engine: nobody trains meanwhile, and no rank waits for a step's."""
    plain, started = simulate(scenario()), simulate(scenario(start_samples=40))
    assert plain.start_seconds == pytest.approx(PROBES)
    assert started.start_seconds == pytest.approx(PROBES + 4.0)
    assert started.seconds == pytest.approx(plain.seconds + 4.0)
    assert started.trainers_waited * started.seconds == pytest.approx(plain.trainers_waited * plain.seconds)
    assert started.read_per_trained * ALL == pytest.approx(300 + 40 * TOKENS + ALL)


def test_a_start_is_read_once_unless_a_process_ends_before_it_is_kept() -> None:
    """Killed at 2 s, when 17 of its 40 samples are read; then at 15 s and 25 s, with a saved state each time."""
    early, late = Failure(2.0, None), [Failure(15.0, None), Failure(25.0, None)]
    once, twice = (simulate(scenario(start_samples=40), fails) for fails in (late, [early, *late]))
    assert once.start_seconds == pytest.approx(3 * PROBES + 4.0)
    assert twice.start_seconds == pytest.approx(2.0 + 3 * PROBES + 4.0)
    assert simulate(scenario(start_samples=40, save_seconds=1e6), late).start_seconds == pytest.approx(
        3 * (PROBES + 4.0)
    )
    assert (once.rows_lost, twice.rows_lost, twice.finished) == (0, 0, True)


def test_what_a_process_loads_in_its_first_step_fills_the_queue_meanwhile() -> None:
    """Whatever it does then, engines answer: a fast trainer waits for what they did not make in that time."""
    plain, slow = simulate(scenario()), simulate(scenario(first_step=4.0))
    assert slow.seconds == pytest.approx(plain.seconds)
    assert (plain.trainers_waited - slow.trainers_waited) * plain.seconds == pytest.approx(4.0)


def test_how_far_a_simulation_is_is_told_to_its_end() -> None:
    heard: list[float] = []
    found = simulate(scenario(), heard=heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    assert simulate(scenario()) == found
    simulate(scenario(seconds=5.0), heard=heard.append)
    assert heard[-1] == 1.0


def test_probes_are_no_longer_than_the_samples_that_there_are() -> None:
    """Three of them, from the shortest on: a process that starts asks for no more than a real one."""
    even, long = simulate(scenario(samples=8)), simulate(scenario(samples=8, tokens=1000))
    assert even.read_per_trained * 800 == pytest.approx(800 + 3 * 100)
    assert long.read_per_trained * 8000 == pytest.approx(8000 + 3 * 256)


def test_engines_wait_where_there_is_no_room() -> None:
    full = scenario(trainer_rate=RATE / 2, ahead_bytes=8 * TOKENS * 10, read_bytes=TOKENS * 10)
    assert simulate(scenario(trainer_rate=RATE / 2)).engines_waited == 0
    assert simulate(full).engines_waited > 5


def test_ranks_share_the_samples_of_each_step() -> None:
    """Both prove both engines; the second one's first sample waits behind eight that the first asks each engine."""
    found = simulate(scenario(engines=2, ranks=2, trainer_rate=RATE / 2))
    assert found.trainers_busy * found.seconds * 2 == pytest.approx(ALL / (RATE / 2))
    assert found.seconds == pytest.approx(2 * PROBES + 9 * TOKENS / RATE + ALL / RATE)
    assert (found.samples, found.rows_lost) == (SAMPLES, 0)


def test_a_killed_trainer_goes_on_at_its_checkpoint_and_waits_to_be_started() -> None:
    """At 11 s it has trained for 10.23 s less the wait for its first sample: 6 steps of 1.6 s, of which 5 are saved."""
    slow = scenario(trainer_rate=RATE / 2)
    killed, whole = simulate(slow, [Failure(11.0, None)]), simulate(slow, [])
    assert killed.steps_again == 1
    again = 11.0 - PROBES - TOKENS / RATE - 5 * 8 * TOKENS / (RATE / 2)
    assert killed.seconds == pytest.approx(whole.seconds + again + 3.0 + PROBES + TOKENS / RATE)
    assert (killed.trainer_failures, killed.rows_lost) == (1, 0)


def test_a_trainer_that_is_killed_while_it_starts_starts_anew() -> None:
    slow = scenario(trainer_rate=RATE / 2)
    once = simulate(slow, [Failure(11.0, None)])
    twice = simulate(slow, [Failure(11.0, None), Failure(12.5, None)])
    assert twice.seconds == pytest.approx(once.seconds + 1.5)
    assert (twice.trainer_failures, twice.steps_again) == (2, once.steps_again)


def test_a_state_that_was_not_saved_yet_is_none_to_go_on_from() -> None:
    slow = scenario(trainer_rate=RATE / 2, save_seconds=4.0)
    assert simulate(slow, [Failure(11.0, None)]).steps_again == 6


def test_states_that_are_kept_are_asked_for_once() -> None:
    """But for those that are under way when the next epoch is asked for: as many as there is room for."""
    twice = scenario(epochs=2.0, ahead_bytes=16 * TOKENS * 10)
    kept = simulate(twice.but(kept_bytes=ALL * 10)).read_per_trained * 2 * ALL - 3 * TOKENS
    assert ALL <= round(kept) <= ALL + 16 * TOKENS
    assert simulate(twice).read_per_trained == pytest.approx((2 * ALL + 3 * TOKENS) / (2 * ALL))


def test_what_a_killed_engine_had_goes_to_the_other_one() -> None:
    found = simulate(scenario(engines=2), [Failure(5.0, 0)])
    assert (found.engine_failures, found.rows_lost, found.finished) == (1, 0, True)
    assert found.engines_down * 2 * found.seconds == pytest.approx(5.0)


def test_the_only_engine_that_stays_away_ends_the_trainer_which_is_started_until_it_is_back() -> None:
    found = simulate(scenario(engine_start=700.0), [Failure(5.0, 0)])
    assert found.gave_up >= 1
    assert found.finished
    assert found.longest_stall == pytest.approx(601, abs=1)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 40), st.sampled_from([None, 0, 1])), max_size=8), st.integers(0, 5), st.booleans()
)
def test_no_row_is_lost_whatever_fails_when(fails: list[tuple[float, int | None]], seed: int, keep: bool) -> None:
    failures = [Failure(at, engine) for at, engine in sorted(fails, key=lambda fail: fail[0])]
    told = scenario(
        engines=2, latency=0.2, length_spread=0.7, seed=seed, micro_batch=2, kept_bytes=ALL * 5 if keep else 0
    )
    found = simulate(told, failures)
    assert found.rows_lost == 0
    assert (found.finished, found.samples) == (True, SAMPLES)


def test_the_same_scenario_gives_the_same_and_another_seed_another() -> None:
    told = scenario(engines=2, latency=0.1, length_spread=0.5, engine_mtbf=10.0, trainer_mtbf=20.0, seconds=500.0)
    assert simulate(told) == simulate(told)
    assert drawn(told) == drawn(told) != drawn(told.but(seed=1))
    assert simulate(told).seconds != simulate(told.but(seed=1)).seconds


def test_more_engines_never_train_less() -> None:
    times = [simulate(scenario(engines=count, trainer_rate=3 * RATE)).seconds for count in (1, 2, 3, 4)]
    assert times == sorted(times, reverse=True)
    assert times[0] > 2.4 * times[2]


def test_as_many_engines_are_needed_as_keep_a_trainer_busy() -> None:
    """It trains 2.5 times what one engine gives: two keep it busy for 0.8 of the time, three for all of it."""
    fast = scenario(trainer_rate=2.5 * RATE, samples=320)
    found = engines_needed(fast, share=0.95)
    assert found.engines == 3
    assert found.shares[2] == pytest.approx(0.8, abs=0.02)
    assert engines_needed(fast, share=0.75).engines == 2


def test_a_request_may_stand_for_several_samples() -> None:
    fine, coarse = simulate(scenario()), simulate(scenario(grain=4))
    assert coarse.samples == SAMPLES
    assert coarse.seconds == pytest.approx(fine.seconds, rel=0.02)
    with pytest.raises(ValueError, match="grain"):
        scenario(grain=3)


def test_a_row_that_comes_for_another_is_counted_as_lost() -> None:
    """Each number is counted once a step: the accounting sees one that is missing and is not mended by one too many."""
    record = Rank._record

    async def mistaken(self: Rank, number: int) -> int:
        found = await record(self, number)
        return 0 if number == 7 else found

    with patch.object(Rank, "_record", mistaken):
        assert simulate(scenario()).rows_lost == 1


def test_shares_of_an_outcome_add_up() -> None:
    found: SimulationResult = simulate(scenario(engines=2, engine_mtbf=20.0, trainer_mtbf=20.0, seconds=500.0))
    assert found.trainers_busy + found.trainers_waited + found.trainers_down == pytest.approx(1.0)
