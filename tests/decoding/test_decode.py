"""The loop: equal to the target alone, whatever is proposed, however rows are batched."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from deepspec.decoding.decode import Decoder
from deepspec.decoding.target_rows import TargetRows
from deepspec.errors import CheckpointError
from deepspec.proposers.propose import NoProposer, Proposer, proposer_for
from deepspec.rounds.decoded import Decoded, Prompt, Settings
from deepspec.target.load import Target
from tests.given.drafts import pairs
from tests.given.drafts.pairs import DRAFTS


def decode(
    target: Target, proposer: Proposer, prompts: list[list[int]], batch: int = 4, **settings: Any
) -> dict[str, Decoded]:
    how = Settings(**{"max_new_tokens": 24, **settings})
    decoder = Decoder(TargetRows(target, proposer.layers), proposer, how, target.stop_ids, batch)
    asked = [Prompt(sample_id=str(number), ids=ids) for number, ids in enumerate(prompts)]
    return {decoded.sample_id: decoded for decoded in decoder.decode(asked)}


@cache
def generated(sliding: bool, count: int) -> list[tuple[int, ...]]:
    """Return what the tiny target gives alone for so many of its prompts, by transformers' own loop, which is slow."""
    target = pairs.target(sliding=sliding)
    ends = [
        target.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=24)[0, len(ids) :].tolist()
        for ids in pairs.prompts(count)
    ]
    return [tuple(ids) for ids in ends]


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_greedy_output_is_what_the_target_generates_alone(sliding: bool, batch: int) -> None:
    target, prompts = pairs.target(sliding=sliding), pairs.prompts(7)
    wanted = generated(sliding, 7)
    plain = decode(target, NoProposer(), prompts, batch)
    assert [plain[str(row)].tokens for row in range(7)] == wanted
    answers = {ids[1]: [*ids[1:], *answer] for ids, answer in zip(prompts, wanted, strict=True)}
    spoken = decode(target, pairs.Oracle(answers), prompts, batch)
    assert [spoken[str(row)].tokens for row in range(7)] == wanted
    assert {round_.accepted for decoded in spoken.values() for round_ in decoded.rounds} >= {0, 1, 2, 3, 4}


@pytest.mark.parametrize("name", DRAFTS)
@pytest.mark.parametrize("sliding", [False, True])
def test_every_algorithm_is_lossless_at_temperature_0(name: str, sliding: bool) -> None:
    target, prompts = pairs.target(sliding=sliding), pairs.prompts(5)
    proposer = proposer_for(pairs.draft(target, **DRAFTS[name]), stop_ids=target.stop_ids)
    decoded = decode(target, proposer, prompts)
    assert [decoded[str(row)].tokens for row in range(5)] == generated(sliding, 5)


def test_an_answer_that_ends_with_its_first_token_takes_no_round_wherever_it_is_read() -> None:
    """Of the same prompts one at a time, and together, where it comes into the place of one that has ended."""
    target = pairs.target(6, sharpness=2.0)
    prompts = [[number % 6, number // 6, 3] for number in range(24)]
    proposer = proposer_for(pairs.draft(target, "dflash"), stop_ids=target.stop_ids)
    for batch in (1, 3, 24):
        every = decode(target, proposer, prompts, batch, temperature=1.0).values()
        ended = [each for each in every if each.tokens[0] in target.stop_ids]
        assert ended
        assert all(len(each.tokens) == 1 and not each.rounds for each in ended)


def test_a_parallel_draft_runs_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """And once for the prompt: what a round keeps and the target adds is read with the 3 mask tokens behind it."""
    target = pairs.target()
    draft, widths = pairs.draft(target, **DRAFTS["peagle"]), []
    forward = draft.forward

    def noted(ids: Tensor, *rest: Any) -> Any:
        widths.append(ids.shape[1])
        return forward(ids, *rest)

    monkeypatch.setattr(draft, "forward", noted)
    (decoded,) = decode(target, proposer_for(draft, stop_ids=target.stop_ids), [[5, 6, 7, 8]]).values()
    assert len(decoded.rounds) > 3
    assert widths == [4, 3] + [each.accepted + 1 + 3 for each in decoded.rounds[:-1]]


@pytest.mark.parametrize("slots", [1, 2])
def test_a_parallel_draft_proposes_the_first_of_its_tokens_alone_as_it_does_among_more(slots: int) -> None:
    draft, found = pairs.draft(pairs.target(), **DRAFTS["peagle"]), []
    context, tokens = torch.randn(2, 5, 2 * 32), torch.randint(2, 48, (2, 6))
    for count in (slots, draft.config.drafts):
        rows = proposer_for(draft, count).rows(2, 20, torch.device("cpu"))
        for counts in (torch.tensor([5, 3]), torch.tensor([1, 4])):
            rows.commit(context, tokens, counts)
            proposal = rows.propose(tokens[[0, 1], counts], 0.0, None)
        found.append(proposal.tokens)
    assert torch.equal(found[0], found[1][:, :slots])
    with pytest.raises(CheckpointError, match="cannot propose 5 tokens: the draft was trained to propose 4"):
        proposer_for(draft, 5)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_convolved_draft_proposes_fewer_tokens_than_it_could(slots: int) -> None:
    target = pairs.target()
    draft = pairs.draft(target, **DRAFTS["dflash2 shifted"])
    context, tokens = torch.randn(2, 5, 2 * 32), torch.zeros(2, 6, dtype=torch.int64)
    found = []
    for count in (slots, draft.config.drafts):
        rows = proposer_for(draft, count).rows(2, 20, torch.device("cpu"))
        rows.commit(context, tokens, torch.tensor([5, 5]))
        found.append(rows.propose(torch.tensor([3, 4]), 0.0, None).tokens)
    assert found[0].shape == (2, slots)
    assert found[1].shape == (2, 4)


@pytest.mark.parametrize("name", ["dspark", "dflash2", "eagle3", "peagle", "mtp"])
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    target, prompts = pairs.target(), pairs.prompts(6)
    proposer = proposer_for(pairs.draft(target, **DRAFTS[name]), stop_ids=target.stop_ids)
    alone = decode(target, proposer, prompts, 1, temperature=1.0)
    for batch in (2, 6):
        together = decode(target, proposer, prompts, batch, temperature=1.0)
        assert {name: row.tokens for name, row in together.items()} == {name: row.tokens for name, row in alone.items()}
    other = decode(target, proposer, prompts, 6, temperature=1.0, seed=1)
    assert {row.tokens for row in other.values()} != {row.tokens for row in alone.values()}
