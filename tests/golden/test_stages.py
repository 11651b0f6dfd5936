"""The whole chain as a library, without Prefect, and a golden record of what each stage makes of the same input.

An artifact is found by its address, and the address knows nothing of the code. So when a stage's output changes for
the same spec, its `version` in deepspec/stages.py must be raised, and the record written anew:

    python -m tests.golden.test_stages
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from deepspec.artifacts import Artifact
from deepspec.formats.exports import read_index, write_form
from deepspec.release.push import lay_out
from deepspec.release.run import shown_in
from deepspec.stages import STAGES
from tests.given.published.chain import run_chain, told

RECORD = Path(__file__).with_name("stages.json")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return run_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def found(chain: dict[str, Artifact]) -> dict[str, Any]:
    return told(chain)


@pytest.mark.parametrize("stage", STAGES)
def test_output_changes_only_with_the_version(found: dict[str, Any], stage: str) -> None:
    record = json.loads(RECORD.read_text())[stage]
    assert record == {"version": STAGES[stage].version, "made": found[stage]}, (
        f"{stage} makes something else of the same input: raise its version in deepspec/stages.py, so that no old "
        "artifact is taken for the new one, and write the record anew (see the top of this file)"
    )


def test_the_pictures_on_the_card_lie_beside_it_wherever_it_is_laid_out(
    chain: dict[str, Artifact], tmp_path: Path
) -> None:
    release = chain["release"]
    shown = shown_in(release.read_bytes("README.md").decode())
    assert shown == ["acceptance.png", "speed.png", "learning_curve.png"]
    forms = [name for name, form in read_index(release).forms.items() if form.refused is None]
    for form in forms:
        write_form(release, form, tmp_path / form)
    lay_out(release, tmp_path / "hub")
    for folder in (*forms, "hub"):
        assert all((tmp_path / folder / name).read_bytes().startswith(b"\x89PNG") for name in shown), folder


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        made = told(run_chain(Path(temporary)))
    record = {name: {"version": stage.version, "made": made[name]} for name, stage in STAGES.items()}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    sys.stdout.write(f"{RECORD.name}: {len(record)} stages\n")
