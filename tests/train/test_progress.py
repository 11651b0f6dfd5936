"""What a run has seen so far, against the plain definitions, and without reading its rows again."""

from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from deepspec.watch.progress import RunProgress
from tests.given.some import some

LOSSES = st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, 2.5]), max_size=12)


def look(step: int, loss: float, **more: Any) -> dict[str, Any]:
    return {"split": "validation", "step": step, "loss": loss, **more}


def train(step: int, loss: float) -> dict[str, Any]:
    return {"split": "train", "step": step, "loss": loss}


@given(LOSSES)
def test_the_best_look_is_the_first_of_the_lowest_after_the_untrained_draft(losses: list[float]) -> None:
    looks = [look(step, loss) for step, loss in enumerate(losses)]
    step_by_step = RunProgress()
    for row in looks:
        step_by_step.add(row)
    for progress in (step_by_step, RunProgress(rows=list(looks))):
        assert progress.looks() == looks
        assert progress.best_look() == min(looks[1:], key=lambda row: row["loss"], default=None)


@given(LOSSES, st.integers(1, 5))
def test_patience_ends_where_as_many_looks_brought_no_lower_loss(losses: list[float], patience: int) -> None:
    progress = RunProgress(rows=[look(step, loss) for step, loss in enumerate(losses)])
    stale = len(losses) > patience and min(losses[:-patience]) <= min(losses[-patience:])
    assert (progress.looks_without_progress() >= patience) == stale


def test_a_look_whose_weights_could_not_be_saved_is_not_the_best() -> None:
    progress = RunProgress()
    progress.add(look(4, 2.0))
    lost = look(8, 1.0)
    progress.add(lost)
    progress.not_kept(lost)
    assert progress.best_look() == look(4, 2.0)
    progress.add(look(12, 1.5))  # better than what is kept, worse than what was lost
    assert progress.best_look() == look(12, 1.5)
    assert RunProgress(rows=progress.rows).best_look() == look(12, 1.5)
    assert progress.looks_without_progress() == 1


def test_a_loss_that_is_no_number_is_never_the_best_for_long() -> None:
    progress = RunProgress(rows=[look(0, 3.0), look(4, float("nan")), look(8, 2.0), look(12, float("nan"))])
    assert progress.best_look() == look(8, 2.0)


LENGTHS = st.lists(st.sampled_from([1.0, 1.5, 2.0, 2.5]), max_size=12)


@given(LENGTHS, st.integers(1, 5))
def test_the_longest_rounds_are_the_best_whatever_the_loss(lengths: list[float], patience: int) -> None:
    looks = [look(step, 0.1 * length, accepted_length=length) for step, length in enumerate(lengths)]
    progress = RunProgress(rows=looks)
    assert progress.best_look() == max(looks[1:], key=lambda row: row["accepted_length"], default=None)
    stale = len(lengths) > patience and max(lengths[:-patience]) >= max(lengths[-patience:])
    assert (progress.looks_without_progress() >= patience) == stale
    by_loss = RunProgress(rows=looks, watch="loss")
    assert by_loss.best_look() == min(looks[1:], key=lambda row: row["loss"], default=None)


def test_looks_of_an_earlier_release_are_read_and_those_that_tell_a_length_are_better() -> None:
    before = [look(0, 3.0), look(4, 1.0), look(8, 2.0)]
    assert RunProgress(rows=list(before)).best_look() == look(4, 1.0)
    assert RunProgress(rows=list(before)).looks_without_progress() == 1
    progress = RunProgress(rows=[*before, look(12, 2.5, accepted_length=1.2), look(16, 0.5)])
    assert progress.best_look() == look(12, 2.5, accepted_length=1.2)


def test_a_length_that_is_no_number_is_never_the_best_for_long() -> None:
    progress = RunProgress(rows=[look(4, 1.0, accepted_length=float("nan")), look(8, 2.0, accepted_length=1.1)])
    assert some(progress.best_look())["step"] == 8


class Counted(list[dict[str, Any]]):
    """Rows that count how often they are read one after another."""

    passes = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        Counted.passes += 1
        return super().__iter__()


def test_no_question_reads_all_rows_again() -> None:
    progress = RunProgress()
    progress.rows = Counted()
    for step in range(1, 300):
        progress.add(train(step, 1.0 / step))
        if step % 3 == 0:
            progress.add(look(step, 1.0 / step))
        asked = progress.best_look(), progress.looks_without_progress(), progress.last_loss(), progress.looks()
        assert asked[2] == 1.0 / step
    assert Counted.passes == 0
    assert len(progress.looks()) == 99
