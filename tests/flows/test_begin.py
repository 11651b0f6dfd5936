"""`deepspec` alone says what comes next; `--version`; what a shell completes; what programs read."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app, main
from cli.start import next_step
from deepspec.catalog import catalog
from deepspec.formats.engine_speed import EngineSpeed, engine_name
from deepspec.overview.words import held
from deepspec.store import Store
from tests.given.published.older import LEFT
from tests.given.some import some


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(LEFT) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.setenv("DEEPSPEC_ROOT", str(tmp_path / "store"))
    return tmp_path / "store"


def said(*words: str, **environment: str) -> str:
    result = CliRunner(env=environment).invoke(app, words, prog_name="deepspec")
    assert result.exit_code == 0, result.output
    return result.output


def without(store: Path, *kinds: str) -> None:
    for kind in kinds:
        for mark in (store / kind).glob("*/manifest.json"):
            mark.parent.rename(store.parent / f"{kind}-{mark.parent.name}")


def test_an_empty_store_is_begun(tmp_path: Path) -> None:
    told = said(DEEPSPEC_ROOT=str(tmp_path / "none"))
    assert "nothing is made here yet" in told
    assert "\n    deepspec run\n" in told
    assert not (tmp_path / "none").exists(), "looking makes nothing"


@pytest.mark.parametrize(
    ("gone", "how", "command"),
    [
        ((), "dspark draft for tiny is released", "deepspec unpack release/7ed2a891e7ac vllm FOLDER"),
        (("release",), "a draft is measured, but not released", "deepspec release"),
        (("release", "speed"), "a draft is evaluated, but its speed is not measured", "deepspec benchmark"),
        (("release", "speed", "scores"), "a draft is trained, but not evaluated", "deepspec evaluate"),
        (("release", "speed", "scores", "exports"), "trained, but not exported", "deepspec export"),
        (("release", "speed", "scores", "exports", "draft"), "no draft is trained on it", "deepspec train"),
        (("release", "speed", "scores", "exports", "draft", "target_cache"), "are not cached", "deepspec cache"),
    ],
)
def test_the_next_stage_is_named(store: Path, gone: tuple[str, ...], how: str, command: str) -> None:
    without(store, *gone)
    told = said()
    assert how in told
    assert f"\n    {command}\n" in told


def test_what_is_half_made_comes_first(store: Path) -> None:
    next((store / "scores").glob("*/manifest.json")).unlink()
    told = said()
    assert "scores/193502a020ff is partial: " in told
    assert "\n    deepspec evaluate\n" in told


def test_greedy_answers_beside_those_of_a_run_ask_for_nothing(store: Path) -> None:
    """Nor does their cache: both are newer than what the draft was trained on."""
    entries = catalog(Store(store))
    made = {each: next(entry for entry in entries if entry.kind == each) for each in ("answers", "target_cache")}
    later = {"address": "f" * 32, "provenance": {"finished": "2027-01-01T00:00:00+00:00"}}
    answers, cache = (some(entry.manifest).model_copy(update=later) for entry in made.values())
    answers = answers.model_copy(update={"spec": {**answers.spec, "held_out": 9}})
    ref = cache.inputs["answers"].model_copy(update={"address": "f" * 32})
    cache = cache.model_copy(update={"inputs": {"answers": ref}})
    pairs = zip(made.values(), (answers, cache), strict=True)
    newer = [replace(entry, address="f" * 32, manifest=manifest) for entry, manifest in pairs]
    assert "is released" in next_step([*entries, *newer])[0]


def test_an_artifact_made_anew_asks_for_what_follows(store: Path) -> None:
    """The release stands, but was made from an earlier draft."""
    entries = catalog(Store(store))
    (draft,) = (entry for entry in entries if entry.kind == "draft")
    later = {"address": "f" * 32, "provenance": {"finished": "2027-01-01T00:00:00+00:00"}}
    newer = replace(draft, address="f" * 32, manifest=some(draft.manifest).model_copy(update=later))
    assert "is released" in next_step(entries)[0]
    assert next_step([*entries, newer])[:2] == (
        "a draft is trained, but not exported for engines; with the options that it was made with:",
        "    deepspec export",
    )


def test_the_version_is_that_of_the_package() -> None:
    assert said("--version") == f"deepspec {version('deepspec')}\n"


@pytest.mark.parametrize(
    ("typed", "position", "wanted"),
    [("deepspec st", 1, ["status"]), ("deepspec plan --target qwen3-1", 3, ["qwen3-14b"])],
)
def test_a_shell_completes_commands_and_presets(typed: str, position: int, wanted: list[str]) -> None:
    told = said(_DEEPSPEC_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(position))
    assert told.split() == wanted


def test_programs_read_what_a_store_holds(store: Path) -> None:
    found = json.loads(said("status", "--json"))
    assert found["store"] == str(store)
    assert {each["kind"]: each["state"] for each in found["artifacts"]} == dict.fromkeys(
        ["prompts", "answers", "target_cache", "draft", "exports", "scores", "speed", "release"], "published"
    )
    (draft,) = (each for each in found["artifacts"] if each["kind"] == "draft")
    assert (draft["counts"]["steps"], draft["bytes"] > 0, draft["finished"][:10]) == (3, True, "2026-11-26")


def test_programs_read_a_comparison(store: Path) -> None:
    found = json.loads(said("compare", "193502a020ff", "193502a020ff", "--json"))["differences"]
    assert {each["benchmark"] for each in found} >= {"all"}
    assert all(each["first"] == each["second"] for each in found)
    assert {each["verdict"] for each in found} == {"no difference seen"}


def test_programs_read_a_checkpoint(store: Path) -> None:
    (weights,) = (store / "draft").glob("*/*/model.safetensors")
    found = json.loads(said("inspect", str(weights.parent), "--json"))
    assert found["weights"].startswith("model.safetensors")


def test_every_kind_has_words(store: Path) -> None:
    told = {entry.kind: held(entry.manifest) for entry in catalog(Store(store)) if entry.manifest}
    assert told["prompts"] == "60 of 60 rows kept; 53 in train; 3 in test; 2 in calibration; 2 in validation"
    assert told["answers"] == "60 of 60 prompts answered"
    assert len(told) == 8


def test_a_build_that_is_not_known_is_not_named() -> None:
    assert engine_name("llama.cpp b0-unknown") == "llama.cpp"
    assert engine_name("llama.cpp b6123-abc") == "llama.cpp b6123-abc"
    told = {"value": 1.0, "low": 1.0, "high": 1.0}
    speed = EngineSpeed(
        engine="llama.cpp b0-unknown", samples=1, tokens_per_round=told, ours=told, agrees=True, accept_rate=1.0,
        tokens_per_second=1.0, plain_tokens_per_second=None,
    )  # fmt: skip
    assert speed.row()["engine"] == "llama.cpp"


def test_one_warning_is_told_of_as_one(store: Path) -> None:
    (release,) = (some(entry.manifest) for entry in catalog(Store(store)) if entry.kind == "release")
    told = {
        count: held(release.model_copy(update={"counts": {**release.counts, "warnings": ["slow"] * count}}))
        for count in range(3)
    }
    assert "warning" not in told[0]
    assert told[1].endswith("; 1 warning")
    assert told[2].endswith("; 2 warnings")


WAITING = """
import signal, sys, time
from cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background is told to ignore it

@main.app.command("wait")
def wait() -> None:
    print("waiting", flush=True)
    time.sleep(60)

sys.argv[1:] = ["wait"]
main.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_is_asked_to_end_says_that_nothing_is_lost(number: signal.Signals, code: int) -> None:
    command = subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert command.stdout is not None
    assert command.stdout.readline() == "waiting\n"
    os.kill(command.pid, number)
    assert command.communicate(timeout=30)[0] == "stopped; the same command goes on from here\n"
    assert command.returncode == code


def refused(*words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["deepspec", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["answers", "dataset", "root", "size", "benchmarks-dir", "prompts", "draft", "target"])
def test_an_option_of_a_variable_that_was_never_set_is_not_taken_for_none(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on the demo's prompts in place of one's own answers would be found out after hours."""
    told = refused("plan", f"--{name}", "", capsys=capsys, monkeypatch=monkeypatch)
    assert told == f"error: --{name} is empty: leave it out, or give it a value\n"


def test_a_path_that_the_system_refuses_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = refused("plan", "--prompts", "x" * 300, capsys=capsys, monkeypatch=monkeypatch)
    assert told == f"error: [Errno 36] File name too long: '{'x' * 300}'; --debug shows where\n"
