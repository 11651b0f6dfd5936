"""Bad input: one line that says what, where and what to do; exit code 2; no traceback; nothing half-published."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli import main as cli
from deepspec.store import Store
from infra.engines.managed import free_port
from tests.e2e.conftest import Deepspec, Undisturbed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

GOOD = json.dumps({"messages": [{"role": "user", "content": "What is two plus two?"}]})

BEFORE_ANYTHING = {
    "unknown preset": (["--target", "smolm"], r"unknown target .*'smolm'; known: .*smollm2-135m"),
    "unknown field": (["--set", "train.stps=3"], r"train\.stps: unknown; see the fields with: deepspec fields"),
    "wrong value": (["--set", "train.steps=many"], r"train\.steps: .*integer"),
    "missing prompts": (["--prompts", "none.jsonl"], r"none\.jsonl: no such file"),
    "missing answers": (["--answers", "none.jsonl"], r"none\.jsonl: no such file"),
    "missing benchmarks": (["--benchmarks-dir", "nowhere"], r"nowhere: no such folder"),
    "no place for the store": (["--root", "/dev/null/store"], r"cannot write /dev/null/store/.*check that the root"),
    "a root that is no URL": (
        ["--root", "s3:/bucket/x"],
        r"store 's3:/bucket/x' begins like a URL and is none; write s3:",
    ),
    "a mistyped device": (["--device", "gpu"], r"device: unknown device 'gpu'; known: cpu, cuda, cuda:N, auto, spread"),
    "a card that is not there": (
        ["--device", "cuda:17"],
        r"--device cuda:17: (torch sees no card here|this machine has)",
    ),
    "a mistyped tracker": (["--tracker", "tensorbord"], r"unknown tracker 'tensorbord'; known: aim, clearml"),
    "a draft that is not there": (["--draft", "nothere"], r"nothing published in .* is called 'draft/nothere'"),
    "above a limit": (["--set", "limits.disk_gb=0.0001"], r"needs about .* above limits\.disk_gb"),
    "endpoint without a model": (["--endpoint", "http://127.0.0.1:1/v1"], r"--endpoint needs --model"),
    "key that is not set": (
        ["--endpoint", "http://127.0.0.1:1/v1", "--model", "m", "--key-env", "NO_SUCH_KEY"],
        r"the environment variable NO_SUCH_KEY, named as an endpoint's key, is not set",
    ),
}

IN_PREPARE = {
    "not JSON": (f"{GOOD}\nnot json\n", ["--set", "prepare.bad_rows=stop"], r"error: \S*rows\.jsonl:2: not JSON"),
    "wrong role": (
        '{"messages": [{"role": "robot", "content": "x"}]}\n',
        [],
        r"no row is left.* \S*rows\.jsonl:1: .*robot",
    ),
}
"""Two that a stage finds; tests/prepare and tests/formats have the others."""


def code_of(ended: SystemExit) -> int:
    assert isinstance(ended.code, int)
    return ended.code


def check(done: subprocess.CompletedProcess[str], message: str, root: Path) -> None:
    """Hold a failed command to the promise."""
    text = " ".join(done.stderr.split())
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert text.count("error:") == 1
    assert re.search(message, text), text
    published = [key for key in Store(root).list("") if key.endswith("/manifest.json")] if root.is_dir() else []
    assert published == []


@pytest.mark.parametrize("case", BEFORE_ANYTHING)
def test_what_can_be_seen_before_anything_starts(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, message = BEFORE_ANYTHING[case]
    root = ["--root", str(tmp_path / "store")] if "--root" not in options else []
    monkeypatch.setattr(sys, "argv", ["deepspec", "run", *root, *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    check(subprocess.CompletedProcess([], code_of(ended.value), printed.out, printed.err), message, tmp_path / "store")


def test_a_data_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEEPSPEC_DATA_DIR", str(tmp_path / "file" / "data"))
    monkeypatch.setattr(sys, "argv", ["deepspec", "run", "--root", str(tmp_path / "store")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    done = subprocess.CompletedProcess([], code_of(ended.value), printed.out, printed.err)
    check(done, r"the data folder .*file/data cannot be written: .*; set DEEPSPEC_DATA_DIR", tmp_path / "store")


@pytest.mark.parametrize("case", IN_PREPARE)
def test_rows_that_cannot_be_used_are_named_by_file_and_line(tmp_path: Path, api: str, data: Path, case: str) -> None:
    content, options, message = IN_PREPARE[case]
    (tmp_path / "rows.jsonl").write_text(content)
    deepspec = Deepspec(data=data, root=tmp_path / "store", api=api, extra=("--benchmarks-dir", "demo"))
    done = deepspec.run("prepare", "--prompts", str(tmp_path / "rows.jsonl"), *options)
    check(done, message, tmp_path / "store")


def test_an_engine_that_is_not_there_is_named(undisturbed: Undisturbed, api: str, data: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed[0].folder / "prompts", tmp_path / "store" / "prompts")
    url = f"http://127.0.0.1:{free_port()}/v1"
    deepspec = Deepspec(data=data, root=tmp_path / "store", api=api)
    done = deepspec.run("regenerate", "--endpoint", url, "--model", "target")
    assert done.returncode == 2
    assert url.removeprefix("http://") in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "store").glob("answers/*/manifest.json"))


def test_a_target_without_a_chat_template_says_what_to_do(
    api: str, data: Path, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    folder = tmp_path / "plain"
    source = next(path for path in (data / "models").iterdir() if path.is_dir())
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.gguf", "chat_template.jinja", "*.log"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    deepspec = Deepspec(data=data, root=tmp_path / "store", api=api, extra=("--dataset", "demo"))
    done = deepspec.run("prepare", "--target", str(folder))
    check(done, "has no chat template; give one in an own preset", tmp_path / "store")
