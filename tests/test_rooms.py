"""The rooms of the house: none is in a circle, no import hides, and docs/architecture.md says what the code does."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.test_architecture import LAYERS, ROOT

BIG = ("deepspec", "infra")
"""Layers whose folders are rooms; the others are rooms themselves."""

LATE = {
    "torch": {
        "cli/caches.py",
        "cli/check.py",
        "cli/counted.py",
        "cli/engine.py",
        "cli/tools.py",
        "cli/brought.py",
        "cli/serve_bench.py",
        "cli/report.py",
        "deepspec/asking/engine.py",
        "deepspec/regenerate/run.py",
        "cli/simulated.py",
    },
    "Prefect": {"cli/main.py", "cli/reevaluate.py", "cli/doctor.py", "cli/serve.py", "cli/sweep.py"},
    "Triton": {"deepspec/attention/split.py", "deepspec/losses/chunked.py", "deepspec/optimizers/optimizer.py"},
    "transformers": {"infra/children/targets.py"},
    "the client of engines": {"deepspec/cache/capture.py", "deepspec/train/run.py"},
}
"""What is slow to load, or may not be there -> modules that load what needs it within a function."""


def modules() -> Mapping[str, Path]:
    paths = (path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py")))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


MODULES = modules()


def room(module: str) -> str:
    layer, _, rest = module.partition(".")
    return f"{layer}/{rest.partition('.')[0]}" if layer in BIG and rest else layer


@cache
def statements(path: Path) -> tuple[tuple[ast.ImportFrom, bool], ...]:
    """Return the imports of a file, and whether each is within a function; it is parsed once for all that is asked."""
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    within = {id(node) for function in functions for node in ast.walk(function)}
    return tuple((node, id(node) in within) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))


def imported(path: Path, *, late: bool) -> Iterator[str]:
    """Yield modules of ours that a file imports: at its top, or within its functions."""
    for node, within in statements(path):
        if within == late and node.module:
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                found = name if name in MODULES else node.module
                if found in MODULES:
                    yield found


def arrows() -> Mapping[str, set[str]]:
    """Return room -> the rooms that it imports from, wherever in its files."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, path in MODULES.items():
        for late in (False, True):
            found[room(name)] |= {room(other) for other in imported(path, late=late)} - {room(name)}
    return found


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return rooms from which one comes back to where one was, or nothing."""
    done: set[str] = set()

    def look(at: str, way: list[str]) -> list[str]:
        if at in way:
            return [*way[way.index(at) :], at]
        if at in done:
            return []
        for other in sorted(graph.get(at, ())):
            if found := look(other, [*way, at]):
                return found
        done.add(at)
        return []

    return next(filter(None, (look(start, []) for start in sorted(graph))), [])


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_room_is_in_a_circle() -> None:
    assert circle(arrows()) == []


def test_no_import_hides_in_a_function_but_those_that_are_listed() -> None:
    hidden = {path.relative_to(ROOT).as_posix() for path in MODULES.values() if any(imported(path, late=True))}
    assert hidden == set().union(*LATE.values())


def table() -> Mapping[str, set[str]]:
    """Return the rooms of docs/architecture.md with the rooms that each may know."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `([a-z_/]+)(?:\.py)?` \|[^|]*\| ([^|]*) \|$", text, re.MULTILINE)
    return {name: set(re.findall(r"[a-z_]+(?:/[a-z_]+)?", known.replace("—", ""))) for name, known in rows}


def test_the_page_on_architecture_has_every_room_and_every_arrow() -> None:
    written = table()
    found = {name: known for name, known in arrows().items() if name.startswith("deepspec/")}
    within = {
        name.removeprefix("deepspec/"): {other.removeprefix("deepspec/") for other in known}
        for name, known in found.items()
    }
    assert {name: known - EVERYWHERE for name, known in within.items() if name not in EVERYWHERE} == written


EVERYWHERE = {
    "artifacts", "catalog", "disk", "errors", "garbage", "kernels", "placement", "publish", "ranges", "report", "specs",
    "store",
}  # fmt: skip
"""Modules that any room may use; the page names them once."""


def test_a_room_that_lists_its_files_lists_files_that_are_there() -> None:
    for name, path in MODULES.items():
        if path.name == "__init__.py" and (told := ast.get_docstring(ast.parse(path.read_text()))):
            for file in re.findall(r"\b([a-z_]+\.py)\b", told):
                assert (path.parent / file).is_file(), f"{name} names {file}"


def test_no_room_has_more_files_than_one_keeps_in_mind() -> None:
    counts: defaultdict[str, int] = defaultdict(int)
    for path in MODULES.values():
        counts[path.parent.relative_to(ROOT).as_posix()] += path.name != "__init__.py"
    crowded = {name: count for name, count in counts.items() if count > DOZEN and name not in ROWS_OF_A_TABLE}
    assert crowded == {}


TESTS, GIVEN = ROOT / "tests", "given"


def borrowed(path: Path, tests: Path = TESTS) -> set[str]:
    """Return the modules of other rooms of tests that a test imports, wherever in it, beside what is given to all."""
    *own, _ = path.relative_to(tests).parts
    known, found = {GIVEN, "".join(own[:1])}, set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for parts in (name.split(".") for name in names):
            if parts[0] == "tests":
                other = parts[1] if (tests / parts[1]).is_dir() else ""
                found |= {".".join(parts)} if other not in known else set()
    return found


def test_a_room_of_tests_borrows_from_no_other() -> None:
    """What two rooms need is given to both: it lies in tests/given, which knows no room."""
    assert {path.name: found for path in TESTS.rglob("*.py") if (found := borrowed(path))} == {}


@pytest.mark.parametrize(
    "line", ["from tests.cache.made import rows", "import tests.cache.made", "from tests import test_rooms"]
)
def test_what_is_borrowed_is_found(tmp_path: Path, line: str) -> None:
    for name in ("cache", "given", "train"):
        (tmp_path / name).mkdir()
    borrower, lender = tmp_path / "train" / "test_it.py", tmp_path / "given" / "it.py"
    borrower.write_text(f"from tests.given.caches import rows\nfrom tests.train import toy\ndef late():\n    {line}\n")
    lender.write_text(line)
    assert len(borrowed(borrower, tmp_path)) == len(borrowed(lender, tmp_path)) == 1


DOZEN = 12
ROWS_OF_A_TABLE = {"deepspec/algorithms", "cli"}
"""Rooms of which most files are rows of one table, alike but for what they are a row for: algorithms, commands."""


def counted() -> Iterator[str]:
    """Yield the rooms, with files, lines, and the rooms that each knows: `python -m tests.test_rooms` prints them."""
    graph, files, lines = arrows(), Counter[str](), Counter[str]()
    for name, path in MODULES.items():
        files[room(name)] += 1
        lines[room(name)] += len(path.read_text().splitlines())
    yield f"{len(files)} rooms, {sum(map(len, graph.values()))} arrows, circle: {circle(graph) or 'none'}"
    for name in sorted(files):
        known = " ".join(sorted(other.removeprefix("deepspec/") for other in graph.get(name, ())))
        yield f"{name}: {files[name]} files, {lines[name]} lines; knows {known or 'none'}"


if __name__ == "__main__":
    print("\n".join(counted()))
