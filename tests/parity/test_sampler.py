"""The anchor sampler against golden draws: the public one takes all scores of a batch from one generator."""

import pytest
import torch

from deepspec.algorithms.anchors import candidates, choose_anchors
from tests.given import golden


def test_anchors_replay() -> None:
    draws = golden.expected(golden.path("misc"))["anchor_sampler"]
    assert draws
    for draw in draws:
        loss_mask = torch.tensor(draw["loss_mask"]).bool()
        torch.manual_seed(draw["seed"])
        scores = torch.rand(loss_mask.shape[0], loss_mask.shape[1] - 1)
        assert candidates(loss_mask).tolist() == draw["candidate_mask"]
        anchors, keep = choose_anchors(candidates(loss_mask), scores, draw["num_anchors"])
        assert anchors.tolist() == draw["anchors"]
        assert keep.tolist() == draw["keep"]


@pytest.mark.parametrize("num_anchors", [1, 3])
def test_lowest_scores_win_and_positions_ascend(num_anchors: int) -> None:
    wanted = torch.tensor([[True, True, False, True]])
    anchors, keep = choose_anchors(wanted, torch.tensor([[0.5, 0.1, 0.0, 0.2]]), num_anchors)
    assert anchors.tolist() == [[1], [0, 1, 3]][num_anchors // 2 : num_anchors // 2 + 1]
    assert keep.all()
