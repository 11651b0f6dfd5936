"""Which GGUF file the embedded engine serves, of those that target and exports name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deepspec.placement import Endpoint, Placement
from infra.engines import serving
from infra.engines.managed import Served
from tests.given.heard import Heard


@pytest.mark.parametrize(
    ("named", "there", "expected"),
    [
        (None, {}, "target.gguf"),
        ("4bits", {"4bits": "served.gguf"}, "served.gguf"),
        ("4bits", {}, "target.gguf"),
        ("4bits", {"4bits": "elsewhere.gguf"}, "target.gguf"),
    ],
)
def test_the_file_that_the_exports_were_written_for_is_served(
    named: str | None, there: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the target came as a GGUF file itself, of other precision, say."""
    started = list[Path | None]()

    @contextmanager
    def start(_: object, served: Served, __: Path) -> Iterator[tuple[Endpoint, ...]]:
        started.append(served.gguf)
        yield ()

    monkeypatch.setattr(serving, "start_engines", start)
    monkeypatch.setattr(serving, "_unable", lambda *_: "")
    monkeypatch.setattr(serving, "_draft", lambda *_: [])
    exports, scores = ({"gguf": named}, {"max_new_tokens": 8})
    inputs: Any = {
        name: SimpleNamespace(manifest=SimpleNamespace(spec=spec))
        for name, spec in {"exports": exports, "scores": scores}.items()
    }
    report: Any = None
    (tmp_path / "served.gguf").touch()
    placement = Placement(scratch=tmp_path, locations={name: str(tmp_path / file) for name, file in there.items()})
    with serving.serving_draft(inputs, placement, tmp_path / "target.gguf", tmp_path, report):
        assert started == [tmp_path / expected] * 2


def test_without_a_file_it_says_what_names_one(tmp_path: Path) -> None:
    heard, exports = Heard(), SimpleNamespace(manifest=SimpleNamespace(spec={}))
    placement, inputs = Placement(scratch=tmp_path), cast("Any", {"exports": exports})
    with serving.serving_draft(inputs, placement, None, tmp_path, heard) as found:
        assert found == placement
    assert "export.gguf=FILE does" in heard.lines[0]
