"""Finds golden numbers: whatever cases lie under $DEEPSPEC_GOLDEN, told apart by their files, never by their names."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

MISSING = "set DEEPSPEC_GOLDEN to a folder of golden numbers to run the parity tests"


def root() -> Path | None:
    """Return the folder of golden numbers, if there is one."""
    value = os.environ.get("DEEPSPEC_GOLDEN")
    return Path(value) if value and Path(value).is_dir() else None


def cases(kind: str, *wanted: str, algorithm: str = "") -> list[Any]:
    """Return the folders of a kind that hold all the wanted files; one skipped parameter where there are none.

    Args:
        kind: folder below the root that holds the cases.
        wanted: files that a case must hold.
        algorithm: "blocks" or "eagle3": only cases whose draft is of this kind.
    """
    folder = root()
    if folder is None:
        return [pytest.param(None, marks=pytest.mark.skip(reason=MISSING))]
    found = [case for case in sorted((folder / kind).glob("*/")) if all((case / name).exists() for name in wanted)]
    if algorithm:
        found = [case for case in found if _algorithm(case) == algorithm]
    if not found:
        return [
            pytest.param(None, marks=pytest.mark.skip(reason=f"no case with {', '.join(wanted)} under {folder / kind}"))
        ]
    return [pytest.param(case, id=case.name) for case in found]


def _algorithm(case: Path) -> str:
    config = json.loads((case / "draft" / "config.json").read_text())
    return "blocks" if "block_size" in config else "eagle3"


def target(told: str) -> Path:
    """Return the golden target whose folder a file names, with or without the folders above it."""
    return path("targets", Path(told).name)


def path(*parts: str) -> Path:
    """Return a file or folder of the golden numbers, or skip the test."""
    folder = root()
    if folder is None:
        pytest.skip(MISSING)
    found = folder.joinpath(*parts)
    if not found.exists():
        pytest.skip(f"{found} does not exist")
    return found


def expected(case: Path) -> dict[str, Any]:
    """Return a case's expected.json."""
    told: dict[str, Any] = json.loads((case / "expected.json").read_text())
    return told


def tensors(case: Path, name: str) -> dict[str, Any]:
    """Return the tensors of one file of a case."""
    found: dict[str, Any] = load_file(case / name)
    return found
