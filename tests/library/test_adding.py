"""docs/adding.md holds: a toy algorithm and a toy stage, added to a copy of the library by the files it names, run."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.given.apart import ROOT
from tests.given.some import some

Edit = tuple[str, str]
"""What stands in a file, and what is written behind it."""

ALGORITHM: Mapping[str, list[Edit] | str] = {
    "deepspec/formats/recipe.py": [
        ('AlgorithmName = Literal["dspark", ', '"toy", '),
        ('    "dflash": Traits(),\n', '    "toy": Traits(),\n'),
    ],
    "deepspec/algorithms/toy.py": '''"""A toy: DFlash whose blocks learn the total variation alone."""

from deepspec.algorithms.blocks import BlockAlgorithm

TOY = BlockAlgorithm(cross_entropy=0.0, total_variation=1.0)
''',
    "deepspec/algorithms/__init__.py": [
        ("from deepspec.algorithms.eagle3 import Eagle3\n", "from deepspec.algorithms.toy import TOY\n"),
        ('    "eagle3": Eagle3(),\n', '    "toy": TOY,\n'),
    ],
    "deepspec/checkpoint/config.py": [('    "eagle3": "Eagle3Model",\n', '    "toy": "ToyModel",\n')],
    "deepspec/forms/speculators.py": [('    "dflash2": "DFlash2DraftModel",\n', '    "toy": "ToyDraftModel",\n')],
}
STAGE: Mapping[str, list[Edit] | str] = {
    "deepspec/toy/__init__.py": "",
    "deepspec/toy/spec.py": '''"""What changes the toy."""

from deepspec.specs import Spec


class ToySpec(Spec):
    """Count the files of a release."""

    times: int = 1
    """How often."""
''',
    "deepspec/toy/run.py": '''"""The toy stage: a release in, a count out."""


def run(spec, inputs, out, placement, report):
    """Write how many files a release has."""
    files = len(list(inputs["release"].names()))
    out.file("count.txt").write_text(str(spec.times * files))
    return {"files": files}
''',
    "deepspec/stages.py": [
        ("from deepspec.store import Store\n", "from deepspec.toy.spec import ToySpec\n"),
        (
            'inputs=("draft", "exports", "scores", "speed"), version=6),\n',
            '    Stage(name="toy", kind="toys", spec=ToySpec, inputs=("release",)),\n',
        ),
    ],
    "deepspec/plan/plan.py": [
        ("from deepspec.release.spec import ReleaseOptions\n", "from deepspec.toy.spec import ToySpec\n"),
        ("    release: ReleaseOptions = ReleaseOptions()\n", "    toy: ToySpec = ToySpec()\n"),
    ],
    "deepspec/plan/resolve.py": [('        "train": plan.train,\n', '        "toy": plan.toy,\n')],
}
RUN = """
import json, sys
from pathlib import Path
import deepspec
from tests.given.published import chain
def parts(folder):
    found = chain.plan_parts(folder)
    draft = {"algorithm": "toy", "num_layers": 1, "block_size": 3}
    return {**found, "train": found["train"] | {"draft": draft}, "export": {"forms": ["deepspec", "speculators"]},
            "toy": {"times": 2}}
made = chain.run_chain(Path(sys.argv[1]), parts=parts)
print(json.dumps({"from": deepspec.__file__, "algorithm": made["train"].counts["algorithm"],
    "forms": made["export"].counts["forms"], "files": made["toy"].counts["files"],
    "count": made["toy"].read_bytes("count.txt").decode()}))
"""


def add(tree: Path, files: Mapping[str, list[Edit] | str]) -> None:
    """Write new files, and new lines behind known ones."""
    for name, change in files.items():
        path = tree / name
        if isinstance(change, str):
            path.parent.mkdir(exist_ok=True)
            path.write_text(change)
            continue
        text = path.read_text()
        for known, new in change:
            assert text.count(known) == 1, f"{name}: {known!r}"
            text = text.replace(known, known + new)
        path.write_text(text)


def named(what: str) -> str:
    """Return the paragraph of docs/adding.md about something."""
    page = (ROOT / "docs" / "adding.md").read_text()
    (found,) = (part for part in re.split(r"\n\n", page) if part.startswith(f"**{what}**"))
    return " ".join(found.split())


@pytest.mark.parametrize(("what", "files"), [("An algorithm", ALGORITHM), ("A stage", STAGE)])
def test_the_page_names_each_file(what: str, files: dict[str, Any]) -> None:
    paragraph = named(what).replace("deepspec/NAME/", "deepspec/toy/")
    for name in files:
        folder = f"`{Path(name).parent}/`"  # a file of its own in a room
        table = "ALGORITHMS" if name == "deepspec/algorithms/__init__.py" else f"`{name}`"
        assert table in paragraph or folder in paragraph or name.endswith("toy/__init__.py"), name


def test_a_toy_algorithm_and_a_toy_stage_run_from_prompts_to_release(tmp_path: Path) -> None:
    tree, folder = tmp_path / "tree", tmp_path / "run"
    shutil.copytree(ROOT / "deepspec", tree / "deepspec", ignore=shutil.ignore_patterns("__pycache__"))
    folder.mkdir()
    add(tree, ALGORITHM)
    add(tree, STAGE)
    paths = os.pathsep.join([str(tree), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = done.stdout.splitlines()[-1]
    assert str(tree) in told
    assert '"algorithm": "toy", "forms": ["deepspec", "speculators"]' in told
    files = int(some(re.search(r'"files": (\d+)', told))[1])
    assert files > 0
    assert f'"count": "{2 * files}"' in told
