"""What a sweep's rows are, and what it refuses before anything is trained."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from cli.sweep import sweep as command
from deepspec.errors import SpecError
from deepspec.sweep.variants import Variant
from flows import sweep as room
from flows.choices import Choices, choose_site
from flows.sweep import _changed, _check, _shape
from tests.given.server.operated import write_inputs


def test_a_row_changes_what_all_share_and_nothing_else() -> None:
    shared = Choices(overrides=("train.steps=9",))
    rows = (
        Variant(name="asked"),
        Variant(name="eagle3", algorithm="eagle3", changes=("train.objective.ttt_length=4",)),
    )
    asked, eagle3 = (each.plan.train for each in _changed(shared, rows).values())
    assert (asked.draft.algorithm, asked.steps, asked.draft.num_layers) == ("dspark", 9, 2)
    assert (eagle3.draft.algorithm, eagle3.steps, eagle3.draft.num_layers) == ("eagle3", 9, None), "it has one layer"
    assert eagle3.objective.ttt_length == 4


@pytest.mark.parametrize("names", [[], ["one"], ["one", "one"], ["one", "two", "one"]])
def test_a_sweep_takes_two_rows_with_names_of_their_own(names: list[str]) -> None:
    with pytest.raises(SpecError, match=f"{len(names)} variants; wanted two or more, each with a name of its own"):
        _changed(Choices(), tuple(Variant(name=name) for name in names))
    with pytest.raises(SpecError, match="a name of its own; 'asked' is the name of 2"):
        _changed(Choices(), tuple(Variant(name=name) for name in ("asked", "asked", "other")))


@pytest.mark.parametrize("row", ["train.stps=2", "train.steps=many", "as asked: train.steps=3"])
def test_a_row_that_cannot_be_is_refused_before_a_server_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    write_inputs(tmp_path)
    choices = Choices(
        target=str(tmp_path / "target"),
        answers=str(tmp_path / "answers.jsonl"),
        benchmarks_dir=str(tmp_path / "questions"),
        overrides=("evaluate.max_new_tokens=32", "benchmark.max_new_tokens=32"),
    )
    monkeypatch.setattr("infra.server.api.prefect_api", None)  # nothing calls it
    told = {"seeds": 1, "equal": "steps", "by": "walked", "timed": False, "all_seeds": False}
    with pytest.raises(SpecError, match=r"train\.stps: unknown|train\.steps: .*integer|'as asked' is the name of 2"):
        command(choices, choose_site(str(tmp_path / "store")), row=[row], as_json=False, **told)


def test_rows_whose_rounds_take_as_long_have_one_shape() -> None:
    def shape(*changes: str, **told: str) -> str:
        return _shape(Choices.model_validate({**told, "overrides": changes}).plan)

    assert shape() == shape("train.optimizer=muon", "train.seed=3")
    assert shape() != shape("train.draft.block_size=7")
    assert shape(algorithm="eagle3") != shape("train.objective.ttt_length=4", algorithm="eagle3")
    assert shape() == shape("train.objective.ttt_length=4"), "dspark proposes as many tokens as its block has"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (("train.validation_samples=0",), "goes by the accepted length over held-out answers"),
        (("train.walked_tokens=0",), "goes by the accepted length over held-out answers"),
        (("prepare.splits.validation=0",), "goes by the accepted length over held-out answers"),
    ],
)
def test_a_sweep_without_anything_to_judge_by_is_refused(tmp_path: Path, changes: tuple[str], told: str) -> None:
    plan, site = Choices(overrides=changes).plan, choose_site(str(tmp_path))
    with pytest.raises(SpecError, match=told):
        _check(plan, site, "walked")
    _check(plan, site, "decoded")


def test_a_sweep_of_one_row_says_how_to_give_others(tmp_path: Path) -> None:
    told = {"seeds": 3, "equal": "steps", "by": "walked", "timed": False, "all_seeds": False}
    with pytest.raises(SpecError, match="a sweep of one row; give others with --row"):
        command(Choices(), choose_site(str(tmp_path)), row=None, as_json=False, **told)


def test_a_row_that_cannot_be_judged_says_how_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of another model have few tokens that are the target's own: training says so at its first look."""
    draft = SimpleNamespace(address="d" * 32, counts={"steps": 4})
    monkeypatch.setattr(room, "_made", lambda *_: {"train": draft})
    told = room._trained({"asked": Choices()}, choose_site(str(tmp_path)), "walked", "asked", 0)
    assert isinstance(told, str)
    assert "too few of the held-out tokens" in told
    assert "--by decoded" in told
