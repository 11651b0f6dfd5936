"""Finds golden numbers of speculators: cases under $DEEPSPEC_GOLDEN2, by kind and files, never by their names."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.given.golden import expected, tensors

__all__ = ["KINDS", "MISSING", "WAITING", "cases", "expected", "root", "tensors"]

MISSING = "set DEEPSPEC_GOLDEN2 to a folder of golden numbers of speculators to run these parity tests"

KINDS = ("dflash", "dflash2", "dspark", "eagle3", "losses", "mtp", "muon", "peagle", "xpress")
"""Kinds of cases that a test here reads."""
WAITING: dict[str, str] = {}
"""Kinds that wait for something, and for what."""


def root() -> Path | None:
    """Return the folder of golden numbers, if there is one."""
    value = os.environ.get("DEEPSPEC_GOLDEN2")
    return Path(value) if value and Path(value).is_dir() else None


def cases(*kinds: str, wanted: tuple[str, ...] = ("expected.json",)) -> list[Any]:
    """Return the folders of some kinds that hold the wanted files; one skipped parameter where there are none."""
    folder = root()
    if folder is None:
        return [pytest.param(None, marks=pytest.mark.skip(reason=MISSING))]
    found = [case for kind in kinds for case in sorted((folder / kind).glob("*/"))]
    found = [case for case in found if all((case / name).exists() for name in wanted)]
    if not found:
        reason = f"no case of {', '.join(kinds)} with {', '.join(wanted)} under {folder}"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(case, id=f"{case.parent.name}-{case.name}") for case in found]
