"""Drafts as decoding uses them: piece by piece with a cache, the same numbers as in one pass."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepspec.algorithms import ALGORITHMS
from deepspec.algorithms.eagle3 import steps
from deepspec.algorithms.slots import backbone, previous_tokens
from deepspec.attention.attention import KeyValue
from deepspec.formats.recipe import Objective
from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.models.heads import GatedMarkovHead, MarkovHead, RecurrentMarkovHead
from deepspec.records.batch import Batch, Record, collate
from deepspec.start.initial import initialize
from tests.given.drafts.learning import HEADS, MASK, SIZE, VOCAB, four_records, record, tiny
from tests.given.some import some

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}


def _supervise(model: BlockDraft | EagleDraft, records: list[Record]) -> tuple[Batch, Any]:
    batch = collate(records)
    objective = Objective(num_anchors=5, ttt_length=3)
    algorithm = ALGORITHMS[model.config.algorithm]
    return batch, algorithm.supervise(model.config, objective, batch, keys=range(len(records)))


@pytest.mark.parametrize("target", ["qwen3", "gemma4", "gemma3"])
def test_block_by_block_with_a_growing_cache_equals_training_form(target: str) -> None:
    model = tiny(target=target).eval()
    batch, supervision = _supervise(model, four_records())
    with torch.no_grad():
        wanted = backbone(model, batch, supervision).unflatten(1, (-1, 4))
        for row, number in supervision.keep.nonzero().tolist():
            anchor = int(supervision.anchors[row, number])
            got = _propose(model, batch, row, anchor)
            torch.testing.assert_close(got, wanted[row, number], **CLOSE)


def _propose(model: BlockDraft, batch: Batch, row: int, anchor: int) -> Tensor:
    """Return the states of one block, its context cached in two pieces."""
    hidden = batch.hidden[row : row + 1, :anchor]
    caches = None
    for start, stop in ((0, anchor // 2), (anchor // 2, anchor)):
        positions = torch.arange(start, stop)[None]
        grown = model.context_keys_values(model.context(hidden[:, start:stop]), positions)
        caches = grown if caches is None else [old.append(new) for old, new in zip(caches, grown, strict=True)]
    ids = torch.tensor([[int(batch.input_ids[row, anchor]), MASK, MASK, MASK]])
    states: Tensor = model(ids, anchor + torch.arange(4)[None], caches, None)[0]
    return states


def test_ragged_rows_decode_together() -> None:
    """Two rows with contexts of different length, padded on the right, hidden by the mask: each as if alone."""
    model = tiny().eval()
    batch = collate(four_records()[:2])
    anchors = [6, 3]
    ids = torch.full((2, 4), MASK)
    ids[:, 0] = batch.input_ids[[0, 1], anchors]
    positions = torch.tensor(anchors)[:, None] + torch.arange(4)
    with torch.no_grad():
        caches = model.context_keys_values(model.context(batch.hidden), torch.arange(14).expand(2, -1))
        context = torch.arange(14) < torch.tensor(anchors)[:, None]
        mask = torch.cat((context, torch.ones(2, 4, dtype=torch.bool)), 1)[:, None, None].expand(-1, -1, 4, -1)
        got = model(ids, positions, caches, mask)
        for row, anchor in enumerate(anchors):
            torch.testing.assert_close(got[row], _propose(model, batch, row, anchor), **CLOSE)


def test_eagle_step_by_step_with_a_cache_equals_training_form() -> None:
    model = tiny("eagle3").eval()
    batch = collate([record("a", 12, range(3, 12))])
    with torch.no_grad():
        wanted = steps(model, batch, 3)[0]
        for start in (2, 7):
            cache = None
            state = model.fuse(batch.hidden[:, : start + 1])
            positions = torch.arange(start + 1)[None]
            causal = torch.ones(start + 1, start + 1, dtype=torch.bool).tril()[None, None]
            state, cache = model(batch.input_ids[:, 1 : start + 2], state, positions, cache, causal)
            torch.testing.assert_close(state[0], wanted[0, : start + 1], **CLOSE)
            state = state[:, -1:]
            for step in (1, 2):
                token = batch.input_ids[:, start + 1 + step : start + 2 + step]
                state, cache = model(token, state, torch.tensor([[start + step]]), cache, None)
                torch.testing.assert_close(state[0, 0], wanted[step, start], **CLOSE)


def test_cache_is_cut_back() -> None:
    cache = KeyValue(torch.arange(6.0).view(1, 1, 3, 2), torch.arange(6.0).view(1, 1, 3, 2))
    assert len(cache.append(cache)) == 6
    assert torch.equal(cache.append(cache).cut(3).key, cache.key)


@pytest.mark.parametrize("name", HEADS)
def test_slot_by_slot_equals_the_whole_block(name: str) -> None:
    model = tiny(**HEADS[name])
    batch, supervision = _supervise(model, four_records())
    hidden = torch.randn(len(supervision.keep), 4, SIZE)
    previous = previous_tokens(model.config, batch, supervision)[:, 0]
    head = model.markov_head
    if head is None:
        assert model.config.markov_rank == 0
        assert model.confidence(hidden, None).shape == (4, 4)
        return
    whole = head.markov_w2(head.sequence(head.embed(previous), hidden))
    state = head.start(hidden[:, 0])
    for slot in range(4):
        bias, state = head.step(previous[:, slot], hidden[:, slot], state)
        torch.testing.assert_close(bias, whole[:, slot])


def _filled(head: nn.Module, value: float = 1.0) -> Any:
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(value)
    return head


def test_markov_biases_by_hand() -> None:
    """Rank 1, hidden 1, every weight 1, every bias of a projection 1, W1[x] = 1, h = 2."""
    token, hidden = torch.tensor([0]), torch.tensor([[2.0]])
    bias, _ = _filled(MarkovHead(1, 1, 1)).step(token, hidden, torch.zeros(1, 1))
    assert bias.item() == 1
    bias, _ = _filled(GatedMarkovHead(1, 1, 1, 1)).step(token, hidden, torch.zeros(1, 1))
    assert bias.item() == pytest.approx(1 / (1 + math.exp(-4)))  # σ(2 + 1 + 1) · 1
    recurrent = _filled(RecurrentMarkovHead(1, 1, 1, 1))
    bias, state = recurrent.step(token, hidden, recurrent.start(hidden))
    keep = 1 / (1 + math.exp(-4))
    assert bias.item() == pytest.approx(math.tanh(4))  # joint = 0 + 1 + 2 + 1
    assert state.item() == pytest.approx((1 - keep) * math.tanh(4), rel=1e-5)


def test_fresh_draft_starts_with_logits_of_deviation_one_and_no_markov_bias() -> None:
    model = tiny()
    model.lm_head.weight.data *= 30
    initialize(model, seed=0)
    normed = model.norm(torch.randn(2000, SIZE))
    assert model.head(normed).std().item() == pytest.approx(1, abs=0.1)
    assert some(model.markov_head).markov_w2.weight.count_nonzero() == 0
    first = model.fc.weight.clone()
    initialize(model, seed=0)
    assert torch.equal(first, model.fc.weight)
    initialize(model, seed=1)
    assert not torch.equal(first, model.fc.weight)


def test_embedding_is_scaled_and_logits_are_capped() -> None:
    model = tiny(target="gemma4")
    torch.testing.assert_close(model.embed(torch.tensor([1])), model.embed_tokens.weight[1:2] * 4)  # √16
    assert model.head(1000 * torch.ones(1, SIZE)).abs().max() <= 8
    assert model.config.vocab_size == VOCAB


def test_target_parts_stay_frozen() -> None:
    names = {name for name, _ in tiny().trainable()}
    assert "embed_tokens.weight" not in names
    assert "lm_head.weight" not in names
    assert "fc.weight" in names
