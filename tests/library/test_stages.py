"""One way to run any stage: what is published is taken, what another process makes is waited for."""

import threading
from pathlib import Path

import pytest

from deepspec.artifacts import ArtifactRef, Spec
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.stages import Stage, Work, materialize
from deepspec.store import Store
from tests.heard import Heard


def test_two_that_want_the_same_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first one is held within its work until the second one waits."""
    begun, go_on, calls = threading.Event(), threading.Event(), []

    def make(out: Out) -> dict[str, int]:
        calls.append(out.attempt)
        begun.set()
        assert go_on.wait(60)
        out.file("rows").write_text("made")
        return {}

    class Waits(Heard):
        def log(self, message: str) -> None:
            super().log(message)
            if "waiting" in message:
                go_on.set()

    monkeypatch.setattr(Stage, "run", lambda _: lambda spec, inputs, out, placement, report: make(out))
    stage, heard, found = Stage(name="prepare", kind="prompts", spec=Spec), Waits(), list[ArtifactRef]()

    def want() -> None:
        placement = Placement(scratch=tmp_path / "scratch")
        store = Store(tmp_path / "store")
        work = Work(stage=stage, spec=Spec(), inputs={}, store=store, placement=placement, report=heard)
        found.append(materialize(work))

    threads = [threading.Thread(target=want), threading.Thread(target=want)]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert found[0] == found[1]
    assert heard.lines == ["another run on this machine makes it; waiting for that one"]
