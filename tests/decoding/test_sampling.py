"""Sampling and verification, by numbers that can be checked by hand."""

import torch

from deepspec.proposers.sampling import Noise, Proposal, pick, verify


def logits(*rows: list[float]) -> torch.Tensor:
    """Return logits `(1, len(rows), V)` of the given probabilities."""
    return torch.tensor([rows]).log()


def proposal(tokens: list[int], chances: list[list[float]] | None = None, length: int | None = None) -> Proposal:
    return Proposal(
        tokens=torch.tensor([tokens]),
        lengths=torch.tensor([len(tokens) if length is None else length]),
        probabilities=None if chances is None else torch.tensor([chances]),
    )


def noise(*numbers: float) -> torch.Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def test_a_token_is_picked_where_the_cumulated_weights_pass_the_noise() -> None:
    weights = torch.tensor([0.0, 0.25, 0.0, 0.75]).expand(4, -1)
    assert pick(weights, torch.tensor([0.0, 0.2499, 0.25, 0.9999])).tolist() == [1, 1, 3, 3]
    assert pick(2 * weights, torch.tensor([0.0, 0.2499, 0.25, 0.9999])).tolist() == [1, 1, 3, 3]


def test_a_token_is_kept_with_the_ratio_of_the_chances() -> None:
    drafted = proposal([0], [[0.8, 0.2]])
    target = logits([0.4, 0.6], [0.5, 0.5])  # p/q = 0.5 for token 0
    assert verify(drafted, target, 1.0, noise(0.0, 0.49)).accepted.tolist() == [1]
    assert verify(drafted, target, 1.0, noise(0.0, 0.51)).accepted.tolist() == [0]


def test_after_a_rejection_the_rest_of_the_targets_chances_counts() -> None:
    drafted = proposal([0], [[0.8, 0.2, 0.0]])
    target = logits([0.2, 0.5, 0.3], [1.0, 0.0, 0.0])  # max(p − q, 0) = 0, 0.3, 0.3
    assert [verify(drafted, target, 1.0, noise(u, 0.9)).token.item() for u in (0.0, 0.49, 0.51, 0.99)] == [1, 1, 2, 2]


def test_after_a_full_acceptance_the_targets_next_chances_count() -> None:
    drafted = proposal([0], [[1.0, 0.0]])
    target = logits([1.0, 0.0], [0.3, 0.7])
    assert [verify(drafted, target, 1.0, noise(u, 0.5)).token.item() for u in (0.29, 0.31)] == [0, 1]


def test_slots_that_are_not_meant_are_never_kept_and_leave_no_trace() -> None:
    drafted = proposal([0, 0], [[1.0, 0.0], [1.0, 0.0]], length=1)
    target = logits([1.0, 0.0], [0.3, 0.7], [1.0, 0.0])
    verdict = verify(drafted, target, 1.0, noise(0.31, 0.1, 0.1))
    assert (verdict.accepted.tolist(), verdict.token.tolist()) == ([1], [1])


def test_greedily_the_prefix_that_agrees_is_kept() -> None:
    target = logits([0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.9, 0.1])
    verdict = verify(proposal([1, 0, 0]), target, 0.0, None)
    assert (verdict.accepted.tolist(), verdict.token.tolist()) == ([2], [1])
    assert verify(proposal([1, 0, 1]), target, 0.0, None).token.tolist() == [0]


def test_numbers_belong_to_the_sample_not_to_its_place() -> None:
    both, other = Noise(7, ["a", "b"]), Noise(7, ["b"])
    first = both.draw(3, torch.device("cpu"))
    assert torch.equal(first[1:], other.draw(3, torch.device("cpu")))
    both.keep([1])
    assert torch.equal(both.draw(2, torch.device("cpu")), other.draw(2, torch.device("cpu")))
    assert not torch.equal(first[:1], Noise(8, ["a"]).draw(3, torch.device("cpu")))
