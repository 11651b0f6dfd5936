"""`deepspec serve-bench` from the outside: a release of a tiny target, and engines that stand in for real ones."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from deepspec.artifacts import Artifact
from deepspec.benchmark import asked
from deepspec.catalog import catalog, set_ref
from deepspec.errors import DeepSpecError
from deepspec.formats.speed import read_speed
from deepspec.placement import Placement
from deepspec.serving import levels
from deepspec.store import Store
from infra import terminal
from tests.given.engines.streaming import Fake, serving
from tests.given.published.chain import run_chain


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    folder = tmp_path_factory.mktemp("chain")
    return folder, run_chain(folder)["release"]


@pytest.fixture
def place(made: tuple[Path, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the folder that the release was made in."""
    monkeypatch.setenv("DEEPSPEC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(terminal._out, "width", 400)
    monkeypatch.setattr(asked, "BEGINNING", 0)  # the stand-in's answers begin otherwise
    monkeypatch.setattr(levels, "BUSY", 100.0)
    monkeypatch.setattr(levels, "LATE", 100.0)
    shutil.copytree(made[0], tmp_path / "chain")
    return tmp_path / "chain"


WORDS = ("--loads", "1,2", "--requests", "2", "--max-tokens", "4", "--checked", "2")


def bench(place: Path, release: str, *words: str, fake: Fake | None = None) -> tuple[int, str]:
    """Return the exit code, and what was shown."""
    with serving(fake or Fake(kind="vLLM")) as drafting, serving(Fake(kind="vLLM", drafts=False)) as plain:
        named = ["--endpoint", drafting.url, "--plain", plain.url, "--model", "target"]
        told = ["--target", str(place / "target"), "--root", str(place / "store")]
        files = ["--benchmarks-dir", str(place / "benchmarks")]
        result = CliRunner().invoke(app, ["serve-bench", release, *named, *told, *files, *WORDS, *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def releases(place: Path) -> list[str]:
    return [each.address for each in catalog(Store(str(place / "store"))) if each.kind == "release"]


def test_a_release_is_published_again_with_what_was_found(place: Path, made: tuple[Path, Artifact]) -> None:
    _, release = made
    _, shown = bench(place, release.manifest.address)
    (again,) = set(releases(place)) - {release.manifest.address}
    assert f"published release/{again}" in shown
    assert "1 at once" in shown
    folder = next((place / "store" / "release" / again).glob("attempt-*"))
    card, report = (folder / "README.md").read_text(), (folder / "report.md").read_text()
    assert "### Served under load" in card
    assert "| 2 at once |" in card
    assert "Prompts of the benchmarks; answers all of 4 tokens" in card
    assert "num_speculative_tokens" in card
    assert "## Served under load" in report
    assert (folder / "served.png").read_bytes().startswith(b"\x89PNG")
    found = read_speed(folder / "speed.json").under_load
    assert found is not None
    assert [each.load for each in found.levels] == [1, 2]


def test_a_release_is_compared_with_the_one_before(place: Path, made: tuple[Path, Artifact]) -> None:
    _, release = made
    bench(place, release.manifest.address)
    (first,) = set(releases(place)) - {release.manifest.address}
    _, shown = bench(place, release.manifest.address, "--before", f"release/{first}")
    assert "against the release before" in shown
    with pytest.raises(DeepSpecError, match="was not measured under load"):
        bench(place, f"release/{first}", "--before", release.manifest.address)


def test_an_engine_that_accepts_otherwise_ends_with_1(place: Path, made: tuple[Path, Artifact]) -> None:
    store = Store(str(place / "store"))
    set_ref(store, "mine", made[1].ref)
    code, shown = bench(place, "mine", fake=Fake(kind="vLLM", accepts=3))
    assert code == 1
    assert "warning: vLLM 7 makes" in shown


def test_an_engine_of_another_target_is_refused(
    place: Path, made: tuple[Path, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "BEGINNING", 2)
    monkeypatch.setattr("deepspec.serving.check.ENOUGH", 1)
    with pytest.raises(DeepSpecError, match="serves another target than the release is for"):
        bench(place, made[1].manifest.address)
    assert len(releases(place)) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--loads", "two"), "wanted numbers with commas"),
        (("--loads", ""), "neither --loads nor --rates"),
        (("--loads", "2,1"), "do not ascend"),
        (("--try", "many"), "wanted N_MAX:P_MIN"),
        (("--try", "2:0.5"), "--try starts engines with other settings"),
        (("--prompts", "nowhere.jsonl"), "--prompts nowhere.jsonl: no such file; wanted rows"),
        (("--gguf", "nowhere.gguf"), "--gguf nowhere.gguf: no such file; wanted the target as llama.cpp reads it"),
        (("--contexts", "100000"), "shorten them"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    place: Path, made: tuple[Path, Artifact], words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DeepSpecError, match=message):
        bench(place, made[1].manifest.address, *words)


def test_prompts_of_a_file_are_asked(place: Path, made: tuple[Path, Artifact], tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"turns": ["one of my own"]}\n')
    fake = Fake(kind="vLLM")
    bench(place, made[1].manifest.address, "--prompts", str(tmp_path / "own.jsonl"), fake=fake)
    under_load = fake.bodies[2:]  # after those of the evaluation
    assert len({tuple(each["prompt"]) for each in under_load}) == 1
    assert len({tuple(each["prompt"]) for each in fake.bodies}) == 3


def test_prompts_are_made_exactly_so_long(place: Path, made: tuple[Path, Artifact]) -> None:
    fake = Fake(kind="vLLM")
    bench(place, made[1].manifest.address, "--contexts", "40,64", fake=fake)
    assert {len(each["prompt"]) for each in fake.bodies[2:]} == {40, 64}


def test_an_engine_is_started_with_the_gguf_file_that_is_named(
    place: Path, made: tuple[Path, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one none can be started for a target of other weights, and the message says so."""
    started = list[Path | None]()

    @contextmanager
    def engines(_: object, placement: Placement, gguf: Path | None, *__: object) -> Iterator[Placement]:
        started.append(gguf)
        yield placement

    monkeypatch.setattr("cli.serve_bench.serving_draft", engines)
    (tmp_path / "served.gguf").write_bytes(b"GGUF")
    words = ["--target", str(place / "target"), "--root", str(place / "store")]
    for named in ([], ["--gguf", str(tmp_path / "served.gguf")]):
        told = CliRunner().invoke(app, ["serve-bench", made[1].manifest.address, *words, *named])
        assert "give --gguf FILE where it wants one" in str(told.exception)
    assert started == [None, tmp_path / "served.gguf"]
