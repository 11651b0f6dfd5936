"""What Muon takes of a step is told before a run: from shapes, and checked by hand."""

from pathlib import Path

import pytest

from deepspec.optimizers.orthogonal import orthogonal_flops
from deepspec.plan.checks import outcomes
from deepspec.plan.cost.flops import draft_matrices, muon_flops, train_flops
from deepspec.plan.cost.given import Sizes, Workload
from deepspec.ranges import Range
from deepspec.target_cache.sizes import Captured
from infra.known import known
from tests.plan.placed import choices, site, told

SIZES = Sizes(
    layers=4, hidden=8, intermediate=16, heads=2, kv_heads=1, head_dim=4, vocabulary=100, parameters=1
)  # fmt: skip
CAPTURED = Captured(
    samples=10, tokens=Range.around(200), supervised=Range.around(100), last_rows=Range.around(110), layers=2, hidden=8,
    part_bytes=1,
)  # fmt: skip
WORK = Workload(captured=CAPTURED, passes=1, draft_layers=1, anchors=5, block=4, questions=0, question_tokens=1)


def test_a_matrix_is_orthogonalised_in_five_steps_of_three_products() -> None:
    """Of 8 × 16: X Xᵀ 2·8·8·16, its square 2·8³, times X 2·8·8·16, in all 5120; five times that."""
    assert orthogonal_flops(8, 16) == orthogonal_flops(16, 8) == 5 * (2048 + 1024 + 2048)


def test_the_share_of_muon_is_that_of_all_matrices_of_the_draft() -> None:
    """Queries and output 8 × 8, keys and values 4 × 8, three of 16 × 8, and 8 × 16 that fuses two layers."""
    assert sorted(draft_matrices(SIZES, WORK)) == [(4, 8)] * 2 + [(8, 8)] * 2 + [(8, 16), *[(16, 8)] * 3]
    square, narrow, wide = 5 * (4 * 8 * 8 * 8 + 2 * 8**3), 5 * (4 * 4 * 4 * 8 + 2 * 4**3), 5 * 5120
    assert muon_flops(SIZES, WORK) == 2 * square + 2 * narrow + 4 * wide
    refined = WORK.but(refiner_rank=2, draft_vocabulary=50)  # 5·(4·2²·n + 2·2³) for 100 and for 50 tokens
    assert muon_flops(SIZES, refined) - muon_flops(SIZES, WORK) == 5 * (1600 + 16) + 5 * (800 + 16)
    parameters = 2 * 64 + 2 * 32 + 4 * 128
    slots = 5 * 4 * 10  # anchors of each sample, four slots each
    wanted = 6 * parameters * slots + 4 * 800 * slots + 200 * 6 * 2 * 64 + 100 * 2 * 800
    assert train_flops(SIZES, WORK).mid == wanted


@pytest.mark.parametrize(("batch", "warned"), [(1, True), (100_000, False)])
def test_a_plan_warns_of_muon_once_where_a_step_is_small(place: Path, batch: int, warned: bool) -> None:
    overrides = ("train.optimizer=muon", f"train.global_batch={batch}")
    lines = [line for line in told(place, *overrides) if "muon" in line]
    assert len(lines) == warned
    assert all(f"(train.global_batch={batch}); raise that, or take adamw" in line for line in lines)
    (row,) = (
        each for each in outcomes(known(choices(place, *overrides).plan, site(place))) if each.name == "optimizer"
    )
    assert row.detail.startswith("muon, ")


def test_a_plan_says_nothing_of_adamw(place: Path) -> None:
    assert not [line for line in told(place) if "muon" in line or "adamw" in line]
