"""A long prompt is read by an Eagle3 draft in pieces, and what it says is the same."""

from typing import Any

import pytest
import torch

from deepspec.formats.recipe import AlgorithmName
from deepspec.proposers import eagle
from deepspec.proposers.propose import proposer_for
from tests.given.drafts import pairs
from tests.given.drafts.held_out import decoded
from tests.given.drafts.masks import dense


@pytest.mark.parametrize("algorithm", ["eagle3", "peagle"])
def test_rounds_are_those_of_a_prompt_that_is_read_at_once(
    algorithm: AlgorithmName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of 2 to 23 tokens in one batch: of pieces of 5, short ones end in the first, others in the last."""
    target, prompts = pairs.target(6, sharpness=2.0), pairs.prompts(8, 6)
    proposer = proposer_for(pairs.draft(target, algorithm), stop_ids=target.stop_ids)
    whole = decoded(target, prompts, proposer)
    monkeypatch.setattr(eagle, "PIECE", 5)
    assert decoded(target, prompts, proposer) == whole
    assert max(one.accepted for each in whole for one in each.rounds) > 0


def test_no_piece_holds_more_than_its_positions_by_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eagle, "PIECE", 5)
    target = pairs.target()
    draft = pairs.draft(target, "eagle3")
    rows, shapes = proposer_for(draft).rows(1, 40, torch.device("cpu")), []
    assert isinstance(rows, eagle.EagleRows)
    seen = rows._masks

    def noted() -> Any:
        shapes.append(tuple(dense(seen()).shape[2:]))
        return seen()

    monkeypatch.setattr(rows, "_masks", noted)
    rows.commit(torch.randn(1, 23, 64), torch.ones(1, 24, dtype=torch.int64), torch.tensor([23]))
    assert shapes == [(5, 5), (5, 10), (5, 15), (5, 20), (3, 23)]
