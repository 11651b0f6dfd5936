"""Pages of what is published: each kind has one, drafts come side by side, a run's story is told top to bottom."""

import base64
import re
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from deepspec.artifacts import Artifact, open_artifact, reference
from deepspec.catalog import catalog
from deepspec.errors import SpecError
from deepspec.overview.drafts import find_drafts, side_by_side
from deepspec.overview.page import html_of, named_values, page_of, pictures
from deepspec.overview.story import story
from deepspec.stages import STAGES
from deepspec.store import Store
from tests.given.published.older import LEFT

PNG = b"\x89PNG\r\n\x1a\n"
CARRIED = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("left")
    with tarfile.open(LEFT) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def made(folder: Path) -> dict[str, Artifact]:
    store = Store(folder / "store")
    manifests = [entry.manifest for entry in catalog(store) if entry.manifest is not None]
    return {each.kind: open_artifact(store, reference(store, each), folder / "scratch") for each in manifests}


def carried(text: str) -> list[bytes]:
    """Return the pictures in a page."""
    return [base64.b64decode(found) for found in CARRIED.findall(text)]


@pytest.mark.parametrize(
    ("kind", "told", "drawn"),
    [
        ("prompts", "60 of 60 rows kept", 0),
        ("answers", "60 of 60 prompts answered", 0),
        ("target_cache", "55 samples; 2,030 tokens", 0),
        ("draft", "While it was trained", 1),
        ("exports", "not for llama.cpp", 0),
        ("scores", "By position", 2),
        ("speed", "tokens per round", 1),
        ("release", "Parity gate", 3),
    ],
)
def test_every_kind_has_a_page_with_its_pictures(made: dict[str, Artifact], kind: str, told: str, drawn: int) -> None:
    text = html_of(made[kind])
    assert text.startswith("<!doctype html>")
    assert told in text
    assert len(carried(text)) >= drawn
    assert all(picture.startswith(PNG) for picture in carried(text))


def test_the_page_of_a_draft_says_of_what_it_was_made_and_how(made: dict[str, Artifact]) -> None:
    text = page_of(made["draft"]).markdown()
    assert made["draft"].manifest.inputs["target_cache"].prefix in text.replace("\\", "")
    assert "| draft.block_size | 3 |" in text
    assert carried(text) == [pictures(made["draft"])["learning_curve"]]


def test_nested_values_are_rows_and_empty_ones_none() -> None:
    told = {"a": {"b": 1200, "c": None, "d": {}}, "e": [1, 2], "f": 0.123456, "g": True, "h": ""}
    assert named_values(told) == [
        {"name": "a.b", "value": "1,200"},
        {"name": "e", "value": "1, 2"},
        {"name": "f", "value": "0.1235"},
        {"name": "g", "value": "yes"},
    ]


def test_drafts_stand_side_by_side_with_what_was_measured_of_them(made: dict[str, Artifact], folder: Path) -> None:
    """A draft, and the release of the same: no difference, and each curve twice."""
    draft, release = made["draft"], made["release"]
    found = find_drafts(draft.store, [draft.prefix, release.prefix], folder / "scratch")
    assert [each.draft.ref for each in found] == [draft.ref, draft.ref]
    assert {each.scores.ref for each in found if each.scores} == {made["scores"].ref}
    page = side_by_side(found)
    text = page.markdown()
    assert "| +0.000 | +0.000 to +0.000 | no difference seen |" in text
    assert text.count("1.556") >= 2
    speed = text[text.index("## Speed") :]
    assert "| draft | batch | tokens/s |" in speed
    assert "| break-even | proposing | verify |" in speed
    for each in found:
        assert each.timed is not None
        assert len(re.findall(rf"^\| {re.escape(each.name)} \|", speed, re.MULTILINE)) == len(each.timed.batches)
    drawn = page.figures()
    assert set(drawn) == {
        "acceptance_by_position", *(f"learning_curve_of_{each.prefix.replace('/', '_')}" for each in (draft, release))
    }  # fmt: skip
    assert all(picture.startswith(PNG) for picture in drawn.values())


def test_what_is_of_no_draft_cannot_stand_beside_one(made: dict[str, Artifact], folder: Path) -> None:
    names = [made["draft"].prefix, made["answers"].prefix]
    with pytest.raises(SpecError, match=r"is of kind answers, which is of no draft; .* scores, speed, exports"):
        find_drafts(made["draft"].store, names, folder / "scratch")


def test_a_run_is_told_from_plan_to_where_it_pays(made: dict[str, Artifact]) -> None:
    stages = [{"stage": name, "artifact": made[stage.kind].prefix} for name, stage in STAGES.items()]
    text = story("run", ["tiny × dspark", "on laptop: about 2 min"], stages, list(made.values())).markdown()
    titles = re.findall("^## (.*)$", text, re.MULTILINE)
    assert titles == ["Plan", "Stages", "While it was trained", "Acceptance", "By position", "Speed"]
    assert text.index("on laptop: about 2 min") < text.index("| prepare |") < text.index(CARRIED.search(text)[0])  # type: ignore[index]
    assert carried(text)[0] == pictures(made["draft"])["learning_curve"]


def test_a_run_that_has_just_begun_has_a_story_too(made: dict[str, Artifact]) -> None:
    text = story("run", [], [{"stage": "prepare"}], [made["prompts"]]).markdown()
    assert re.findall("^## (.*)$", text, re.MULTILINE) == ["Stages"]


@pytest.mark.parametrize("kinds", [["speed"], ["draft", "scores"]])
def test_the_command_writes_page_and_pictures(
    made: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: list[str]
) -> None:
    monkeypatch.setenv("DEEPSPEC_DATA_DIR", str(tmp_path / "data"))
    names, out = [made[kind].prefix for kind in kinds], tmp_path / "pages" / "page.html"
    words = ["report", *names, "--root", made["draft"].store.root, "--out", str(out), "--pictures", str(tmp_path / "p")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    lines = result.output.split()
    assert lines[0] == str(out)
    assert out.read_text().startswith("<!doctype html>")
    assert len(lines) > 1
    assert all(Path(line).parent == tmp_path / "p" and Path(line).read_bytes().startswith(PNG) for line in lines[1:])
