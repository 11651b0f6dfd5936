"""The target served alone and with its draft, for as long as a benchmark compares the two."""

import importlib.util
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepspec.artifacts import Artifact
from deepspec.formats.exports import read_index, write_form
from deepspec.placement import Placement
from deepspec.report import Report
from infra.engines.managed import PROMPT_ROOM, ManagedEngines, Served, start_engines

FORM = "llama.cpp"
KIND = "xllamacpp"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingSettings:
    """How target and draft are served."""

    slots: int = 1
    """Requests at once."""
    tokens: int = 0
    """Of an answer, and of a prompt beyond the usual."""
    draft_tokens: int | None = None
    """Proposed per round, at most; None: as the evaluation did."""
    least: float = 0.0
    """A proposal ends before a token less likely than this."""


@contextmanager
def serving_draft(
    inputs: Mapping[str, Artifact],
    placement: Placement,
    gguf: Path | None,
    folder: Path,
    report: Report,
    settings: ServingSettings = ServingSettings(),
) -> Iterator[Placement]:
    """Yield the placement with embedded engines that serve the target alone and with the draft, where they can.

    Args:
        inputs: exports, or a release, and scores of the draft.
        placement: engines that it names are kept.
        gguf: the target as the embedded engine reads it, unless the exports were written for another file of it.
        folder: for the engines' logs and the draft in their form.
        report: hears why no engine is started.
        settings: of both engines.
    """
    gguf = _named(inputs["exports"], placement) or gguf
    reason = _unable(inputs["exports"], gguf)
    if placement.drafting or reason:
        if reason:
            report.log(f"no engine is asked what it accepts of this draft: {reason}")
        yield placement
        return
    context = max(int(inputs["scores"].manifest.spec["max_new_tokens"]), settings.tokens) + PROMPT_ROOM
    served = Served(name="target", gguf=gguf, context=context, threads=placement.threads)
    alone = ManagedEngines(kind=KIND, count=1, slots=settings.slots)
    paired = alone.model_copy(update={"arguments": shlex.join(_draft(inputs, folder / "draft", settings))})
    with (
        start_engines(alone, served, folder / "alone") as plain,
        start_engines(paired, served, folder / "paired") as drafting,
    ):
        yield placement.model_copy(update={"endpoints": plain, "drafting": drafting})


def _named(exports: Artifact, placement: Placement) -> Path | None:
    """Return the GGUF file that the plan of exports named, where it is on this machine."""
    place = placement.locations.get(str(exports.manifest.spec.get("gguf")))
    return None if place is None or not Path(place).is_file() else Path(place)


def _unable(exports: Artifact, gguf: Path | None) -> str:
    """Return why the embedded engine cannot serve the draft; empty where it can."""
    if gguf is None:
        return "the embedded one serves GGUF files and none of this target is named; export.gguf=FILE does"
    if importlib.util.find_spec(KIND) is None:
        return "the embedded one is not installed (pip install 'deepspec[engine]')"
    form = read_index(exports).forms.get(FORM)
    if form is None:
        return f"the draft was not exported for {FORM}"
    return f"{FORM} cannot express {form.refused}" if form.refused else ""


def _draft(inputs: Mapping[str, Artifact], folder: Path, settings: ServingSettings) -> list[str]:
    """Lay the draft out and return the words by which the engine takes it."""
    (path,) = (each for each in write_form(inputs["exports"], FORM, folder) if each.suffix == ".gguf")
    counts = inputs["scores"].counts
    written = read_index(inputs["exports"]).forms[FORM].method  # a DFlash draft of ours is written as DSpark
    method = written or ("eagle3" if counts["algorithm"] == "eagle3" else "dspark")
    tokens = settings.draft_tokens or counts["slots"]
    words = ["--draft", str(path), "--draft-type", method, "--draft-tokens", str(tokens)]
    return [*words, "--draft-p-min", str(settings.least)] if settings.least else words
