"""A shard that runs on another machine finds target and benchmarks where they lie there."""

from pathlib import Path

from deepspec.placement import Placement
from flows.choices import Choices
from infra.site import Site
from tasks.resolve import located
from tests.given.server.operated import write_inputs


def test_places_of_another_machine_are_replaced_by_those_of_this_one(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    choices = Choices(
        target=str(tmp_path / "target"),
        answers=str(tmp_path / "answers.jsonl"),
        benchmarks_dir=str(tmp_path / "questions"),
    )
    placement = Placement(scratch=tmp_path / "scratch", locations={"0123": "/elsewhere/target"})
    site = Site(root=str(tmp_path / "store"), placement=placement, folder=Path("/elsewhere/target"))
    here = located(site, choices.plan)
    assert here.folder == tmp_path / "target"
    assert {str(tmp_path / "target"), str(tmp_path / "questions" / "small.jsonl")} <= set(
        here.placement.locations.values()
    )
    assert located(here, choices.plan) is here
    assert located(site, None) is site
