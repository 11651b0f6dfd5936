"""Above temperature 0 the walk has the distribution of decoding: exactly, and against decoding many times.

Today's `tau` has not: it multiplies the chances Σ min(p, q) along an answer of the target. But what follows an accepted
token is what the draft tends to say, too, and not what the target tends to say.
"""

from itertools import product

import numpy as np
import pytest
import torch

from deepspec.algorithms import ALGORITHMS
from deepspec.losses.chunked import chunked_loss
from deepspec.losses.terms import Terms
from deepspec.proposers.propose import proposer_for
from deepspec.rounds.measure import tally
from deepspec.target_cache.facts import Sampled
from tests.given.drafts.held_out import batch_of, decoded, walker
from tests.given.some import some
from tests.walk.test_walker import LONG, VOCAB, draft_of, rows, target_of

PROMPT, FIRST, SLOTS = [3, 2, 5], 4, 4
ERRORS = 4.0
"""Standard errors: a right implementation fails one test in 16,000, and with fixed seeds always or never."""
AS = Sampled(temperature=1.0)


class Enumerated:
    """Every text of one proposal's length behind a prompt, with what target and draft say of it."""

    def __init__(self, name: str) -> None:
        self.target = target_of()
        self.draft = draft_of(self.target, name)
        self.texts = torch.tensor(list(product(range(VOCAB), repeat=SLOTS)))
        answers = [[FIRST, *text] for text in self.texts.tolist()]
        self.batch = batch_of(self.target, [PROMPT] * len(answers), answers, self.draft)
        with torch.no_grad():
            said = self.target.model(self.batch.input_ids).logits[:, len(PROMPT) : -1].double().softmax(-1)
        self.p = said.gather(-1, self.texts[..., None])[..., 0].numpy()
        begins = torch.zeros_like(self.batch.loss_mask)
        begins[:, len(PROMPT)] = True
        (self.drafted,) = ALGORITHMS[self.draft.config.algorithm].drafted(self.draft, self.batch, begins, 1)

    def grid(self, values: torch.Tensor) -> np.ndarray:
        grid = torch.zeros(self.batch.input_ids.numel() * SLOTS)
        grid[self.drafted.places] = values.float()
        return grid.view(len(self.texts), -1, SLOTS)[:, len(PROMPT)].double().numpy()

    def q(self) -> np.ndarray:
        """Return the chance that the draft says each token: plainly, from the whole head and the Markov bias."""
        rows, draft = self.drafted.rows, self.draft
        with torch.no_grad():
            logits = draft.head(rows.hidden)
            logits = logits if rows.markov is None else logits + rows.markov @ some(rows.markov_weight).T
            if self.drafted.choose is not None:
                logits = self.drafted.choose(logits, torch.arange(len(logits)))
        known = draft.known_ids()
        q = torch.zeros(len(logits), VOCAB)
        q[:, torch.arange(VOCAB) if known is None else known] = logits.softmax(-1)
        return self.grid(q.gather(1, self.drafted.tokens[:, None])[:, 0])

    def tau(self) -> float:
        """Return what training told until now: one plus the products of Σ min(p, q) along texts of the target."""
        with torch.no_grad():
            _, measured = chunked_loss(self.drafted.rows, self.drafted.head, Terms())
        return 1 + float((self.grid(measured.acceptance).cumprod(1).sum(1) * self.p.prod(1)).sum())

    def walked(self) -> float:
        _, sampled = walker(self.draft, self.target, AS, stop_ids=frozenset()).rounds(
            self.draft, self.batch, range(len(self.texts))
        )
        return float((sampled.answers.reached[:, 0].sum(1) * self.p.prod(1)).sum())


@pytest.mark.parametrize("name", rows(*LONG, "xpress"))
def test_a_round_is_as_long_as_rejection_sampling_makes_it(name: str) -> None:
    """That keeps k tokens or more with the chance Σ Π min(p, q) over all texts of k tokens."""
    every = Enumerated(name)
    assert every.draft.config.drafts == SLOTS
    both = np.minimum(every.p, every.q()).cumprod(1)
    wanted = 1 + sum(both[:, k].sum() / VOCAB ** (SLOTS - 1 - k) for k in range(SLOTS))
    assert every.walked() == pytest.approx(wanted, rel=1e-5)


def test_the_product_of_chances_is_something_else() -> None:
    """By enumeration: no draw is in it."""
    every = Enumerated("dspark-reduced")
    assert every.tau() < every.walked() - 0.05


def test_a_round_is_as_long_as_it_is_when_decoded() -> None:
    every = Enumerated("dspark-reduced")
    proposer = proposer_for(every.draft, stop_ids=frozenset())
    drawn = decoded(every.target, [PROMPT] * 12000, proposer, max_new_tokens=2, temperature=1.0, stop=False)
    lengths = np.array([each.rounds[0].accepted + 1 for each in drawn if each.tokens[0] == FIRST])
    error = lengths.std() / len(lengths) ** 0.5
    assert abs(lengths.mean() - every.walked()) < ERRORS * error


@pytest.mark.parametrize("name", ["dflash", "dspark-rnn", "eagle3-reduced"])
def test_whole_answers_take_the_rounds_that_decoding_them_took(name: str) -> None:
    """Given what was said, the walk tells the mean of the rounds in which it was said."""
    target, prompts = target_of(), [PROMPT, [2, 4], [5]] * 200
    draft = draft_of(target, name)
    proposer = proposer_for(draft, stop_ids=target.stop_ids)
    drawn = [
        each
        for each in decoded(target, prompts, proposer, temperature=0.8, max_new_tokens=100)
        if each.finish_reason == "stop" and len(each.tokens) > 1
    ]
    asked = [prompts[int(each.sample_id)] for each in drawn]
    batch = batch_of(target, asked, [each.tokens for each in drawn], draft)
    _, sampled = walker(draft, target, Sampled(temperature=0.8)).rounds(draft, batch, range(len(drawn)))
    found, wanted = sampled.walked(len(drawn)).sums, tally(drawn, SLOTS)
    assert (sampled.answers.known == sampled.whole).all()
    assert len(drawn) > 400
    for field in ("rounds", "accepted", "reached", "tokens"):
        off = getattr(wanted, field) - getattr(found, field)
        assert np.all(np.abs(off.mean(0)) <= ERRORS * off.std(0) / len(drawn) ** 0.5 + 1e-5), field
    np.testing.assert_allclose(found.tokens, wanted.tokens, atol=1e-4)  # it is the same answer
