"""Layers planted wrong in the llama.cpp form of a release: does the check of what an engine accepts tell them apart?

    python -m tests.serving.planted ROOT RELEASE SHIFT [PROMPTS]

The release is only read. Each layer that the engine reads is moved by SHIFT; 0 leaves all where they are.
"""

import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import gguf

from deepspec.artifacts import open_artifact, read_manifest
from deepspec.benchmark.asked import first_turns
from deepspec.catalog import find_kind
from deepspec.formats import benchmarks
from deepspec.placement import Placement
from deepspec.plan import presets
from deepspec.plan.plan import TargetPlan
from deepspec.prepare.demo import BENCHMARKS
from deepspec.serving.check import check_engine
from deepspec.store import Store
from deepspec.target.load import load_template
from infra.children.targets import ready_target
from infra.engines.managed import PROMPT_ROOM, ManagedEngines, Served, start_engines
from infra.engines.serving import KIND, ServingSettings, _draft
from infra.terminal import say, show_table


def plant(path: Path, shift: int) -> list[int]:
    """Move the layers that a draft in llama.cpp's form reads, in place, and return them.

    The file must be a copy: what a store lays out may be its own, by another name.
    """
    reader = gguf.GGUFReader(path, "r+")
    (field,) = (field for name, field in reader.fields.items() if name.endswith(".target_layers"))
    for place in field.data:
        field.parts[place][0] += shift
    return [int(field.parts[place][0]) for place in field.data]


def main(root: str, release: str, shift: int, prompts: int) -> None:
    store = Store(root)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        manifest = read_manifest(store, "release", find_kind(store, release, "release").address)
        assert manifest is not None
        inputs = {name: open_artifact(store, ref, scratch) for name, ref in manifest.inputs.items()}
        name = str(manifest.spec["target"])
        files = ready_target(TargetPlan.model_validate(presets.target(name)["target"]), name)
        tests = benchmarks.find_benchmarks(BENCHMARKS, None)
        placement = Placement(scratch=scratch, threads=1, locations=tests.locations)
        asked = first_turns(inputs["scores"], placement, load_template(files.folder), prompts)
        words, tokens = (
            _draft(inputs, scratch / "draft", ServingSettings()),
            inputs["scores"].manifest.spec["max_new_tokens"],
        )
        draft = Path(shutil.copyfile(words[1], scratch / "planted.gguf"))
        say(f"layers {plant(draft, shift)}")
        served = Served(name="target", gguf=files.gguf, context=tokens + PROMPT_ROOM, threads=1)
        engines = ManagedEngines(kind=KIND, slots=1, arguments=shlex.join([words[0], str(draft), *words[2:]]))
        with start_engines(engines, served, scratch / "engine") as endpoints:
            found = check_engine(endpoints[0], None, asked, tokens)
    show_table("here and there", [found.row()])
    say(found.warning or "agrees")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 16)
