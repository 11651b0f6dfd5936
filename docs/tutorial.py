"""Do what docs/tutorial.md says, up to its second half, in an empty folder, and hold the figures to its table.

    python -m docs.tutorial [FOLDER]        # make tutorial

A block fenced as `sh` is run, one after the other in one shell that ends at the first failure; a block fenced as
`console` is only shown. Rows of the table "What came of it" have a path into what `deepspec status --json` tells of the
newest artifact of a kind, and the bounds of its value.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("tutorial.md")
ROOT = PAGE.parents[1]
SECOND_HALF = "# The second half"
NONE = "–"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One row of the table: where a value is found, and between what it should be."""

    what: str
    path: str
    low: float | None
    high: float | None

    def check(self, value: float) -> str:
        """Return a line that says the value, and that it is outside of its bounds where it is."""
        inside = (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
        return f"{'ok     ' if inside else 'OUTSIDE'} {self.what}: {value:.3f}, wanted {self.low} to {self.high}"


def first_half(page: str) -> str:
    """Return the part of the page that is run."""
    return page.partition(f"\n{SECOND_HALF}")[0]


def commands(page: str) -> list[str]:
    """Return the blocks to run, in order."""
    return re.findall(r"^```sh\n(.*?)^```$", first_half(page), re.MULTILINE | re.DOTALL)


def figures(page: str) -> list[Figure]:
    """Return the rows of the table of figures."""
    rows = re.findall(r"^\| ([^|]+) \| `([a-z_]+/[^`|]+)` \| ([^|]+) \| ([^|]+) \|$", first_half(page), re.MULTILINE)
    return [Figure(what=what, path=path, low=_bound(low), high=_bound(high)) for what, path, low, high in rows]


def value_at(path: str, status: dict[str, Any]) -> float:
    """Return the value that a path such as scores/accepted_length/0.0 leads to in the newest artifact of its kind."""
    kind, *steps = path.split("/")
    made = [each for each in status["artifacts"] if each["kind"] == kind and each["state"] == "published"]
    found: Any = max(made, key=lambda each: each["finished"])["counts"]
    for step in steps:
        found = found[step]
    return float(found)


def held(page: str, status: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each figure."""
    for figure in figures(page):
        yield figure.check(value_at(figure.path, status))


def main(folder: Path) -> int:
    """Run the first half in a folder, then say how its figures are; return 1 where one is outside of its bounds."""
    page = PAGE.read_text(encoding="utf-8")
    tools, ours = Path(sys.executable).parent, {"DEEPSPEC_DATA_DIR", "DEEPSPEC_ROOT", "PREFECT_API_URL"}
    env = {name: value for name, value in os.environ.items() if name not in ours}
    env |= {"PATH": f"{tools}:{env['PATH']}", "PYTHONPATH": f"{ROOT}:{env.get('PYTHONPATH', '')}"}
    script = "set -euxo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + "\n".join(commands(page))
    subprocess.run(["bash", "-c", script], cwd=folder, env=env, check=True)
    told = subprocess.run(
        ["deepspec", "status", "--json"], cwd=folder, env=env, check=True, capture_output=True, text=True
    )
    lines = list(held(page, json.loads(told.stdout)))
    sys.stdout.write("\n".join(lines) + "\n")
    return int(any(line.startswith("OUTSIDE") for line in lines))


def _bound(told: str) -> float | None:
    return None if told.strip() == NONE else float(told)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as place:
        sys.exit(main(Path(place)))
