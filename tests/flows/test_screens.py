"""What a terminal shows at 80, 100 and 160 columns, and a log file without a terminal, recorded.

Where the screens are meant to change, write the record anew and read it:

    python -m tests.flows.test_screens
"""

import io
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from cli import doctor, serve_bench, shelf, show, sweep, tools
from deepspec.artifacts import ArtifactRef, reference
from deepspec.catalog import catalog
from deepspec.formats.served import Change
from deepspec.plan import presets
from deepspec.plan.budget import plan_estimate
from deepspec.plan.checks import Outcome
from deepspec.stages import STAGES
from deepspec.store import Store
from deepspec.sweep.board import Board, standings
from infra import terminal
from infra.engines.states import CONNECTOR, StatesServer
from infra.site import Site
from infra.terminal import bars, say, show_table
from tests.given.published.numbers import entrant, interval, loaded
from tests.given.published.older import LEFT
from tests.given.some import some

RECORDS = Path(__file__).with_name("screens")
STORE = Path("store")

Screens = Mapping[str, tuple[int, bool]]
SCREENS: Screens = {"80": (80, True), "100": (100, True), "160": (160, True), "log": (80, False)}
"""Name of a record -> columns, and whether it is a terminal."""

CHECKS = [
    Outcome(name="machine", state="ok", detail="Python 3.11 on linux, 2 cores, 8.2 GB memory, no NVIDIA driver"),
    Outcome(name="target", state="ok", detail="smollm2-135m: will be fetched or converted by the first run"),
    Outcome(
        name="chat template",
        state="failed",
        detail="tokenizer_config.json has no chat template, which every stage after prepare needs to lay "
        "conversations out; give one in chat_template.jinja, or take a target that was tuned for conversations",
    ),
    Outcome(
        name="shared memory",
        state="ok",
        detail="/dev/shm has 67 MB free",
        told=("several training processes want more: run the container with --shm-size 8g",),
    ),
    Outcome(name="draft's shape", state="skipped", detail="chat template failed"),
]
MANY = [{"run": "build-draft-of-qwen3-4b", **{f"column of words {n}": f"some words to read {n}" for n in range(6)}}]


def drawn_bars() -> None:
    """Draw two bars half-way, one of which has much to say."""
    with bars() as drawn:
        first = drawn.add("regenerate", 150, "rows", "")
        for done in range(151):
            drawn.move(first, done, 150, "rows", "")
        second = drawn.add("benchmark", 320, "steps", "")
        note = "loss 4.929, accepted length 1.52, 3.2 samples/s, 356 tokens/s, gradient norm 0.4"
        for done in range(161):
            drawn.move(second, done, 320, "steps", note)


def finished_run() -> None:
    """Show what a run shows at its end."""
    store = Store(STORE)
    entries = {entry.kind: entry.manifest for entry in catalog(store)}
    steps = [
        SimpleNamespace(
            stage=name,
            state="Completed",
            seconds=12.34,
            processor=23.45,
            ref=reference(store, some(entries[stage.kind])),
        )
        for name, stage in STAGES.items()
    ]
    built: Any = SimpleNamespace(steps=steps)
    show.summary(built, Site(root=str(STORE)), 98.7)


def planned(*machines: str) -> None:
    """Show what a plan shows, in a store without a limit."""
    parts = [presets.target("qwen3-4b"), presets.load("datasets", "open-perfectblend")]
    plans = {name: presets.build_plan(parts, [f"limits.hardware={name}"]) for name in machines}
    costs = {name: some(plan_estimate(plan)) for name, plan in plans.items()}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Store, "free_bytes", lambda store: None)
        show._show_plan(plans[machines[0]], costs, Store(STORE), ("1,300,000 samples",))


def measured_under_load() -> None:
    """Show what serve-bench shows at its end, with everything that it may tell."""
    slower = Change(load=8, context=None, before=interval(12.0), now=interval(7.5), verdict="slower")
    found = loaded(warnings=("At 8 requests at once: with: its counters began anew.",), changes=(slower,))
    made = ArtifactRef(kind="release", address="d" * 32, content="c", uri="here")
    assert serve_bench._tell(found, made) == 1


def swept() -> None:
    """Show the leaderboard of a sweep, with lengths by kind of prompt."""
    kinds = {"arithmetic": 1.5, "conversation": 1.25}
    rows = [
        entrant("as asked", 1.40, 1.42, 1.41, cost=1.2),
        entrant("train.optimizer=muon", 1.55, 1.58, 1.56, cost=1.1),
    ]
    told = [
        each.model_copy(update={"trials": tuple(one.model_copy(update={"kinds": kinds}) for one in each.trials)})
        for each in rows
    ]
    sweep._show(Board(equal="seconds", standings=standings(told, "as asked", set())))


def states_server() -> None:
    """Show the command line of an engine for states."""
    parts = [presets.target("qwen3-4b"), presets.load("datasets", "open-perfectblend")]
    plan = presets.build_plan(parts, ["cache.states=vllm", "cache.layers=[0, 2]"])
    server = StatesServer(options=plan.cache, folder=Path("target"), staging=Path("/dev/shm/states"))
    say(server.command("127.0.0.1", 8000).replace(str(CONNECTOR), "CONNECTOR"))


SHOWN: Mapping[str, Callable[[], None]] = {
    "deepspec status": lambda: shelf.status(root=str(STORE)),
    "deepspec plan": lambda: planned("h100x8"),
    "deepspec plan, on several machines": lambda: planned("laptop", "l40s", "h100x8", "b200x8"),
    "deepspec doctor": lambda: show_table("doctor", [doctor._row(each) for each in CHECKS]),
    "deepspec serve-bench": measured_under_load,
    "deepspec sweep": swept,
    "deepspec engine-args": states_server,
    "deepspec files": lambda: tools.lay_files_out(Path("here")),
    "many columns": lambda: show_table("many columns", MANY),
    "deepspec run, while it works": drawn_bars,
    "deepspec run, at its end": finished_run,
}
"""Title -> what shows it, in a folder with the store that the golden chain left."""


def screen(columns: int, is_terminal: bool) -> str:
    """Return everything that is shown, as text."""
    out = io.StringIO()
    console = Console(
        file=out,
        width=columns,
        force_terminal=is_terminal,
        color_system=None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(terminal, "_out", console)
        patched.setattr(terminal, "_left", lambda seconds: ", 40 s left" if seconds else "")  # knows no clock
        for title, action in SHOWN.items():
            say(f"$ {title}")
            action()
    return last_frames(out.getvalue().replace(str(Path.cwd()), "…"))


def last_frames(text: str) -> str:
    """Return a text as it stands on the screen at the end: what was drawn over is gone, and so are trailing blanks."""
    lines: list[str] = []
    for line in text.split("\n"):
        erased = line.count("\x1b[1A")
        del lines[len(lines) - erased :]
        plain = line.rpartition("\x1b[2K")[2] if erased else line.rpartition("\r")[2]
        lines.append(plain.replace("\x1b[?25l", "").replace("\x1b[?25h", "").replace("\x1b[2K", "").rstrip())
    return "\n".join(lines)


@pytest.fixture
def _left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(LEFT) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_left")
@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_is_as_recorded(name: str) -> None:
    assert screen(*SCREENS[name]) == (RECORDS / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", SCREENS)
def test_nothing_is_cut_and_no_table_is_wider_than_the_screen(name: str) -> None:
    text = (RECORDS / f"{name}.txt").read_text()
    columns, _ = SCREENS[name]
    assert "…" not in text.replace("…/store", "")
    assert all(len(line) <= columns for line in text.split("\n") if set(line) & set("│┃━┏└"))
    for word in (*STAGES, *(stage.kind for stage in STAGES.values()), "Completed", "published"):
        assert word in text


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary, tarfile.open(LEFT) as archive:
        archive.extractall(temporary, filter="data")
        with chdir(temporary):
            screens = {name: screen(*size) for name, size in SCREENS.items()}
    for name, text in screens.items():
        (RECORDS / f"{name}.txt").write_text(text)
