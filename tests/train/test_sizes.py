"""The tables of docs/memory.md are what the library's own objects take."""

from pathlib import Path

import pytest

from tests.train.sizes import Sizes, table

PAGE = Path(__file__).parents[2] / "docs" / "memory.md"


def test_the_page_says_what_the_code_takes() -> None:
    assert table() in PAGE.read_text()


def test_sizes_can_be_checked_by_hand() -> None:
    """Qwen3-14B: 40 heads and 8 of keys of 128, hidden 5120, inner 17408, vocabulary 151,936."""
    found = Sizes()
    matrices = 2 * 5120 * 40 * 128 + 2 * 5120 * 8 * 128 + 3 * 5120 * 17408
    block = matrices + 2 * 5120 + 2 * 128  # and its norms
    fused = 5 * 5120 * 5120 + 2 * 5120  # five captured layers, two norms
    markov, confidence = 2 * 151_936 * 256, 5120 + 256 + 1
    assert found.trained == 5 * block + fused + markov + confidence == 1_860_438_529
    assert found.frozen == 2 * 151_936 * 5120
    assert found.states == 4096 * 6 * 5120 * 2
    assert found.flat["share"] == pytest.approx(12 * found.trained / 8, abs=12 * 8)
    assert found.flat["gradients"] == pytest.approx(4 * found.trained, abs=4 * 8)


def test_under_muon_a_matrix_has_one_moment_and_shares_are_even_to_a_tenth() -> None:
    """Matrices, the fused layers' among them: 8 bytes each; tables and vectors: 12."""
    found = Sizes(optimizer="muon")
    matrices = 5 * (2 * 5120 * 5120 + 2 * 5120 * 1024 + 3 * 5120 * 17408) + 5 * 5120 * 5120
    even = (8 * matrices + 12 * (found.trained - matrices)) / 8
    assert even <= found.flat["share"] <= 1.1 * even


def test_a_14b_targets_draft_leaves_most_of_a_card_to_activations() -> None:
    for optimizer in ("adamw", "muon"):
        assert sum(Sizes(optimizer=optimizer).device().values()) < 20e9
    assert Sizes().start() < 80e9
