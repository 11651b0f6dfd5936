"""A Markov head that starts with the target's bigrams: numbers that can be checked by hand."""

from collections.abc import Sequence

import pytest
import torch

from deepspec.families import BlockShape
from deepspec.families.shape import Rope
from deepspec.formats.recipe import MarkovHeadKind
from deepspec.models.config import DraftConfig
from deepspec.models.draft import BlockDraft
from deepspec.records.batch import Record, supervises
from deepspec.start.bigrams import SMOOTHING, principal_directions, read_bigrams, start_markov_head
from deepspec.start.initial import initialize
from tests.given.drafts.toy import ToySamples
from tests.given.some import some

D, V = 8, 12


class Few(ToySamples):
    """Samples in memory, in their order."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = list(records)

    state_bytes = 4 * D

    def order(self, epoch: int) -> Sequence[int]:
        return range(len(self.records))


def record(tokens: list[int], mask: list[int], last: torch.Tensor) -> Record:
    loss_mask = torch.tensor(mask, dtype=torch.bool)
    return Record(
        sample_id="s",
        input_ids=torch.tensor(tokens),
        loss_mask=loss_mask,
        hidden=torch.zeros(len(tokens), D),
        last_hidden=last[supervises(loss_mask)],
    )


def draft(markov_head: MarkovHeadKind = "vanilla", rank: int = D) -> BlockDraft:
    shape = BlockShape(
        hidden_size=D, intermediate_size=16, num_heads=2, num_kv_heads=1, head_dim=4, norm_eps=1e-6, rope=Rope(),
        attention_scale=0.5, qk_norm=True,
    )  # fmt: skip
    config = DraftConfig(
        algorithm="dspark", block=shape, num_layers=1, vocab_size=V, draft_vocab_size=V, num_target_layers=4,
        target_layer_ids=(1,), block_size=3, mask_token_id=11, markov_rank=rank, markov_head=markov_head,
    )  # fmt: skip
    model = BlockDraft(config)
    torch.manual_seed(0)
    model.lm_head.weight.data.normal_()
    initialize(model, 0)
    return model


def test_the_mean_state_after_a_token_is_smoothed_towards_the_mean_of_all() -> None:
    last = torch.zeros(4, D)
    last[0, 0], last[1, 0], last[2, 0] = 1.0, 2.0, 6.0
    found = read_bigrams(Few([record([5, 7, 5, 9], [0, 1, 1, 1], last)]), most=1)
    assert found.tokens.tolist() == [5, 7]
    assert found.counts.tolist() == [2, 1]
    assert found.mean_D[0] == pytest.approx(3.0)  # (1 + 2 + 6) / 3
    assert found.means_SD[0, 0] == pytest.approx((1 + 6 + SMOOTHING * 3) / (2 + SMOOTHING))
    assert found.means_SD[1, 0] == pytest.approx((2 + SMOOTHING * 3) / (1 + SMOOTHING))


def test_a_head_of_full_rank_gives_the_targets_mean_logits_after_each_token() -> None:
    model, last = draft(), torch.randn(6, D)
    samples = Few([record([1, 2, 3, 1, 2, 4], [0, 1, 1, 1, 1, 1], last)])
    found = read_bigrams(samples, most=1)
    start_markov_head(model, samples, most=1)
    bias = some(model.markov_head).markov_w2(some(model.markov_head).markov_w1(torch.tensor([1, 2, 3, 10])))
    wanted = torch.stack([*found.means_SD, found.mean_D]) @ model.lm_head.weight.T  # 10 was never seen
    torch.testing.assert_close(bias, wanted, atol=1e-4, rtol=1e-4)


def test_a_lower_rank_keeps_the_direction_with_most_weight() -> None:
    last = torch.zeros(3, D)
    last[0, 2], last[1, 5] = 10.0, 1.0
    found = read_bigrams(Few([record([1, 2, 3], [0, 1, 1], last)]), most=1)
    assert principal_directions(found, 1).abs().argmax().item() == 2


@pytest.mark.parametrize(("markov_head", "most"), [("gated", 4), ("vanilla", 0)])
def test_other_heads_and_zero_samples_change_nothing(markov_head: MarkovHeadKind, most: int) -> None:
    model = draft(markov_head)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start_markov_head(model, Few([record([1, 2], [0, 1], torch.ones(2, D))]), most)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
