"""What the docs say of files, links and commands is so."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from cli import show
from cli.main import app
from deepspec.plan.plan import Plan
from docs.generate import PAGES
from docs.hooks import linked
from infra.shipped import PACKAGES as ROOT
from infra.site import Site

READ = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
SITE = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference")
GENERATED = {ROOT / "docs" / "reference" / name for name in PAGES}
TOLD = [*READ, *SITE]
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
ROOMS = "cli|deepspec|deployments|docs|flows|infra|tasks|tests"


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them of plain words."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def leads_nowhere(page: Path, link: str) -> bool:
    if re.match(r"[a-z]+:", link):
        return False
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if target in GENERATED:
        return False
    out_of_the_site = page in SITE and not target.is_relative_to(ROOT / "docs")
    return out_of_the_site or not target.exists() or bool(anchor and anchor not in anchors(target))


@pytest.mark.parametrize("page", TOLD, ids=named)
def test_every_link_leads_somewhere(page: Any) -> None:
    text = FENCE.sub("", page.read_text())
    assert [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if leads_nowhere(page, link)] == []


@pytest.mark.parametrize("page", [page for page in TOLD if named(page) != "docs/log.md"], ids=named)
def test_every_file_that_is_named_is_there(page: Any) -> None:
    """The log tells what was, also of files that have gone since; what is older than a release may be told there."""
    text = page.read_text() if page.name != "CHANGELOG.md" else page.read_text().partition("\n## 0.")[0]
    found = set(re.findall(rf"`((?:{ROOMS})/[\w./-]*\.(?:md|py|yaml|json|sbatch))`", text))
    real = {ROOT / name for name in found if "/NAME" not in name} - GENERATED
    assert [named(path) for path in sorted(real) if not path.exists()] == []


def commands(page: Path) -> Iterator[tuple[str, bool]]:
    """Yield the `deepspec …` commands of a page, and whether each is whole: in a line of text it may be only named."""
    text = re.sub(r"\s*\\\n\s*", " ", page.read_text())
    blocks = re.findall(r"^ *```[^\n]*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"(?:^(?: {4}|\t).*\n)+", FENCE.sub("", text), re.MULTILINE)
    for line in (line for block in blocks for line in block.splitlines()):
        if found := re.search(r"(?:^|[\s$(=&])deepspec (?=[a-z])(.*)$", line):
            typed = re.sub(r"\$[A-Z]+ ", "", found[1])  # options that the page has named before
            yield re.split(r"\s(?:#|\||&&|>|;|\s)|\)$", f"{typed.strip()} ")[0].strip(), True
    for span in re.findall(r"`deepspec ([a-z][^`\n]*)`", FENCE.sub("", text)):
        yield span.partition(" | ")[0], False


def test_commands_are_found_in_blocks_and_in_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`deepspec gc`.\n\n```\nA=1 deepspec run \\\n--smoke 20  # few\nmake x\n```\n\n    deepspec up | cat\n"
    )
    assert list(commands(page)) == [("run --smoke 20", True), ("up", True), ("gc", False)]


def parse(words: list[str]) -> None:
    """Read a command as the command line would, without running it; fail where a name or an option is unknown."""
    command, context = typer.main.get_command(app), None
    while isinstance(command, TyperGroup) and words and words[0] in command.commands:
        name, *words = words
        parent, command = command, command.commands[name]
        context = parent.make_context("deepspec", [name], parent=context)
    command.make_context(command.name, words, parent=context)


@pytest.mark.parametrize("page", TOLD, ids=named)
def test_every_command_can_be_given(page: Any) -> None:
    wrong = []
    for command, whole in commands(page):
        try:
            parse([] if "…" in command else shlex.split(command))
        except Exception as error:  # noqa: BLE001 - whatever the command line would say
            if whole or not re.search("Missing parameter|requires an argument", str(error)):
                wrong.append(f"{command}: {error}")
    assert wrong == []


@pytest.mark.parametrize("page", TOLD, ids=named)
def test_no_run_that_is_told_of_has_more_processes_than_a_step_has_samples(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--smoke` makes steps small: such a run would be refused on the cards that it is meant for."""
    begun: list[tuple[Plan, Site]] = []

    def stop(plan: Plan, site: Site) -> None:
        begun.append((plan, site))
        sys.exit(0)

    monkeypatch.setattr(show, "check_input", stop)
    for command, whole in commands(page):
        if whole and command.startswith("run ") and "--processes" in command:
            assert CliRunner().invoke(app, shlex.split(command)).exit_code == 0, command
            plan, site = begun[-1]
            assert site.placement.processes <= plan.train.global_batch, command


def test_every_target_of_make_that_is_named_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    found = {name for page in TOLD for name in re.findall(r"`make ([a-z-]+)`", page.read_text())}
    assert found - targets == set()


def test_every_page_is_in_the_site() -> None:
    listed = set(re.findall(r"([\w./-]+\.md)", (ROOT / "mkdocs.yml").read_text()))
    assert listed == {path.relative_to(ROOT / "docs").as_posix() for path in {*SITE, *GENERATED}}


def test_decisions_are_numbered_without_holes() -> None:
    pages = sorted((ROOT / "docs" / "adr").glob("*.md"))
    numbers = [(path.name[:5], path.read_text().split(".")[0]) for path in pages]
    assert numbers == [(f"{number:04d}-", f"# {number}") for number in range(1, len(pages) + 1)]


def test_a_page_that_is_named_as_code_becomes_a_link() -> None:
    assert linked("see `docs/log.md`", "formats/draft.md") == "see [`docs/log.md`](../log.md)"
    assert (
        linked("see `docs/none.md` and [`docs/log.md`](log.md)", "x.md")
        == "see `docs/none.md` and [`docs/log.md`](log.md)"
    )
