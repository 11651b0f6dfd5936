"""A walk gives the rounds of decoding: by hand, against rounds played out one by one, and drawn many times."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepspec.rounds.decoded import Decoded, Round
from deepspec.rounds.measure import Tally, tally
from deepspec.rounds.walk import Answers, visits, walk


def answers(kept: Any, known: Any, stopped: Any = True, owner: Any = 0) -> Answers:
    return Answers(
        kept=np.asarray(kept, dtype=np.float64)[None],
        known=np.array([known]),
        stopped=np.array([stopped]),
        owners=np.array([owner]),
    )


def test_a_walk_by_hand() -> None:
    """Six tokens, two slots: round 0 keeps both (→ 3), round 3 keeps one (→ 5, the stop token by the target)."""
    kept = [[1, 1], [0, 0], [1, 1], [1, 0], [1, 1], [0, 0]]
    told = walk(answers(kept, 6), 1)
    assert visits(answers(kept, 6))[0].tolist() == [1, 0, 0, 1, 0, 0]
    assert (told.rounds[0], told.tokens[0]) == (2, 5)
    assert told.accepted[0].tolist() == [2, 1]
    assert told.proposed[0].tolist() == [2, 2]
    assert told.reached[0].tolist() == [2, 2]


def test_an_accepted_stop_token_ends_the_proposal_and_takes_the_bonus() -> None:
    """Three tokens: the round at 1 keeps token 2, the stop token; its second slot is not proposed."""
    told = walk(answers([[0, 0], [1, 0], [0, 0]], 3), 1)
    assert (told.rounds[0], told.tokens[0]) == (2, 2)
    assert told.accepted[0].tolist() == [1, 0]
    assert told.proposed[0].tolist() == [2, 1]
    assert told.reached[0].tolist() == [2, 0]


def test_of_a_beginning_only_rounds_that_lie_in_it_count() -> None:
    """Five known tokens of a longer answer, two slots: rounds at 0 to 2 count, however those at 3 and 4 would go."""
    told = walk(answers(np.ones((5, 2)), 5, stopped=False), 1)
    assert told.rounds[0] == 1  # at 0; the next begins at 3
    assert walk(answers(np.zeros((5, 2)), 5, stopped=False), 1).rounds[0] == 3
    assert walk(answers(np.ones((2, 2)), 2, stopped=False), 1).rounds[0] == 0


def test_a_coin_is_walked_by_hand() -> None:
    """One slot kept with 1/2, four tokens through a stop token: rounds begin at 0, 1 (1/2), 2 (1/2 + 1/4)."""
    kept = np.full((4, 1), 0.5)
    assert visits(answers(kept, 4))[0].tolist() == [1, 0.5, 0.75, 0]
    told = walk(answers(kept, 4), 1)
    assert told.rounds[0] == 2.25
    assert told.accepted[0].tolist() == [1.125]
    assert told.tokens[0] == 3  # in every case: the answer is what it is


def test_what_follows_an_accepted_token_is_not_what_follows_any() -> None:
    """The target says A or B, 1/2 each; the draft says A. Behind A it is always right, behind B never.

    So half of the rounds keep two tokens, the others none: 1 + 1/2 · 2 = 2. The product of the chances Σ min(p, q)
    along the target's answers takes the second slot for right in half of the cases, whether the first was kept or
    not: 1 + 1/2 + 1/2 · (1/2 · 1 + 1/2 · 0) = 1.75.
    """
    after_a, after_b = [[1, 1], [0, 0], [0, 0]], [[0, 0], [0, 0], [0, 0]]
    lengths = [1 + answers(kept, 3, stopped=False).reached[0, 0, 1:].sum() for kept in (after_a, after_b)]
    assert sum(lengths) / 2 == 2
    chances = np.array([[0.5, 1.0], [0.5, 0.0]])
    assert 1 + chances.cumprod(1).sum(1).mean() == 1.75


def test_answers_are_summed_by_sample() -> None:
    kept = np.zeros((3, 4, 2))
    both = Answers(
        kept=kept, known=np.array([4, 3, 4]), stopped=np.array([True, True, True]), owners=np.array([0, 2, 0])
    )
    assert walk(both, 3).rounds.tolist() == [6, 0, 2]


def played(kept: Any, known: Any, stopped: Any, keep: Any) -> Decoded:
    """Play the rounds of one answer, as decoding without a limit does."""
    slots, place, rounds = len(kept[0]), 0, []
    while place < (known - 1 if stopped else known - slots):
        accepted = 0
        while accepted < slots and place + 1 + accepted < known and keep(kept[place][accepted]):
            accepted += 1
        ends = stopped and place + accepted == known - 1
        rounds.append(Round(room=10**6, proposed=accepted if ends else slots, accepted=accepted, stopped=ends))
        place += accepted + 1
    return Decoded(
        sample_id="", prompt_tokens=0, tokens=(0,) * (1 + sum(each.tokens for each in rounds)), finish_reason="stop",
        rounds=tuple(rounds),
    )  # fmt: skip


def same(found: Tally, wanted: Tally) -> None:
    for name in ("rounds", "tokens", "proposed", "accepted", "reached", "public"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), err_msg=name)


CHANCES = st.integers(1, 4).flatmap(
    lambda slots: st.lists(st.lists(st.sampled_from([0, 1]), min_size=slots, max_size=slots), min_size=1, max_size=12)
)


@given(CHANCES, st.booleans())
@settings(deadline=None)
def test_at_temperature_0_a_walk_is_the_rounds_played_one_by_one(kept: Any, stopped: Any) -> None:
    known = len(kept)
    wanted = tally([played(kept, known, stopped, bool)], len(kept[0]))
    same(walk(answers(kept, known, stopped), 1), wanted)


def test_above_it_a_walk_is_the_mean_of_rounds_played_many_times() -> None:
    generator = np.random.default_rng(0)
    kept, known, times = generator.random((9, 3)), 9, 4000
    drawn = [played(kept, known, True, lambda chance: generator.random() < chance) for _ in range(times)]
    sums = tally(drawn, 3)
    told = walk(answers(kept, known), 1)
    for name in ("rounds", "tokens", "proposed", "accepted", "reached"):
        values = getattr(sums, name)
        error = 4 * values.std(0) / times**0.5 + 1e-9
        assert np.all(np.abs(values.mean(0) - getattr(told, name)[0]) <= error), name


def test_padding_changes_nothing() -> None:
    kept = np.random.default_rng(1).random((1, 7, 3))
    told = walk(answers(kept[0], 7), 1)
    padded = np.concatenate([kept, np.ones((1, 4, 3))], axis=1)
    same(walk(answers(padded[0], 7), 1), told)


@pytest.mark.parametrize("stopped", [True, False])
def test_acceptance_falls_from_slot_to_slot(stopped: bool) -> None:
    told = walk(answers(np.random.default_rng(2).random((20, 4)), 20, stopped), 1)
    assert all(first >= second for first, second in pairwise(told.accepted[0]))
