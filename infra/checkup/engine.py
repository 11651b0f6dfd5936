"""Which version of an engine is here, and whether it serves drafts of the kind that a plan trains."""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from deepspec.formats.recipe import TRAITS, DraftRecipe, layout_of, method_of
from deepspec.plan.rules.seen import Seen

PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Where an engine that is written in Python says what it serves."""

    program: str
    """Beside it lies the Python that it belongs to."""
    package: str
    files: str
    """Pattern below the package; one of them has the name of every kind of draft that it serves."""
    words: Mapping[str, str]
    """Kind of draft -> that name."""


PYTHON: Mapping[str, Sources] = {
    "vllm": Sources(
        program="vllm",
        package="vllm",
        files="config/speculative.py",
        words={"dspark": '"dspark"', "dflash": '"dflash"', "eagle3": '"eagle3"', "peagle": "parallel_drafting"},
    ),
    "sglang": Sources(
        program="sglang",
        package="sglang",
        files="srt/speculative/*.py",
        words={"dspark": "DSPARK", "dflash": "DFLASH", "eagle3": "EAGLE3"},
    ),
}
LLAMA_CPP: Sequence[str] = ("dspark", "dflash", "eagle3")
"""What llama.cpp calls draft-NAME; it drafts Eagle3 token by token only."""


def serves(kind: str, recipe: DraftRecipe) -> Seen:
    """Look whether an engine that a run would start serves what the plan trains; nothing is loaded or started.

    Args:
        kind: a row of `infra.engines.managed.ENGINES`.
        recipe: of the draft.
    """
    method = "peagle" if TRAITS[recipe.algorithm].parallel else method_of(recipe.algorithm, layout_of(recipe))
    found = _named(kind)
    if found is None:
        return Seen(f"{kind} is not here")
    name, methods = found
    if method in methods:
        return Seen(
            f"{name} serves {recipe.algorithm} (as {method})"
            if method != recipe.algorithm
            else f"{name} serves {method}"
        )
    known = ", ".join(methods) or "no draft model"
    return Seen(
        f"{name} serves {known}",
        (f"it does not serve {recipe.algorithm}: take a newer one, or another (docs/formats/exports.md says which)",),
    )


def _named(kind: str) -> tuple[str, list[str]] | None:
    """Return name with version, and the kinds of drafts that it serves; None: it is not here."""
    if kind == "xllamacpp":
        return _embedded()
    return _llama_server() if kind == "llama.cpp" else _in_python(kind, PYTHON[kind])


def _embedded() -> tuple[str, list[str]] | None:
    if importlib.util.find_spec("xllamacpp") is None:
        return None
    import xllamacpp

    types = dir(xllamacpp.common_speculative_type)
    return f"xllamacpp {version('xllamacpp')}", [
        name for name in LLAMA_CPP if f"COMMON_SPECULATIVE_TYPE_DRAFT_{name.upper()}" in types
    ]


def _llama_server() -> tuple[str, list[str]] | None:
    if shutil.which("llama-server") is None:
        return None
    told, options = _said("llama-server", "--version"), _said("llama-server", "--help")
    number = re.search(r"version: (\S+)", told)
    return f"llama.cpp {number[1] if number else 'of an unknown version'}", [
        name for name in LLAMA_CPP if f"draft-{name}" in options
    ]


def _in_python(kind: str, sources: Sources) -> tuple[str, list[str]] | None:
    program = shutil.which(sources.program) or shutil.which(sources.program, path=Path(sys.executable).parent)
    if program is None:
        return None
    packages = Path(program).parent.parent.glob(f"lib/python3*/site-packages/{sources.package}")
    package = next(iter(sorted(packages)), None)
    if package is None:
        return None
    text = "\n".join(path.read_text(encoding="utf-8") for path in package.glob(sources.files))
    marks = [
        path.name.split("-")[1].removesuffix(".dist") for path in package.parent.glob(f"{sources.package}-*.dist-info")
    ]
    return f"{kind} {marks[0] if marks else 'of an unknown version'}", [
        name for name, word in sources.words.items() if word in text
    ]


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    return done.stdout + done.stderr
