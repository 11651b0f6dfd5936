"""No draft reads the states of a sample's last token, which a cache of states that came with answers does not have."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from deepspec.algorithms import ALGORITHMS
from deepspec.formats.recipe import AlgorithmName, Objective
from deepspec.records.batch import Record, collate_rows
from tests.algorithms.test_packing import EVERY, draft, measured
from tests.given.drafts.learning import record

EVEN = [row for row in EVERY if not row[1].looks_behind_the_end]
NOISE = 1e3


def rows(last: float) -> list[list[Record]]:
    """Return samples that end with a supervised token, alone in a row and several in one; its states are a constant."""
    whole = [record("a", 14, range(4, 14)), record("b", 9, range(2, 9)), record("c", 17, [3, 4, 9, 15, 16])]
    whole += [record("d", 6, [5]), record("e", 8, range(8))]
    spoilt = [
        replace(
            each,
            hidden=torch.cat([each.hidden[:-1], torch.full_like(each.hidden[-1:], last)]),
            last_hidden=torch.cat([each.last_hidden[:-1], torch.full_like(each.last_hidden[-1:], last)]),
        )
        for each in whole
    ]
    return [spoilt[:2], [spoilt[2]], spoilt[3:]]


@pytest.mark.parametrize(("algorithm", "objective", "recipe"), EVEN)
def test_training_never_reads_the_states_of_a_last_token(
    algorithm: AlgorithmName, objective: Objective, recipe: dict[str, Any]
) -> None:
    model = draft(algorithm, **recipe)
    zeros, noise = measured(model, objective, rows(0.0)), measured(model, objective, rows(NOISE))
    assert zeros["loss"] > 0
    torch.testing.assert_close(noise, zeros, rtol=0, atol=0)


def test_every_algorithm_is_among_them() -> None:
    assert {algorithm for algorithm, _, _ in EVEN} == set(ALGORITHMS)


@pytest.mark.parametrize("objective", [{"convention": "speculators"}, {"mask_alignment": "deepspec"}])
def test_an_objective_that_looks_behind_the_end_does_read_them(objective: dict[str, str]) -> None:
    asked = Objective(num_anchors=5, ttt_length=3, **objective)
    assert asked.looks_behind_the_end
    model = draft("eagle3")
    assert measured(model, asked, rows(0.0))["loss"] != measured(model, asked, rows(NOISE))["loss"]


def test_a_row_of_several_samples_has_last_tokens_inside() -> None:
    batch = collate_rows(rows(NOISE))
    assert (batch.hidden == NOISE).all(-1).sum().item() == 5
