"""What is said of a row."""

import pytest

from deepspec.errors import SpecError
from deepspec.sweep.variants import Variant, read_variant


def test_a_row_is_a_name_and_changes() -> None:
    found = read_variant("lk: train.objective.lk_hybrid=1 train.objective.cross_entropy=0")
    assert found == Variant(name="lk", changes=("train.objective.lk_hybrid=1", "train.objective.cross_entropy=0"))


def test_a_row_without_a_name_is_called_by_its_changes() -> None:
    assert read_variant("train.optimizer=muon").name == "train.optimizer=muon"
    assert read_variant("train.warm_start=a:b") == Variant(
        name="train.warm_start=a:b", changes=("train.warm_start=a:b",)
    )


def test_a_row_may_have_another_algorithm() -> None:
    found = read_variant("algorithm=eagle3 train.objective.ttt_length=4")
    assert (found.algorithm, found.changes) == ("eagle3", ("train.objective.ttt_length=4",))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "wanted field=value"),
        ("muon", "wanted field=value"),
        ("name:", "wanted field=value"),
        ("name: muon train.steps=4", "wanted field=value"),
        ("algorithm=medusa", "Input should be 'dspark', 'dflash', 'dflash2', 'xpress', 'eagle3', 'peagle' or 'mtp'"),
        (": train.steps=4", "at least 1 character"),
    ],
)
def test_what_is_no_row_is_said(text: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        read_variant(text)
