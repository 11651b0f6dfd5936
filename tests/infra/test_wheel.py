"""The wheel and the source distribution hold everything that the commands need, and work away from a checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.engines.managed import free_port
from infra.shipped import PACKAGES as ROOT

LAYERS = ("cli", "deepspec", "deployments", "flows", "infra", "tasks")
BUILT = (*LAYERS, "docs", "tests")
Run = Callable[..., subprocess.CompletedProcess[str]]
TINY = (
    "prepare.max_samples=24",
    "regenerate.sampling.max_tokens=16",
    "train.draft.num_layers=1",
    "train.objective.num_anchors=4",
    "train.steps=4",
    "train.global_batch=1",
    "train.validation_samples=2",
    "evaluate.samples=1",
    "evaluate.max_new_tokens=8",
    "evaluate.calibration_samples=1",
    "evaluate.lossless_samples=1",
    "evaluate.untrained_samples=1",
    "benchmark.batches=[1]",
    "benchmark.samples=1",
    "benchmark.loads=[1]",
    "benchmark.engine_samples=1",
    "benchmark.max_new_tokens=8",
    "benchmark.repeats=1",
    "dataset.benchmarks=[arithmetic]",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources: a build writes beside them, and what an earlier one left would come along."""
    folder = tmp_path_factory.mktemp("source")
    for name in BUILT:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    return folder


def build(source: Path, kind: str, folder: Path) -> Path:
    """Return what the build backend makes of the sources: `wheel` or `sdist`."""
    code = "import sys; from setuptools import build_meta as b; getattr(b, 'build_' + sys.argv[1])(sys.argv[2])"
    done = subprocess.run(
        [sys.executable, "-c", code, kind, str(folder)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, "wheel", tmp_path_factory.mktemp("dist"))


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of somebody who never heard of this checkout."""
    ours = ("PYTHON", "PREFECT", "DEEPSPEC", "AWS", "VIRTUAL_ENV")
    rest = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**rest, "HOME": str(folder), "COLUMNS": "160", "PREFECT_WORKER_QUERY_SECONDS": "1"}


@pytest.fixture(scope="module")
def beside(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, in which the packages of this one can be seen and this checkout cannot."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))  # no .pth file of that folder is read
    return venv / "bin" / "python"


def commands(python: Path, folder: Path) -> Run:
    """Return a function that runs a command of an installed wheel in a folder, and fails where the command does."""
    words = "import sys; from cli.main import main; sys.argv[0] = 'deepspec'; main()"  # what the console script is

    def run(*command: str, program: tuple[str, ...] = ("-P", "-c", words)) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(python), *program, *command], cwd=folder, env=environment(folder), capture_output=True, text=True,
            check=False, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


def strangers(folder: Path) -> None:
    """Write modules of another project into a folder that have the names of our packages."""
    for name in ("cli", "flows", "infra", "tasks"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('the wrong {name}')")


def shipped(folder: Path) -> set[str]:
    """Return the files of the packages in the checkout that a build must hold."""
    found = {path for layer in LAYERS for path in (folder / layer).rglob("*") if path.is_file()}
    return {path.relative_to(folder).as_posix() for path in found if path.suffix != ".pyc"}


def test_the_wheel_holds_every_file_of_the_packages(source: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert shipped(source) - held == set()
    assert not {name for name in held if name.startswith(("tests", "docs"))}


def test_the_source_distribution_builds_the_image_and_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(source, "sdist", tmp_path)) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert shipped(source) - held == set()
    copied = [line for line in (ROOT / "infra/Dockerfile").read_text().splitlines() if line.startswith("COPY req")]
    assert {line.split()[1] for line in copied} <= held
    assert {"pyproject.toml", "Makefile", "README.md", "LICENSE", "requirements.lock", "docs/architecture.md"} <= held


def test_away_from_a_checkout_everything_is_found(beside: Path, tmp_path: Path) -> None:
    strangers(tmp_path)
    run = commands(beside, tmp_path)
    assert "h100x2" in run("plan", "--target", "smollm2-135m", "--size", "laptop", "--hardware", "h100x2").stdout
    run("files", "laid")
    assert (tmp_path / "laid" / "infra" / "kubernetes" / "worker.yaml").is_file()
    code = (
        "import infra.server.setup as s; print(s.__file__, *(s.DEPLOYMENTS / p.file for p in s.ENVIRONMENTS.values()))"
    )
    found = [Path(path) for path in run(code, program=("-P", "-c")).stdout.split()]
    assert all(path.is_file() and path.is_relative_to(beside.parents[1]) for path in found)


def whole_life(run: Run, folder: Path) -> None:
    """From `doctor` to `down` in an empty folder: a real target, a run, a server, a deployment that runs."""
    sizes = [word for size in TINY for word in ("--set", size)]
    assert run("--version").stdout.startswith("deepspec ")
    told = json.loads(run("doctor", "--json").stdout)
    assert {check["result"] for check in told["checks"]} == {"ok"}
    assert "smollm2-135m" in run("plan").stdout
    assert "lossless" in run("run", "--smoke", "24", "--size", "laptop", *sizes).stdout
    api = f"http://127.0.0.1:{(port := free_port())}/api"
    run("up", "--detach", "--port", str(port))
    try:
        choices = json.dumps({"smoke": 24, "size": "laptop", "overrides": TINY})
        code = f"import os; os.environ['PREFECT_API_URL'] = {api!r}; from prefect.cli import app; app()"
        run(
            "deployment", "run", "prepare/local", "--param", f"choices={choices}", "--watch", program=("-P", "-c", code)
        )
        assert "Completed" in run("runs").stdout
    finally:
        assert "stopped" in run("down").stdout
    assert "release" in run("status").stdout
    assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == ["deepspec-data"]


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_from_an_empty_folder_it_lives_a_whole_life(beside: Path, tmp_path: Path) -> None:
    whole_life(commands(beside, tmp_path), tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(2700)
def test_a_clean_environment_with_the_pins_lives_a_whole_life(wheel: Path, tmp_path: Path) -> None:
    """Installs everything anew: a package that the checkout's environment happens to have is missed here."""
    venv, folder = tmp_path / "venv", tmp_path / "empty"
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [f"{venv}/bin/pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", ROOT / "requirements.lock", f"{wheel}[engine,s3]"], check=True)
    subprocess.run([*pip, "--no-deps", "--requirement", ROOT / "requirements-demo.lock"], check=True)
    whole_life(commands(venv / "bin" / "python", folder), folder)
