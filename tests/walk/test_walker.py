"""Walked is decoded: the rounds of a teacher-forced pass are those that decoding takes, one by one."""

from typing import Any

import numpy as np
import pytest
import torch

from deepspec.errors import TrainingError
from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.proposers.propose import proposer_for
from deepspec.rounds.decoded import Round
from deepspec.rounds.measure import estimates, tally
from deepspec.rounds.walk import visits
from deepspec.target.load import Target
from deepspec.target_cache.facts import Sampled
from tests.given.drafts import pairs
from tests.given.drafts.held_out import batch_of, decoded, walker

DRAFTS: dict[str, dict[str, Any]] = {
    "dflash": {"algorithm": "dflash"},
    "dspark": {"algorithm": "dspark", "markov_rank": 4, "confidence_head": True},
    "dspark-gated": {"algorithm": "dspark", "markov_rank": 4, "markov_head": "gated"},
    "dspark-rnn": {"algorithm": "dspark", "markov_rank": 4, "markov_head": "rnn"},
    "dflash2": {"algorithm": "dflash2", **pairs.DFLASH2},
    "xpress": {
        "algorithm": "xpress", "layout": "fill_in", "block_size": 5, **pairs.XPRESS, "window": 5,
        "window_layers": frozenset({0}), "window_form": "causal",
    },
    "xpress-shift": {"algorithm": "xpress", **pairs.XPRESS, "xpress_rank": 8},
    "xpress-reduced": {
        "algorithm": "xpress", "layout": "fill_in", "block_size": 5, **pairs.XPRESS, "draft_vocab_size": 3,
    },
    "dflash-anchored": {"algorithm": "dflash", "window": 5, "window_layers": frozenset({1}), "window_form": "anchor"},
    "dflash-fill-in": {"algorithm": "dflash", "layout": "fill_in", "block_size": 5},
    "eagle3": {"algorithm": "eagle3"},
    "peagle": {"algorithm": "peagle"},
    "mtp": {"algorithm": "mtp", "gated": True},
    "dspark-reduced": {"algorithm": "dspark", "markov_rank": 4, "draft_vocab_size": 3},
    "eagle3-reduced": {"algorithm": "eagle3", "draft_vocab_size": 3},
    "dspark-near": {"algorithm": "dspark", "markov_rank": 4, "window": 6, "window_layers": frozenset({0})},
    "dflash-all-near": {"algorithm": "dflash", "window": 5, "window_layers": frozenset({0, 1})},
    "eagle3-near": {"algorithm": "eagle3", "window": 5, "window_layers": frozenset({0})},
    "peagle-near": {"algorithm": "peagle", "window": 7, "window_layers": frozenset({1})},
    "peagle-reduced": {"algorithm": "peagle", "draft_vocab_size": 3},
    "dspark-biased": {"algorithm": "dspark", "markov_rank": 4, "draft_vocab_size": 3},
}  # fmt: skip
LONG = ("xpress-shift", "xpress-reduced", "dflash-anchored")
"""Rows of which others have every part."""


def rows(*left: str) -> list[Any]:
    """Return the names of all rows, some of them for `make soak`."""
    return [pytest.param(name, marks=pytest.mark.soak) if name in left else name for name in DRAFTS]


VOCAB = 6
"""So few tokens that a random draft often says the right one, several times in a row."""


def target_of(**traits: Any) -> Target:
    return pairs.target(VOCAB, sharpness=2.0, **traits)


def draft_of(target: Target, name: str) -> BlockDraft | EagleDraft:
    draft: BlockDraft | EagleDraft = pairs.draft(target, **DRAFTS[name])
    if draft.config.reduced_vocabulary:
        draft.keep_target_head(target.head_weight, target.head_bias)
    return draft


def begun(rounds: list[Round]) -> list[int]:
    """Return where the rounds of a decoded sample begin, counted from its first generated token."""
    places, place = [], 0
    for each in rounds:
        places.append(place)
        place += each.accepted + 1
    return places


@pytest.mark.parametrize("name", rows(*LONG))
@pytest.mark.parametrize("sliding", [False, True])
def test_walked_is_decoded_round_for_round(name: str, sliding: bool) -> None:
    """At temperature 0, through the stop token of those that reach one; of the others all rounds with room for K."""
    target, prompts = target_of(sliding=sliding, biased=name == "dspark-biased"), pairs.prompts(24, VOCAB)
    draft = draft_of(target, name)
    slots = draft.config.drafts
    wanted = decoded(target, prompts, proposer_for(draft, stop_ids=target.stop_ids))
    batch = batch_of(target, prompts, [each.tokens for each in wanted], draft)
    greedy, _ = walker(draft, target).rounds(draft, batch, range(len(prompts)))
    walked = visits(greedy.answers)
    assert (greedy.answers.known == greedy.whole).all()
    assert greedy.answers.owners.tolist() == [row for row, each in enumerate(wanted) if len(each.tokens) > 1]
    for place, row in enumerate(greedy.answers.owners):
        each = wanted[row]
        counted = [one for one in each.rounds if each.finish_reason == "stop" or one.room >= slots]
        assert walked[place].nonzero()[0].tolist() == begun(counted)
        kept = greedy.answers.reached[place, walked[place] > 0, 1:].sum(1)
        assert kept.tolist() == [one.accepted for one in counted]
    assert {each.finish_reason for each in wanted} == {"stop", "length"}
    assert max(one.accepted for each in wanted for one in each.rounds) > 1


@pytest.mark.parametrize("name", rows(*LONG))
def test_the_sums_are_those_that_an_evaluation_counts(name: str) -> None:
    target, prompts = target_of(), pairs.prompts(24, VOCAB)
    draft = draft_of(target, name)
    every = decoded(target, prompts, proposer_for(draft, stop_ids=target.stop_ids), max_new_tokens=300)
    ended = [each for each in every if each.finish_reason == "stop"]
    asked = [prompts[int(each.sample_id)] for each in ended]
    batch = batch_of(target, asked, [each.tokens for each in ended], draft)
    greedy, _ = walker(draft, target).rounds(draft, batch, range(len(ended)))
    found, wanted = greedy.walked(len(ended)).sums, tally(ended, draft.config.drafts)
    for field in ("rounds", "tokens", "accepted", "reached", "public"):
        np.testing.assert_array_equal(getattr(found, field), getattr(wanted, field), err_msg=field)
    assert estimates(found)["accepted_length"] == estimates(wanted)["accepted_length"]


@pytest.mark.parametrize("name", ["dspark", "xpress", "eagle3", "peagle", "mtp"])
def test_rounds_do_not_depend_on_how_many_are_computed_at_once(name: str) -> None:
    target, prompts = target_of(), pairs.prompts(4, VOCAB)
    draft = draft_of(target, name)
    batch = batch_of(target, prompts, [each.tokens for each in decoded(target, prompts)], draft)
    few, many = (
        walker(draft, target, Sampled(temperature=0.8), at_once=count).rounds(draft, batch, range(4))[1]
        for count in (2, 100)
    )
    np.testing.assert_allclose(few.answers.kept, many.answers.kept, rtol=1e-4, atol=1e-6)


def test_an_answer_is_cut_where_it_is_not_the_targets_and_counted() -> None:
    target, prompts = target_of(), pairs.prompts(3, VOCAB)
    draft = draft_of(target, "dflash")
    answers = [list(each.tokens) for each in decoded(target, prompts, stop=False)]
    spoiled = [*answers[0][:20], (answers[0][20] + 1) % VOCAB, *answers[0][21:]]
    batch = batch_of(target, prompts, [spoiled, *answers[1:]])
    greedy, _ = walker(draft, target, stop_ids=frozenset()).rounds(draft, batch, [0, 1, 2])
    assert greedy.answers.known.tolist() == [20, 40, 40]
    walked = greedy.walked(3)
    assert (walked.tokens.tolist(), walked.known.tolist(), walked.cut.tolist()) == ([40] * 3, [20, 40, 40], [1, 0, 0])


def test_no_more_tokens_of_a_sample_are_walked_than_asked_for() -> None:
    target, prompts = target_of(), pairs.prompts(2, VOCAB)
    draft = draft_of(target, "eagle3")
    batch = batch_of(target, prompts, [each.tokens for each in decoded(target, prompts, stop=False)])
    greedy, _ = walker(draft, target, most=15, stop_ids=frozenset()).rounds(draft, batch, [0, 1])
    assert greedy.whole.tolist() == [15, 15]
    assert not greedy.answers.stopped.any()


def test_what_draws_no_token_can_not_be_kept_as_one() -> None:
    """top_k = 1 cuts all but the likeliest: a sampled token that is not is no sample of that."""
    target, prompts = target_of(), pairs.prompts(2, VOCAB)
    draft = draft_of(target, "dspark")
    batch = batch_of(target, prompts, [each.tokens for each in decoded(target, prompts, temperature=1.0, seed=4)])
    greedy, sampled = walker(draft, target, Sampled(temperature=1.0, top_k=1)).rounds(draft, batch, [0, 1])
    assert sampled.answers.known.tolist() == greedy.answers.known.tolist()
    np.testing.assert_array_equal(sampled.answers.reached, greedy.answers.reached)


def test_a_batch_without_answers_has_no_rounds() -> None:
    target, prompts = target_of(), pairs.prompts(2, VOCAB)
    batch = batch_of(target, prompts, [[], [5]])
    draft = draft_of(target, "dflash")
    greedy, _ = walker(draft, target).rounds(draft, batch, [0, 1])
    assert greedy.walked(2).sums.rounds.tolist() == [0, 0]


def test_a_part_of_a_vocabulary_is_not_held_against_itself() -> None:
    target = target_of()
    draft = pairs.draft(target, **DRAFTS["eagle3-reduced"])
    batch = batch_of(target, [[3, 4]], [[5, 2]])
    with pytest.raises(TrainingError, match="need the target's whole head"):
        walker(draft, target).rounds(draft, batch, [0])


def test_nothing_is_left_of_the_pass() -> None:
    """A look leaves no gradients and no graph behind."""
    target = target_of()
    draft = draft_of(target, "dspark").requires_grad_(True)
    walker(draft, target).rounds(draft, batch_of(target, [[3, 4]], [[5, 2, 3]]), [0])
    assert all(parameter.grad is None for parameter in draft.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["dspark", "eagle3"])
def test_the_target_is_asked_once_and_another_draft_finds_its_answers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, prompts = target_of(), pairs.prompts(4, VOCAB)
    first, second = draft_of(target, name), draft_of(target, name)
    torch.nn.init.normal_(second.fc.weight, std=0.5, generator=torch.Generator().manual_seed(8))
    batch = batch_of(target, prompts, [each.tokens for each in decoded(target, prompts, temperature=1.0)])
    fresh = walker(second, target, Sampled(temperature=1.0)).rounds(second, batch, range(4))
    walking = walker(first, target, Sampled(temperature=1.0))
    walking.rounds(first, batch, range(4))
    monkeypatch.setattr("deepspec.walk.walker.said_by_target", lambda *_: pytest.fail("it was asked again"))
    again = walking.rounds(second, batch, range(4))
    for one, other in zip(fresh, again, strict=True):
        np.testing.assert_array_equal(one.answers.kept, other.answers.kept)
