"""The target served alone and with its draft, for as long as a benchmark compares the two."""

import importlib.util
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deepspec.artifacts import Artifact
from deepspec.formats.exports import read_index, write_form
from deepspec.placement import Placement
from deepspec.report import Report
from infra.engines.managed import PROMPT_ROOM, ManagedEngines, Served, start_engines

FORM = "llama.cpp"
KIND = "xllamacpp"


@contextmanager
def serving_draft(
    inputs: Mapping[str, Artifact], placement: Placement, gguf: Path | None, folder: Path, report: Report
) -> Iterator[Placement]:
    """Yield the placement with embedded engines that serve the target alone and with the draft, where they can.

    Args:
        inputs: exports and scores of the draft.
        placement: engines that it names are kept.
        gguf: the target as the embedded engine reads it.
        folder: for the engines' logs and the draft in their form.
        report: hears why no engine is started.
    """
    reason = _unable(inputs["exports"], gguf)
    if placement.drafting or reason:
        if reason:
            report.log(f"no engine is asked what it accepts of this draft: {reason}")
        yield placement
        return
    context = int(inputs["scores"].manifest.spec["max_new_tokens"]) + PROMPT_ROOM
    served = Served(name="target", gguf=gguf, context=context, threads=placement.threads)
    alone = ManagedEngines(kind=KIND, slots=1)
    paired = alone.model_copy(update={"arguments": shlex.join(_draft(inputs, folder / "draft"))})
    with (
        start_engines(alone, served, folder / "alone") as plain,
        start_engines(paired, served, folder / "paired") as drafting,
    ):
        yield placement.model_copy(update={"endpoints": plain, "drafting": drafting})


def _unable(exports: Artifact, gguf: Path | None) -> str:
    """Return why the embedded engine cannot serve the draft; empty where it can."""
    if gguf is None:
        return "the embedded one serves GGUF files and this target has none"
    if importlib.util.find_spec(KIND) is None:
        return "the embedded one is not installed (pip install 'deepspec[engine]')"
    form = read_index(exports).forms.get(FORM)
    if form is None:
        return f"the draft was not exported for {FORM}"
    return f"{FORM} cannot express {form.refused}" if form.refused else ""


def _draft(inputs: Mapping[str, Artifact], folder: Path) -> list[str]:
    """Lay the draft out and return the words by which the engine takes it."""
    (path,) = (each for each in write_form(inputs["exports"], FORM, folder) if each.suffix == ".gguf")
    counts = inputs["scores"].counts
    written = read_index(inputs["exports"]).forms[FORM].method  # a DFlash draft of ours is written as DSpark
    method = written or ("eagle3" if counts["algorithm"] == "eagle3" else "dspark")
    return ["--draft", str(path), "--draft-type", method, "--draft-tokens", str(counts["slots"])]
